"""Section 4's Figure 2: how far each Hessian diagonal is from the exact one, on images and on real agents' losses.

    python experiments/approximation_quality.py --out results/approximation   # both parts; one: --part images or rl
    python experiments/approximation_quality.py --quick                        # a little of it, into figures/
    python experiments/approximation_quality.py --part images --data path/to/mnist

Images: SGD trains networks with 3 tanh layers of 32 units on one image at a time. Before each step, this script
compares every method's diagonal with the exact one. The paper's "Kaiming initialization" is taken to be torch's default
for nn.Linear, which the authors' networks have: weights and biases uniform in +-1/sqrt(inputs), by kaiming_uniform_.

RL: on minibatches of agents in training (minibatches.py), the script compares the diagonals of the mean over the batch,
which an optimizer sees, and those of single samples.

An error is the L1 distance to the exact diagonal, summed over layers and averaged over examples; "normalized" divides
it by HesScale's in the same initialization or run. Intervals are Student's, 95%, over initializations or seeds.
"""

import gzip
import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import diagonals
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from minibatches import MOMENTS, RunArgs, one_by_one, record
from scipy.stats import t as students_t  # comes with scikit-learn
from tables import write_csv
from tqdm import tqdm

from hesscale_core import TanhMLP, cross_entropy_loss
from hesscale_utils import fail, limit_threads, parse_args

matplotlib.use("Agg")
CHUNK = 100  # steps of SGD whose diagonals are computed together, from copies of their parameters


@dataclass
class Args(RunArgs):
    part: str = "both"
    """images, rl or both"""
    out: Path = Path("figures/approximation")
    """the path of the output without its ending, _images or _rl with .csv, .png and .pdf; existing files are lost"""
    initializations: int = 40
    """number of networks trained on images"""
    examples: int = 1000
    """number of images that each of them is trained on"""
    learning_rate: float = 0.01
    """SGD's step size on the images"""
    samples: int = 50
    """number of samples that a stochastic method's MC50 averages"""

    def check(self):
        super().check()
        if self.part not in ("images", "rl", "both"):
            fail(f"--part {self.part}: choose images, rl or both")
        if self.quick:
            self.initializations, self.examples = 3, 40


# ---- images --------------------------------------------------------------------------------------------------


def read_idx(path):
    """Return the array in a file of MNIST's format.

    The format is two zeros, the type, the number of dimensions, each dimension's size, and the bytes.
    """
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        content = file.read()
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path.name} is not an idx file of bytes")
    start = 4 + 4 * content[3]
    return np.frombuffer(content, np.uint8, offset=start).reshape(np.frombuffer(content[4:start], ">u4"))


def load_images(folder):
    """Return images [N, pixels] in [0, 1] and labels [N] of --data, or scikit-learn's digits if `folder` is None."""
    if folder is None:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            fail("the digits come with scikit-learn: pip install scikit-learn, or give other images with --data")
        images, labels = load_digits(return_X_y=True)
        return images / 16, labels
    try:
        paths = [
            path for kind in ("images-idx3", "labels-idx1") for path in [*folder.glob(f"*train-{kind}-ubyte*")][:1]
        ]
        if len(paths) < 2:
            raise ValueError("has no train-images-idx3-ubyte and train-labels-idx1-ubyte, plain or .gz")
        images, labels = map(read_idx, paths)
        if not 0 < len(images) == len(labels):
            raise ValueError(f"{len(images)} images and {len(labels)} labels")
    except (OSError, EOFError, ValueError, gzip.zlib.error) as error:
        fail(f"--data {folder}: {error}")
    return images.reshape(len(images), -1) / 255, labels.astype(np.int64)


def make_network(sizes, seed):
    """Return a TanhMLP in float64 with torch's Kaiming initialization."""
    torch.manual_seed(seed)
    net = TanhMLP(sizes[0], sizes[1:-1], sizes[-1]).double()
    for layer in net.layers:
        layer.reset_parameters()
    return net


def sgd_step(net, x, y, learning_rate):
    """Make one step of SGD on a batch; return the loss before it."""
    loss = cross_entropy_loss(net(x), y)
    net.backward(loss.grad, None)
    for p in net.parameters():
        p.data.sub_(p.grad, alpha=learning_rate)
    return loss.loss


