"""How results are drawn and written: colours, panels, legends, files. Experiments and benchmarks use it too."""

import io
import itertools
import math
import os
import re
import sys
import textwrap
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from hesscale_run import write_atomically
from hesscale_utils import check_installed, fail

check_installed("matplotlib", f"scripts/{os.path.basename(sys.argv[0])}", "requirements-study.txt")
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

# Okabe and Ito's, which the colour-blind tell apart
COLORS = dict(black="#000000", orange="#E69F00", sky="#56B4E9", green="#009E73", blue="#0072B2", vermilion="#D55E00",
              purple="#CC79A7", grey="#888888")  # fmt: skip
# label, colour, line, marker of an optimizer. The colours are made darker or lighter, for greyscale to tell them apart
# too; a scaled optimizer has its base's in light, dashed and hollow
STYLES = {
    "sgd": ("SGD", "#000000", "-", "v"),
    "adam": ("Adam", "#003A5C", "-", "o"),
    "adahessian": ("AdaHessian", "#94456F", (0, (6, 1, 1, 1)), "D"),
    "adahesscale": ("AdaHesScale", "#D55E00", "-", "s"),
    "adahesscalegn": ("AdaHesScaleGN", "#007F5C", (0, (6, 1, 1, 1, 1, 1)), "^"),
    "scaled-sgd": ("Scaled SGD", "#7F7F7F", (0, (1, 1)), "v"),
    "scaled-adam": ("Scaled Adam", "#46A5DE", (0, (5, 1.5)), "o"),
    "scaled-adahessian": ("Scaled AdaHessian", "#DB9BC0", (0, (3, 1, 1, 1)), "D"),
    "scaled-adahesscale": ("Scaled AdaHesScale", "#F0AE1F", (0, (3, 1)), "s"),
    "scaled-adahesscalegn": ("Scaled AdaHesScaleGN", "#2DBE8C", (0, (5, 1, 1, 1, 1, 1)), "^"),
}
OTHERS = [*zip((*map(COLORS.get, ("purple", "grey", "green")), "#5A3A22", "#8C8C00", "#6A3D9A"), "PX<>*h", strict=True)]
RC = {  # matplotlib's settings of the pictures for a paper
    "font.size": 7, "axes.titlesize": 7.5, "axes.labelsize": 7.5, "figure.titlesize": 7, "figure.labelsize": 7.5,
    "legend.fontsize": 7, "legend.title_fontsize": 7, "legend.frameon": False, "lines.linewidth": 1.1,
    "lines.markersize": 3.3, "lines.markeredgewidth": 0.8, "errorbar.capsize": 1.5, "axes.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.25, "grid.linewidth": 0.5, "pdf.fonttype": 42, "savefig.dpi": 220,
    "figure.constrained_layout.use": True,
}  # fmt: skip
TEXT_WIDTH = 6.75  # inches, of a paper


def label(name):
    """Return what pictures call an agent or a series, which is an optimizer and, after commas, other flags."""
    optimizer, *flags = name.split(", ")
    return name.upper() if name in ("ppo", "a2c") else ", ".join([STYLES.get(optimizer, (optimizer,))[0], *flags])


def literal(text):
    """Return a text as matplotlib writes it out: a dollar begins no formula."""
    return text.replace("$", r"\$")


def order(name):
    """Return the key that sorts series as STYLES has them, and then by the numbers of their other flags."""
    optimizer, *flags = name.split(", ")
    numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", " ".join(flags))]
    return [*STYLES, optimizer].index(optimizer), numbers, flags


def looks(series):
    """Return how each series is drawn, {series: options of plot}, in their order."""
    found, others = {}, 0
    for name in sorted({*series}, key=order):
        if name in STYLES:
            _, color, line, marker = STYLES[name]
            face = "white" if name.startswith("scaled-") else color
        else:
            (color, marker), rounds = OTHERS[others % len(OTHERS)], others // len(OTHERS)
            line = [(0, (4, 1, 1, 1)), "-", (0, (1, 1)), (0, (6, 2))][rounds % 4]
            face = "white" if (rounds % 2 == 1) != name.startswith("scaled-") else color
            others += 1
        found[name] = dict(color=color, linestyle=line, marker=marker, markerfacecolor=face)
    return found


def panels(rows, columns=4):
    """Return a figure with a panel for each agent and environment of `rows`, and {(agent, env_id): axis}."""
    keys = list(dict.fromkeys(zip(rows["agent"], rows["env_id"], strict=True)))
    columns = min(columns, math.ceil(len(keys) / math.ceil(len(keys) / columns)))
    lines = math.ceil(len(keys) / columns)
    size = min(2.6 * columns + 0.4, TEXT_WIDTH), 1.5 * lines + 0.2
    figure, grid = plt.subplots(lines, columns, figsize=size, squeeze=False)
    for axis in grid.flat[len(keys) :]:
        axis.set_visible(False)
    for (agent, env_id), axis in zip(keys, grid.flat, strict=False):
        title = literal(f"{label(agent)}, {env_id}".replace("all, score", "all environments"))
        axis.set_title(textwrap.fill(title, min(45, int(size[0] / columns / 0.055))))
    return figure, dict(zip(keys, grid.flat, strict=False))


