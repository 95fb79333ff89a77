"""Appendix D's Figure 8: the time of an update over the number of outputs and of layers.

    python benchmarks/cost.py [--hesscale PATH] [--csv results/cost.csv]     # three minutes, 10 GB; --quick: seconds

As there, networks have 64 inputs and 512 tanh units in each hidden layer, and 30 updates are timed; they have one
hidden layer and 16 to 512 outputs, or 100 outputs and 1 to 128 hidden layers. The clock runs from the network's output
to the end of the step, without the forward pass. The paper does not say the batch and the loss: here they are a single
sample, as in the history of the authors' repository, and the cross-entropy. Methods are timed in turns, on one thread.
Ours works on numpy arrays: faster than tensors in small networks, slower from 8 layers of 512 units on, whose vectors
its optimizers go through whole. The peers are those of critic.py. The picture lies beside the table, as
results/cost.png.
"""

import datetime
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import critic
import numpy as np
from tables import write_csv
from timing import ROOT, check_table, in_turns, limit_threads, processor
from tqdm import tqdm

from hesscale_utils import check_installed, parse_args

check_installed("matplotlib", "benchmarks/cost.py", "requirements-study.txt")
import matplotlib
import matplotlib.pyplot as plt
from drawing import COLORS
from matplotlib.ticker import LogLocator

matplotlib.use("Agg")

OURS = ("adam", "adahesscalegn", "adahesscale", "adahessian")
PEERS = ("AdaHessian of pytorch_optimizer", "the authors' AdaHesScaleGN", "the authors' AdaHesScale")
TARGETS = {"adahesscalegn": 1.25, "adahesscale": 2.0, "adahessian": 3.0}  # the paper's averages

# markers are for greyscale; later ones are smaller, because our curves lie on each other; others' are dashed or black
STYLES = {
    critic.REFERENCE: dict(label="Adam, torch", color=COLORS["black"], marker="s", markersize=5),
    "adam": dict(label="Adam, ours", color=COLORS["blue"], marker="o", markersize=9),
    "adahesscalegn": dict(label="AdaHesScaleGN, ours", color=COLORS["green"], marker="^", markersize=7),
    "adahesscale": dict(label="AdaHesScale, ours", color=COLORS["vermilion"], marker="D", markersize=3.5),
    "adahessian": dict(label="AdaHessian, ours", color=COLORS["purple"], marker="v", markersize=7),
    PEERS[1]: dict(label="AdaHesScaleGN, authors'", color=COLORS["green"], marker="^", markersize=7),
    PEERS[2]: dict(label="AdaHesScale, authors'", color=COLORS["vermilion"], marker="D", markersize=5),
    PEERS[0]: dict(label="AdaHessian, pytorch_optimizer", color=COLORS["purple"], marker="v", markersize=5),
}


@dataclass
class Args:
    hesscale: Path | None = None
    """a checkout of https://github.com/mohmdelsayed/HesScale; None leaves its optimizers out"""
    peers_python: Path = ROOT / ".venv-peers/bin/python"
    """the Python of the environment with the peers"""
    batch: int = 1
    """samples in a batch"""
    rounds: int = 30
    """number of times that each is timed"""
    csv: Path | None = None
    """the table's file; it and the .png beside it are overwritten; None for neither"""
    quick: bool = False
    """whether to time small networks only once and keep nothing, to see that all of them run"""


def problems(args):
    """Return {(panel, size): problem}, in the order of the panels' sizes."""
    width, outputs, layers = (8, [2, 4], [1, 2]) if args.quick else (512, 2 ** np.arange(4, 10), 2 ** np.arange(8))
    over = {("outputs", int(n)): critic.Problem(64, (width,), int(n), args.batch) for n in outputs}
    return over | {("layers", int(n)): critic.Problem(64, (width,) * int(n), 100, args.batch) for n in layers}


