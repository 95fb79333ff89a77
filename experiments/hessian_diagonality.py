"""Section 4.1's Table 1 and Figure 3: how diagonal the Hessians with respect to the pre-activations are.

    python experiments/hessian_diagonality.py --out results/diagonality
    python experiments/hessian_diagonality.py --quick                        # a little of it, into figures/

rho(A) = ||diag(A)||_F / ||A||_F, of the exact Hessian of one sample's own loss in each layer's pre-activations. Images:
a network with 4 tanh layers of 128 units, before and after 10,000 steps of SGD on batches of 32. RL: actor and critic
of agents in training, at the start, in the middle and at the end (minibatches.py).

"rho" is the mean over samples and runs, with Student's 95% interval over runs. "rho_of_mean" is the rho of a single
matrix, the mean of |H| over all samples and runs, as the authors' code computes it. "gaussian" is the mean rho of
random matrices of that size with standard Gaussian entries, about 1/sqrt(n).
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import diagonals
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from approximation_quality import interval, load_images, make_network, plain, save, sgd_step
from drawing import COLORS
from matplotlib.colors import LogNorm
from minibatches import RunArgs, one_by_one, record
from tables import write_csv
from tqdm import tqdm

from hesscale_utils import fail, limit_threads, parse_args

matplotlib.use("Agg")
PAPER = {"before": (0.94, 0.91, 0.89, 0.91), "after": (0.75, 0.54, 0.81, 0.98)}  # Table 1
SHADES = {
    "before": COLORS["sky"],
    "after": COLORS["vermilion"],
    "start": COLORS["sky"],
    "middle": COLORS["green"],
    "end": COLORS["vermilion"],
}
SHAPES = "osD^v"


@dataclass
class Args(RunArgs):
    out: Path = Path("figures/diagonality")
    """the path of the output without its ending, .csv, .png and .pdf; existing files are lost"""
    initializations: int = 30
    """number of networks trained on images"""
    iterations: int = 10_000
    """steps of SGD of each"""
    batch_size: int = 32
    """images in a step"""
    samples: int = 32
    """number of images whose Hessians are computed in each run"""
    width: int = 128
    """units of each of the four hidden layers"""
    learning_rate: float = 0.01
    """SGD's step size on the images"""

    def check(self):
        super().check()
        if not 2 <= self.width <= 2048:
            fail(f"--width {self.width}: must be in [2, 2048], for exact Hessians are width x width")
        if self.quick:
            self.initializations, self.iterations, self.samples = 2, 200, 4


def rho(matrices):
    """Return the diagonal dominance [...] of matrices [..., n, n]; it is nan for a matrix of zeros."""
    diagonal = matrices.diagonal(dim1=-2, dim2=-1)
    return (diagonal.square().sum(-1) / matrices.square().sum((-2, -1))).sqrt()


def gaussian_rho(n, count=200):
    """Return the mean rho of `count` random matrices [n, n] of standard Gaussian entries."""
    return float(rho(torch.randn(count, n, n, generator=torch.Generator().manual_seed(0))).mean())


def measure(cells, key, loss, params, x, targets):
    """Append a run to cells[key]: for every layer, the samples' mean rho and mean |H|."""
    hessians = [h.flatten(0, 1) for h in diagonals.preactivation_hessians(loss, params, x, targets)]
    cells.setdefault(key, []).append([(float(rho(h).nanmean()), h.abs().mean(0).numpy()) for h in hessians])


def measure_images(cells, images, labels, args):
    """Measure networks before and after training, on samples of the data that they are trained on."""
    bar = tqdm(range(args.initializations), "networks", disable=not sys.stderr.isatty())
    for seed in bar:
        net = make_network((images.shape[1], *[args.width] * 4, int(labels.max()) + 1), seed)
        rng = np.random.default_rng(seed)
        chosen = rng.integers(len(images), size=args.samples)
        x, targets = torch.as_tensor(images[chosen])[None], (torch.as_tensor(labels[chosen])[None],)
        for moment in PAPER:
            if moment == "after":
                for batch in rng.integers(len(images), size=(args.iterations, args.batch_size)):
                    loss = sgd_step(net, images[batch], labels[batch], args.learning_rate)
                bar.set_postfix_str(f"loss {loss:.3f}")
            params = tuple(p.detach()[None].clone() for p in net.parameters())
            measure(cells, ("images", "", "network", moment), diagonals.CROSS_ENTROPY, params, x, targets)
    print(f"images: the last network's loss was {loss:.3g} in the last batch")


def measure_rl(cells, args):
    """Measure the agents' networks on minibatches of their training."""
    bar = tqdm(args.runs(), "runs", disable=not sys.stderr.isatty())
    for name, env_id, seed in bar:
        bar.set_postfix_str(f"{name} on {env_id}, seed {seed}")
        for (network, moment), (loss, *batch) in record(name, env_id, seed, args).items():
            measure(cells, (name, env_id, network, moment), loss, *one_by_one(*batch))


def table(cells):
    """Return the CSV's rows, without those of one output, whose rho is 1."""
    gaussian, rows = {}, []
    for (source, env_id, network, moment), runs in cells.items():
        for layer, measurements in enumerate(zip(*runs, strict=True), 1):
            rhos, matrices = map(np.array, zip(*measurements, strict=True))
            n = matrices.shape[-1]
            if n == 1:
                continue
            gaussian[n] = gaussian.get(n) or gaussian_rho(n)
            mean, half = interval(rhos)
            paper = PAPER[moment][layer - 1] if source == "images" and layer <= 4 else math.nan
            rho_of_mean = float(rho(torch.as_tensor(matrices.mean(0))))
            cell = dict(source=source, env_id=env_id, network=network, moment=moment, layer=layer, units=n)
            dominance = dict(rho=mean, rho_ci=half, rho_of_mean=rho_of_mean, gaussian=gaussian[n], paper=paper)
            rows.append(cell | dominance | dict(n=len(rhos)))
    return rows