def image_errors(images, labels, args):
    """Return {method: errors [initializations, layers]}, means over the examples trained on."""
    rows = []
    bar = tqdm(range(args.initializations), "initializations", disable=not sys.stderr.isatty())
    for seed in bar:
        net = make_network((images.shape[1], 32, 32, 32, int(labels.max()) + 1), seed)
        rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        order, chunk_errors, losses = rng.integers(len(images), size=args.examples), [], []
        for chunk in np.split(order, range(CHUNK, args.examples, CHUNK)):
            copies = []
            for i in chunk:
                copies.append([p.detach().clone() for p in net.parameters()])
                losses.append(sgd_step(net, images[i : i + 1], labels[i : i + 1], args.learning_rate))
            params = tuple(map(torch.stack, zip(*copies, strict=True)))
            x, y = torch.as_tensor(images[chunk])[:, None], torch.as_tensor(labels[chunk])[:, None]
            chunk_errors.append(diagonals.errors(diagonals.CROSS_ENTROPY, params, x, (y,), generator, args.samples))
        tenth = len(losses) // 10 + 1
        change = f"{np.mean(losses[:tenth]):.2f} to {np.mean(losses[-tenth:]):.2f}"
        bar.set_postfix_str(f"loss {change}")
        rows.append({m: np.concatenate([errors[m] for errors in chunk_errors]).mean(0) for m in chunk_errors[0]})
    print(f"images: the last network's loss went from {change}")
    return {method: np.stack([row[method] for row in rows]) for method in rows[0]}


# ---- reinforcement learning ----------------------------------------------------------------------------------


def rl_errors(args):
    """Return {(agent, env_id, network, moment, batch size): {method: mean errors [seeds, layers]}}."""
    cells, generator = {}, torch.Generator().manual_seed(0)
    bar = tqdm(args.runs(), "runs", disable=not sys.stderr.isatty())
    for name, env_id, seed in bar:
        bar.set_postfix_str(f"{name} on {env_id}, seed {seed}")
        for (network, moment), (loss, *batch) in record(name, env_id, seed, args).items():
            for groups in (one_by_one(*batch), batch):
                cell = cells.setdefault((name, env_id, network, moment, groups[1].shape[1]), {})
                for method, errors in diagonals.errors(loss, *groups, generator, args.samples).items():
                    cell.setdefault(method, []).append(errors.mean(0))
    return {key: {method: np.stack(errors) for method, errors in cell.items()} for key, cell in cells.items()}


# ---- tables and pictures -------------------------------------------------------------------------------------


def interval(values):
    """Return the mean of `values` and half the width of Student's 95% interval, which is nan for a single value."""
    n = len(values)
    half = students_t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n) if n > 1 else math.nan
    return float(np.mean(values)), float(half)


def table(errors, **cell):
    """Return the CSV's rows for {method: errors [n, layers]}: for all layers together, and for each."""
    layers = errors["HesScale"].shape[1]
    rows = []
    for method, layer in itertools.product(errors, ["all", *range(1, layers + 1)]):
        layer_errors = {m: e.sum(1) if layer == "all" else e[:, layer - 1] for m, e in errors.items()}
        own, hesscale = layer_errors[method], layer_errors["HesScale"]
        mean, half = interval(own)
        exact = hesscale.min() <= 1e-9 * layer_errors["|diag(H)|"].max()  # in the last layer: a division by zero
        ratio, ratio_half = (math.nan, math.nan) if exact else interval(own / hesscale)
        row = dict(layer=layer, method=method, error=mean, error_ci=half, normalized=ratio, normalized_ci=ratio_half)
        rows.append(cell | row | dict(n=len(own)))
    return rows


def print_table(title, rows):
    totals = {row["method"]: row for row in rows if row["layer"] == "all"}
    print(f"\n{title}: L1 error normalized by HesScale's, all layers")
    for row in sorted((totals[m] for m in diagonals.METHODS if m in totals), key=lambda row: row["normalized"]):
        print(f"  {row['method']:<16}{row['normalized']:10.3g} +- {row['normalized_ci']:.2g}")
    distance = totals["HesScaleGN to GGN"]
    print(
        f"HesScaleGN's distance to GGN: {distance['error'] / totals['|diag(G)|']['error']:.3f} of |diag(G)|, "
        f"{distance['normalized']:.3g} times HesScale's error"
    )


def save(figure, prefix):
    for suffix in (".png", ".pdf"):
        figure.savefig(f"{prefix}{suffix}", dpi=200)
    plt.close(figure)


def plain(axis):
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)