def numbers_of_runs(rows):
    """Return {series: label, with its number of runs if they differ}, and what says so if all have the same."""
    runs = rows.groupby("series")["runs"].agg(["min", "max"])
    numbers = {s: "\N{EN DASH}".join(map(str, sorted({*map(int, runs.loc[s])}))) for s in looks(rows["series"])}
    same = len({*numbers.values()}) == 1
    names = {series: literal(label(series)) + f" (n = {number})" * (not same) for series, number in numbers.items()}
    return names, f"n = {next(iter(numbers.values()))}" * same


def add_legend(figure, rows, note):
    """Put the series, their numbers of runs and a note above the panels."""
    styles, (names, same) = looks(rows["series"]), numbers_of_runs(rows)
    width = figure.get_figwidth()
    names = {series: textwrap.wrap(name, int((width - 0.7) / 0.053)) for series, name in names.items()}
    handles = [Line2D([], [], label="\n".join(names[series]), **style) for series, style in styles.items()]
    per_line = max(1, int(width / (0.5 + 0.053 * max(len(line) for name in names.values() for line in name))))
    lines = math.ceil(len(handles) / per_line)
    title = textwrap.wrap(f"{same}; {note}" if same else note, int(width / 0.05))
    height = lines * max(map(len, names.values())) + len(title) + 1
    figure.set_figheight(figure.get_figheight() + 0.15 * height)
    options = dict(ncols=math.ceil(len(handles) / lines), handlelength=2.6, columnspacing=1.4)
    figure.legend(handles=handles, loc="outside upper center", title="\n".join(title), **options)


def error_bar(axis, x, y, low, high, sideways=False, **style):
    """Draw points with the ends of their intervals, which may be NaN."""
    error = np.nan_to_num([np.subtract(y, low), np.subtract(high, y)]).clip(0).reshape(2, -1)
    x, y, where = (y, x, "xerr") if sideways else (x, y, "yerr")
    axis.errorbar(x, y, **{where: error}, elinewidth=0.8, **style | {"linestyle": ""})


def line_and_band(axis, x, rows, opacity=0.16, **style):
    """Draw a line and, as a band, its interval."""
    axis.plot(x, rows["value"], **style)
    axis.fill_between(x, rows["value_low"], rows["value_high"], color=style["color"], alpha=opacity, linewidth=0)


def steps_unit(most):
    """Return the unit of an axis that goes to so many environment steps, and its name."""
    return (1e6, "millions") if most > 9e5 else (1e3, "thousands")


def limit(axis, values):
    """Show `values` and what lies around them, but not the whole of intervals that two or three runs have."""
    space = 0.35 * (np.max(values) - np.min(values)) or 1
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, np.min(values) - space), min(high, np.max(values) + space))


def draw_curves(rows, baseline):
    figure, axes = panels(rows)
    unit, unit_name = steps_unit(rows["step"].max())
    styles = looks(rows["series"])
    for (agent, env_id, series), curve in rows.groupby(["agent", "env_id", "series"], sort=False):
        axis, style, place = axes[agent, env_id], styles[series], list(styles).index(series)
        opacity = 0.06 if curve["runs"].max() < 5 else 0.16  # t intervals of a few runs would hide the means
        every = (3 + 4 * place % 20, 20) if len(curve) > 20 else 1
        line_and_band(axis, curve["step"] / unit, curve, opacity, markevery=every, **style)
        axis.locator_params(nbins=4)
    for key, part in rows.groupby(["agent", "env_id"]):
        limit(axes[key], part["value"])
    figure.supxlabel(f"environment steps ({unit_name})")
    figure.supylabel("episodic return")
    add_legend(figure, rows, "95% t intervals")
    return figure