def print_table(rows):
    print(f"\n{'':<43}layer units   rho          of mean |H|  Gaussian  paper")
    for row in rows:
        name = " ".join([row["source"], row["env_id"], row["network"], row["moment"]])
        print(
            f"{name:<43}{row['layer']:>5}{row['units']:>6}   {row['rho']:.2f} +- {row['rho_ci']:.2f}"
            f"{row['rho_of_mean']:>12.2f}{row['gaussian']:>12.2f}{row['paper']:>8.2f}"
        )


def draw(cells, rows, prefix):
    """Draw heat maps of the first run's mean |H|, and every rho."""
    strips = [(("images", "", "network", moment), range(4), f"images, {moment}") for moment in PAPER]
    groups = [("images", "network")]
    for agent in sorted({key[0] for key in cells} - {"images"}):
        env_id = next(key[1] for key in cells if key[0] == agent)
        strips.append(((agent, env_id), range(2), f"{agent.upper()}, end"))
        groups += [(agent, "actor"), (agent, "critic")]
    figure = plt.figure(figsize=(7.5, 1.9 * len(strips) + 2.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.9 * len(strips), 2.6])
    axes = top.subplots(len(strips), 4, squeeze=False)
    for row, (key, layers, title) in zip(axes, strips, strict=True):
        if key[0] == "images":
            maps = [(f"layer {i + 1}", cells[key][0][i][1]) for i in layers]
        else:
            maps = [
                (f"{n}, layer {i + 1}", cells[(*key, n, "end")][0][i][1]) for n in ("actor", "critic") for i in layers
            ]
        for axis, (name, matrix) in zip(row, maps, strict=True):
            image = axis.imshow(
                matrix / matrix.max(), norm=LogNorm(1e-3, 1, clip=True), cmap="Greys", interpolation="nearest"
            )
            axis.set_title(name, fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(title, fontsize=8)
    top.colorbar(image, ax=axes, shrink=0.5, pad=0.02).set_label("|H|, relative to its largest entry", fontsize=8)

    env_ids = sorted({row["env_id"] for row in rows})
    axes = bottom.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axis, (source, network) in zip(axes, groups, strict=True):
        own = [row for row in rows if (row["source"], row["network"]) == (source, network)]
        keys = sorted({(row["env_id"], row["moment"]) for row in own}, key=lambda k: (k[0], list(SHADES).index(k[1])))
        for i, (env_id, moment) in enumerate(keys):
            line = [row for row in own if (row["env_id"], row["moment"]) == (env_id, moment)]
            x = np.array([row["layer"] for row in line]) + 0.5 * ((i + 0.5) / len(keys) - 0.5)
            axis.errorbar(
                x, [row["rho"] for row in line], [np.nan_to_num(row["rho_ci"]) for row in line], color=SHADES[moment],
                marker=SHAPES[env_ids.index(env_id) % 5], markersize=4, linestyle="", linewidth=1,
            )  # fmt: skip
            if source == "images":
                axis.plot(x[: len(PAPER[moment])], PAPER[moment], "_", color=SHADES[moment], markersize=9)
        reference = {row["layer"]: row["gaussian"] for row in own}
        axis.plot(list(reference), list(reference.values()), "x", color="gray", markersize=5)
        axis.set_xticks(sorted(reference))
        axis.set_xlim(0.5, max(reference) + 0.5)
        axis.set_ylim(0, 1.03)
        axis.set_xlabel("layer", fontsize=8)
        axis.set_title(source if source == "images" else f"{source.upper()}, {network}", fontsize=9)
        axis.tick_params(labelsize=8)
        plain(axis)
    axes[0].set_ylabel(r"$\rho$", rotation=0)

    def mark(label, **look):
        return plt.Line2D([], [], linestyle="", label=label, **look)

    names = {COLORS["sky"]: "before, start", COLORS["green"]: "middle", COLORS["vermilion"]: "after, end"}
    handles = [mark(name, marker="o", markersize=4, color=color) for color, name in names.items()]
    handles += [mark(e, marker=SHAPES[env_ids.index(e) % 5], markersize=4, color="black") for e in env_ids if e]
    handles += [mark("the paper's", marker="_", markersize=9, color="black")]
    handles += [mark("Gaussian matrix", marker="x", markersize=5, color="gray")]
    bottom.legend(handles=handles, frameon=False, fontsize=8, ncols=4, loc="outside lower center")
    save(figure, prefix)


def main(args):
    args.check()
    args.check_runs()
    limit_threads()
    images = load_images(args.data)
    print(
        f"rho of random Gaussian matrices of {args.width} x {args.width}: {gaussian_rho(args.width):.3f} (paper: 0.09)"
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    cells = {}
    measure_images(cells, *images, args)
    measure_rl(cells, args)
    rows = table(cells)
    print_table(rows)
    write_csv(f"{args.out}.csv", rows, digits=4)
    draw(cells, rows, args.out)


if __name__ == "__main__":
    main(parse_args(Args))