def draw_images(errors, prefix):
    """Draw Figure 2: (a) all layers, a dot for each initialization; (b) each layer."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    errors = {method: errors[method] for method in diagonals.METHODS}
    ratios = {m: e.sum(1) / errors["HesScale"].sum(1) for m, e in errors.items()}
    order = sorted(ratios, key=lambda m: -ratios[m].mean())
    rng = np.random.default_rng(0)
    for y, method in enumerate(order):
        style, ratio = diagonals.METHODS[method], ratios[method]
        left.scatter(ratio, y + rng.uniform(-0.3, 0.3, len(ratio)), s=5, color=style["color"], alpha=0.35, linewidth=0)
        left.plot(ratio.mean(), y, **{"markeredgecolor": style["color"], "markersize": 8} | style)
    left.set_xscale("log")
    left.set_yticks(range(len(order)), order)
    left.axvline(1, color="gray", linewidth=0.8, linestyle=":")
    left.set_xlabel("L1 error, normalized by HesScale's")
    left.set_title("(a) all layers", fontsize=10)
    layers = np.arange(1, errors["HesScale"].shape[1] + 1)
    floor = min(e.mean(0)[:-1].min() for e in errors.values()) / 10
    for method in order:
        mean = errors[method].mean(0)
        style = {"markeredgecolor": diagonals.METHODS[method]["color"], "markersize": 6} | diagonals.METHODS[method]
        style["markersize"] += 3 * (method == "HesScaleGN")  # larger, because GGN is drawn over it
        right.plot(layers, np.where(mean < 1e-9 * mean.max(), 0, mean), linewidth=1, label=method, **style)
    right.set_yscale("symlog", linthresh=floor, linscale=0.5)
    right.set_ylim(bottom=-floor / 3)
    top = max(e.mean(0).max() for e in errors.values())
    right.set_yticks([0, *10.0 ** np.arange(math.ceil(math.log10(floor)) + 1, math.ceil(math.log10(top)) + 1)])
    right.set_xticks(layers)
    right.set_xlabel("layer")
    right.set_ylabel("L1 error")
    right.set_title("(b) each layer", fontsize=10)
    figure.legend(*right.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside right center")
    for axis in (left, right):
        plain(axis)
    save(figure, prefix)


def draw_rl(cells, prefix):
    """Draw a panel for each loss and batch size, with a row for each method and environment, a dot for each moment."""
    panels = sorted({(agent, network) for agent, _, network, *_ in cells})
    sizes = {agent: sorted({key[-1] for key in cells if key[0] == agent}) for agent, _ in panels}
    figure, axes = plt.subplots(
        len(panels), 2, figsize=(9, 2.9 * len(panels)), sharey=True, squeeze=False, layout="constrained"
    )
    methods = [m for m in diagonals.METHODS if any(m in cell for cell in cells.values())][::-1]
    env_ids, shades = sorted({key[1] for key in cells}), dict(zip(MOMENTS, (0.35, 0.65, 1.0), strict=True))
    shapes = dict(zip(env_ids, itertools.cycle("os^Dv"), strict=False))
    for row, (agent, network) in zip(axes, panels, strict=True):
        for axis, size in zip(row, sizes[agent], strict=True):
            for (a, env_id, n, moment, s), cell in cells.items():
                if (a, n, s) != (agent, network, size):
                    continue
                for y, method in enumerate(methods):
                    ratio = (cell[method].sum(1) / cell["HesScale"].sum(1)).mean()
                    offset = 0.26 * (1 - env_ids.index(env_id)) if len(env_ids) > 1 else 0
                    color = diagonals.METHODS[method]["color"]
                    axis.plot(
                        ratio,
                        y + offset,
                        shapes[env_id],
                        color=color,
                        alpha=shades[moment],
                        markersize=4.5,
                        markeredgewidth=0,
                    )
            axis.set_xscale("log")
            axis.axvline(1, color="gray", linewidth=0.8, linestyle=":")
            axis.set_yticks(range(len(methods)), methods, fontsize=8)
            axis.set_title(
                f"{agent.upper()}, {network}, {'one sample' if size == 1 else f'batch of {size}'}", fontsize=10
            )
            plain(axis)
    for axis in axes[-1]:
        axis.set_xlabel("L1 error, normalized by HesScale's")
    handles = [plt.Line2D([], [], linestyle="", marker=shapes[e], color="black", label=e) for e in env_ids]
    handles += [
        plt.Line2D([], [], linestyle="", marker="o", color="black", markeredgewidth=0, alpha=a, label=m)
        for m, a in shades.items()
    ]
    figure.legend(handles=handles, frameon=False, fontsize=8, ncols=len(handles), loc="outside lower center")
    save(figure, prefix)


def main(args):
    args.check()
    limit_threads()
    if args.part != "images":
        args.check_runs()
    images = load_images(args.data) if args.part != "rl" else None
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.part != "rl":
        errors, prefix = image_errors(*images, args), f"{args.out}_images"
        rows = table(errors, loss="cross-entropy", data=args.data.name if args.data else "digits", batch=1)
        write_csv(f"{prefix}.csv", rows, digits=4)
        print_table("images", rows)
        draw_images(errors, prefix)
    if args.part != "images":
        cells, prefix, rows = rl_errors(args), f"{args.out}_rl", []
        for (agent, env_id, network, moment, batch), errors in cells.items():
            cell = table(errors, agent=agent, env_id=env_id, loss=network, moment=moment, batch=batch)
            print_table(f"{agent} on {env_id}, {network}, {moment}, batch of {batch}", cell)
            rows += cell
        write_csv(f"{prefix}.csv", rows, digits=4)
        draw_rl(cells, prefix)


if __name__ == "__main__":
    main(parse_args(Args))