def draw_step_sizes(rows, baseline):
    figure, axes = panels(rows)
    styles = looks(rows["series"])
    step_sizes = sorted({*rows["learning_rate"]})
    ratio = min((b / a for a, b in itertools.pairwise(step_sizes)), default=10)
    for (agent, env_id, series), part in rows.groupby(["agent", "env_id", "series"], sort=False):
        axis, style, place = axes[agent, env_id], styles[series], list(styles).index(series)
        axis.plot(part["learning_rate"], part["value"], **style | {"marker": ""})
        # or the intervals at a step size would hide one another; but all within a third of the way to the next one
        beside = min(1.06, ratio ** (1 / 3 / len(styles))) ** (place - len(styles) // 2)
        # t intervals of a few runs are long, and would hide the means
        faint = {"ecolor": (style["color"], 0.35)} if part["runs"].max() < 5 else {}
        x, interval = part["learning_rate"] * beside, (part["value_low"], part["value_high"])
        error_bar(axis, x, part["value"], *interval, **style | faint)
        diverged = part[part["diverged"] > 0]["learning_rate"]
        axis.plot(diverged * beside**2, 0 * diverged, "x", color=style["color"], ms=5, mew=1.4, zorder=4)
    for key, part in rows.groupby(["agent", "env_id"]):
        limit(axes[key], [-0.1, 1, *part["value"]])
        axes[key].set_xscale("log")
        if step_sizes[-1] < 10 * step_sizes[0]:  # where matplotlib's own labels run into one another
            ticks = step_sizes[:: math.ceil(len(step_sizes) / 4)]
            axes[key].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes[key].xaxis.set_minor_formatter("")
    note = r"; $\times$: some runs diverged, and count as 0" * bool((rows["diverged"] > 0).any())
    figure.supxlabel("step size")
    figure.supylabel("score")
    add_legend(figure, rows, f"score: 0 untrained, 1 {baseline} at its best step size; 95% t intervals" + note)
    return figure


def draw_sensitivity(rows, baseline):
    agents, styles = rows["agent"].unique(), looks(rows["series"])
    figure, grid = plt.subplots(1, len(agents), figsize=(max(4.5, 2.9 * len(agents)), 2.3), squeeze=False)
    for agent, axis in zip(agents, grid[0], strict=True):
        for row in rows[rows["agent"] == agent].itertuples():
            error_bar(axis, row.best, row.phi, row.phi_low, row.phi_high, **styles[row.series])
            error_bar(axis, row.phi, row.best, row.best_low, row.best_high, sideways=True, **styles[row.series])
        axis.set(title=label(agent), xlabel="performance at tuned step sizes")
        axis.set_ylim(min(-0.02, axis.get_ylim()[0]), max(0.2, axis.get_ylim()[1]))
    grid[0][0].set_ylabel("sensitivity $\\Phi$ to the step size")
    add_legend(figure, rows, "right and low is good; 95% bootstrap intervals")
    return figure


def draw_aggregate(rows, baseline):
    styles = looks(rows["series"])
    wrap = lambda name: textwrap.fill(name, 50)  # noqa: E731
    lines = rows.groupby("agent")["series"].agg(lambda all: sum(math.ceil(len(label(s)) / 42) for s in {*all}))
    heights = (0.16 * lines + 0.6).clip(lower=1.3)
    shape = dict(width_ratios=[1, 1, 1.3], height_ratios=heights)
    figure, grid = plt.subplots(len(lines), 3, figsize=(TEXT_WIDTH, sum(heights) + 0.3), squeeze=False, **shape)
    for (agent, of_agent), axes in zip(rows.groupby("agent"), grid, strict=True):
        names, same = numbers_of_runs(of_agent)
        opacity = 0.16 if len(names) < 6 else 0  # the bands of many would hide their lines
        for (series, quantity), part in of_agent.groupby(["series", "quantity"], sort=False):
            place, style = list(names).index(series), styles[series]
            if quantity == "share of runs above":
                line_and_band(axes[2], part["over"], part, opacity, markevery=(5 + 3 * place, 25), **style)
            else:
                axis = axes[0 if quantity == "interquartile mean" else 1]
                error_bar(axis, place, part["value"], part["value_low"], part["value_high"], sideways=True, **style)
        for axis in axes[:2]:
            axis.set(yticks=range(len(names)), yticklabels=map(wrap, names.values()), ylim=(len(names) - 0.5, -0.5))
        axes[0].set(title=label(agent) + f", {same}" * bool(same), xlabel="interquartile mean score")
        than = textwrap.fill(baseline.split(" (")[0], 24)
        axes[1].set(xlim=(-0.05, 1.05), yticklabels=[], xlabel=f"P(better than\n{than})")
        axes[1].set_visible("probability of improvement" in {*of_agent["quantity"]})  # not without the baseline
        axes[1].axvline(0.5, color=COLORS["grey"], linewidth=0.8, zorder=0)
        axes[2].set(ylim=(-0.03, 1.03), xlabel="score", ylabel="runs above")
    figure.suptitle(textwrap.fill(f"score: 0 untrained, 1 {baseline}; 95% bootstrap intervals", int(TEXT_WIDTH / 0.05)))
    return figure


def write(path, content):
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        write_atomically(os.path.abspath(path), content)
    except OSError as error:
        fail(f"--out: {error}")
    print(path, flush=True)


def write_figure(prefix, figure):
    """Write a figure as PNG and PDF; the same figure makes the same bytes."""
    for kind, metadata in (("png", None), ("pdf", {"CreationDate": None})):
        content = io.BytesIO()
        figure.savefig(content, format=kind, metadata=metadata)
        write(f"{prefix}.{kind}", content.getvalue())
    plt.close(figure)