def measure(panel, size, problem, peers, args):
    """Return the table's rows for one network: one for each method."""
    # several updates in a turn, because the first one finds the caches full of another method's parameters
    calls = max(1, 16 // len(problem.hidden_features))
    timed = critic.functions(problem, OURS, peers, calls=calls, with_forward=False)
    times = in_turns(timed, 1 if args.quick else args.rounds, warmup=0 if args.quick else 2)
    parameters = sum(p.numel() for p in critic.make(problem)[0].parameters())
    rows = []
    for name, t in times.items():
        low, median, high = np.quantile(t, [0.25, 0.5, 0.75])
        rows.append({
            "panel": panel, "size": size, "parameters": parameters, "batch": problem.batch, "name": name, "unit": "us",
            "median": median, "q25": low, "q75": high, "ratio": np.median(t / times[critic.REFERENCE]),
            "rounds": len(t), "date": datetime.date.today().isoformat(), "processor": processor(),
        })  # fmt: skip
    return rows


def series(rows, panel):
    """Return {name: rows of that panel}, in the order of STYLES."""
    by_name = {name: [row for row in rows if (row["panel"], row["name"]) == (panel, name)] for name in STYLES}
    return {name: own for name, own in by_name.items() if own}


def print_table(rows, panel):
    """Print a panel's medians, and their ratios to torch's Adam with mean and last growth, which is 1 if linear."""
    by_name = series(rows, panel)
    sizes = [row["size"] for row in by_name[critic.REFERENCE]]
    print(f"\nms of an update over the number of {panel}".ljust(41) + "".join(f"{size:>8}" for size in sizes))
    for name, own in by_name.items():
        print(f"  {STYLES[name]['label']:<38}" + "".join(f"{row['median'] / 1e3:8.3g}" for row in own))
    print(f"relative to {STYLES[critic.REFERENCE]['label']}".ljust(40 + 8 * len(sizes)) + "    mean  growth")
    for name, own in by_name.items():
        ratios = [row["ratio"] for row in own]
        time, parameters = (own[-1][key] / own[-2][key] for key in ("median", "parameters"))
        target = f"  target {TARGETS[name]:g}" if name in TARGETS else ""
        print(
            f"  {STYLES[name]['label']:<38}" + "".join(f"{ratio:8.2f}" for ratio in [*ratios, np.mean(ratios)])
            + f"{time / parameters:8.2f}" + target
        )  # fmt: skip


def draw(rows, path):
    """Draw both panels into the file `path`."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axis, panel in zip(axes, ("outputs", "layers"), strict=True):
        for name, own in series(rows, panel).items():
            size, median, low, high = np.array([[row[k] for k in ("size", "median", "q25", "q75")] for row in own]).T
            look = dict(linestyle="--", markerfacecolor="white") if name in PEERS else dict(markeredgecolor="white")
            axis.plot(size, median / 1e3, linewidth=1.3, **look, **STYLES[name])
            axis.fill_between(size, low / 1e3, high / 1e3, color=STYLES[name]["color"], alpha=0.15, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(size, [f"{n:.0f}" for n in size])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_xlabel({"outputs": "outputs (one hidden layer)", "layers": "hidden layers (100 outputs)"}[panel])
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    axes[1].plot(size, 0.06 * size, color="gray", linestyle=":", label="linear")
    axes[0].set_ylabel("time of an update (ms)")
    figure.legend(*axes[1].get_legend_handles_labels(), frameon=False, loc="outside right center")
    figure.savefig(path, dpi=200)
    plt.close(figure)


def main(args):
    critic.check_args(args)
    if args.batch < 1:
        sys.exit(f"error: --batch {args.batch}: must be at least 1")
    limit_threads()
    if args.csv is not None and args.csv.suffix != ".csv":
        sys.exit(f"error: --csv {args.csv}: give a name that ends in .csv; the picture's ends in .png")
    peers, rows = critic.Peers(args, PEERS), []
    progress = tqdm(problems(args).items(), disable=not sys.stderr.isatty())
    for (panel, size), problem in progress:
        progress.set_description(f"{size} {panel}")
        rows += measure(panel, size, problem, peers, args)
    print(*peers.checks.values(), sep="\n")
    for panel in ("outputs", "layers"):
        print_table(rows, panel)
    if args.csv is None:
        return
    write_csv(args.csv, rows, digits=5)
    draw(rows, args.csv.with_suffix(".png"))


if __name__ == "__main__":
    args = parse_args(Args)
    check_table(args)
    if args.quick:
        with tempfile.TemporaryDirectory() as folder:  # so that the drawing is tried, too
            args.csv = Path(folder, "cost.csv")
            main(args)
    else:
        main(args)
