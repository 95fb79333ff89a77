"""Draw what experiments/grid.py has measured, as a PNG beside its tables.

python experiments/plot.py curves results/ppo_hopper             # return over steps
python experiments/plot.py step-sizes results/ppo_step_sizes     # return over the step size
"""

import csv
import sys
from collections import defaultdict

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Okabe and Ito's colours, which the colour-blind tell apart; a scaled optimizer has its base's, dashed
COLORS = {
    "adam": "#0072B2",
    "adahesscale": "#D55E00",
    "adahesscalegn": "#009E73",
    "adahessian": "#CC79A7",
    "sgd": "#7F7F7F",
}
LABELS = {
    "adam": "Adam",
    "adahesscale": "AdaHesScale",
    "adahesscalegn": "AdaHesScaleGN",
    "adahessian": "AdaHessian",
    "sgd": "SGD",
}


def style(optimizer):
    base = optimizer.removeprefix("scaled-")
    scaled = base != optimizer
    marker = "s" if scaled else "o"
    return dict(
        color=COLORS[base],
        linestyle="--" if scaled else "-",
        marker=marker,
        label=("Scaled " if scaled else "") + LABELS[base],
    )


def order(optimizer):
    """Optimizers as in LABELS, each before its scaled form."""
    return list(LABELS).index(optimizer.removeprefix("scaled-")), optimizer.startswith("scaled-")


def read(path, *keys):
    """Rows of a table, grouped: {key values: [row, ...]}."""
    groups = defaultdict(list)
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            groups[tuple(row[key] for key in keys)].append(row)
    return groups


def panels(env_ids):
    figure, axes = plt.subplots(
        1, len(env_ids), figsize=(5 * len(env_ids) + 2.4, 3.6), squeeze=False, layout="constrained"
    )
    for axis, env_id in zip(axes[0], env_ids, strict=True):
        axis.set_title(env_id)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, dict(zip(env_ids, axes[0], strict=True))


def mean_and_error(values):
    """Mean and standard error over the first axis."""
    return np.mean(values, axis=0), np.std(values, axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0


def curves(out):
    """Mean and standard error over seeds; a run's value in a bin without an episode's end is interpolated."""
    runs = read(f"{out}_curves.csv", "env_id", "optimizer", "seed")
    figure, axes = panels(sorted({env_id for env_id, _, _ in runs}, reverse=True))
    seeds = defaultdict(list)
    for (env_id, optimizer, _), rows in runs.items():
        steps, returns = np.array([(float(row["step"]), float(row["return"])) for row in rows]).T
        total = int(rows[0]["total_timesteps"])
        grid = (np.arange(100) + 0.5) * total / 100
        seeds[env_id, optimizer].append(np.interp(grid[grid <= steps[-1]], steps, returns))
    for (env_id, optimizer), returns in sorted(seeds.items(), key=lambda item: order(item[0][1])):
        length = min(map(len, returns))
        mean, error = mean_and_error([r[:length] for r in returns])
        look = style(optimizer) | dict(marker="")
        look["label"] += f" ({len(returns)} seeds)"
        axes[env_id].plot(grid[:length] / 1e3, mean, **look)
        axes[env_id].fill_between(
            grid[:length] / 1e3, mean - error, mean + error, color=look["color"], alpha=0.15, lw=0
        )
    for axis in axes.values():
        axis.set_xlabel("environment steps (thousands)")
    next(iter(axes.values())).set_ylabel("episodic return")
    figure.legend(*axis.get_legend_handles_labels(), frameon=False, loc="outside right center")
    return figure


def step_sizes(out):
    """Mean and standard error over seeds of the last 50 episodes' return, over the step size."""
    runs = read(f"{out}.csv", "env_id", "optimizer", "learning_rate")
    figure, axes = panels(sorted({env_id for env_id, _, _ in runs}, reverse=True))
    for env_id, axis in axes.items():
        for optimizer in sorted({optimizer for _, optimizer, _ in runs}, key=order):
            points = sorted((float(lr), rows) for (e, o, lr), rows in runs.items() if (e, o) == (env_id, optimizer))
            results = [mean_and_error([float(row["return_last_50"]) for row in rows]) for _, rows in points]
            mean, error = zip(*results, strict=True)
            axis.errorbar([lr for lr, _ in points], mean, error, capsize=2, markersize=4, **style(optimizer))
        axis.set_xscale("log")
        axis.set_xlabel("step size")
    next(iter(axes.values())).set_ylabel("return of the last 50 episodes")
    figure.legend(*axis.get_legend_handles_labels(), frameon=False, loc="outside right center")
    print_best(runs)
    return figure


def print_best(runs):
    """For each optimizer, the step sizes by the mean over environments of return / best mean return there.

    Only step sizes that were run with at least two seeds in every environment are in the running.
    """
    returns = {key: [float(row["return_last_50"]) for row in rows] for key, rows in runs.items()}
    means = {key: np.mean(values) for key, values in returns.items() if len(values) > 1}
    best = {env_id: max(m for (e, _, _), m in means.items() if e == env_id) for env_id in {key[0] for key in means}}
    scores = defaultdict(dict)
    for _, optimizer, lr in means:
        if all((env_id, optimizer, lr) in means for env_id in best):
            scores[optimizer][lr] = np.mean([means[env_id, optimizer, lr] / best[env_id] for env_id in best])
    for optimizer, of_lr in scores.items():
        ranking = sorted(of_lr.items(), key=lambda item: -item[1])
        print(f"{optimizer:<22}" + "   ".join(f"{lr}: {score:.2f}" for lr, score in ranking))


if __name__ == "__main__":
    what, out = sys.argv[1:]
    figure = {"curves": curves, "step-sizes": step_sizes}[what](out)
    figure.savefig(f"{out}.png", dpi=160)
    print(f"{out}.png")
