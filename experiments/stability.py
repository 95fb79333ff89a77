"""Figure 7, and how many runs lose what they have learned: single runs, the share of runs with a loss, and a table.

    scripts/run.sh experiments/stability.py figure7 --out results/stability/figure7
    scripts/run.sh experiments/stability.py figure7_pressure --out results/stability/pressure

Runs come from runs/ and from the archives in results/. A run's return is that of its learning curve in 100 bins of
steps, averaged over the last 5 bins so far. Its peak is the largest such return so far; its height is the peak minus
the untrained return, the mean of the first bin of all runs in the environment. A run has lost a fifth once its return
is a fifth of that height below the peak. Returns may be negative, so a share of the peak itself would mean nothing.
Noise on the first rise is no loss: peaks less than half as high as the run's highest one do not count. A run that
diverged has lost everything.

PREFIX.png and .pdf: a row for each environment and setting; a panel of single runs for each optimizer, with a cross at
the first loss; then the share of runs that have had a loss by then, with 95% Wilson intervals. PREFIX_share.csv holds
these shares, PREFIX_table.csv how many runs of how many lost a fifth, when, and what they kept to the end.

PREFIX_signs.png, .pdf and .csv: what precedes a loss, the figures of --stability, as mean and range over the runs. An
archive does not keep them, so they are made only where all runs are in runs/.
"""

import glob
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
from done import DONE
from drawing import RC, STYLES, TEXT_WIDTH, plt, steps_unit, write_figure
from grid import read_cells
from reading import BINS, COLUMNS, bin_returns, read_all, read_events, several_values
from stats import wilson
from tables import write_csv

from hesscale_utils import fail, parse_args

SMOOTHED, LOSS, COUNTED = 5, 0.2, 0.5
OPTIMIZER_FLAGS = {"learning_rate": "lr", "betas": "$\\beta$", "delta": "$\\Delta$"}
SIGNS = {  # tags of --stability, and what the panels call them
    "stability/kl": "KL of an update\n(nats)",
    "hesscale/eta_actor": "scale $\\eta$\nof the actor",
    "stability/norm_actor": "norm of the\nactor",
    "stability/min_log_std": "log of the least\nstd. deviation",
    "stability/norm_critic": "norm of the\ncritic",
    "stability/saturated_critic": "saturated\ncritic units",
}
SETTING_FLAGS = {"num_steps": "rollout", "num_minibatches": "minibatches", "update_epochs": "epochs"}


@dataclass
class Args:
    grids: tyro.conf.Positional[tuple[str, ...]] = ()
    """grid files, or names of those in scripts/grids, whose runs are drawn; at least one must be given"""
    out: str = ""
    """how the files' names begin, say results/stability/figure7; must be given"""
    runs: tuple[str, ...] = ("runs",)
    """folders that hold the runs' folders"""


# ---- what a loss is ----------------------------------------------------------------------------------------


def smooth(curve):
    """Return the mean of each bin and the SMOOTHED - 1 bins before it, or as many as there are."""
    return np.array([np.mean(curve[max(0, k + 1 - SMOOTHED) : k + 1]) for k in range(len(curve))])


def losses(curve, untrained, diverged=False):
    """Return in which bins a run is a fifth of its height or more below its peak, and what it kept to the end.

    Args:
        curve: mean return in each bin [BINS]; NaN after the run's end.
        untrained: return of an untrained policy.
        diverged: whether the run diverged; it then has lost everything after its end.

    Returns:
        lost: bool [BINS].
        kept: (last return - untrained) / (highest peak - untrained), 0 if the run diverged; NaN without a height.
        peak: the highest peak.
    """
    curve = smooth(curve)
    peaks = np.fmax.accumulate(curve)
    heights, highest = peaks - untrained, peaks[-1] - untrained
    lost = (highest > 0) & (heights >= COUNTED * highest) & (peaks - curve >= LOSS * heights)
    if diverged:
        return lost | np.isnan(curve), 0.0, peaks[-1]
    last = curve[np.flatnonzero(np.isfinite(curve))[-1]]
    return lost, (last - untrained) / highest if highest > 0 else np.nan, peaks[-1]


# ---- reading -----------------------------------------------------------------------------------------------


def choose(args):
    """Return the finished and diverged runs of the grids, with the columns setting, series, lost, kept and peak."""
    if not args.grids:
        fail("GRIDS is missing: name grid files, as figure7")
    if not args.out:
        fail("--out is missing: say how the files' names begin, as --out results/stability/figure7")
    cells = read_cells(args.grids)
    rows = read_all(args.runs, sorted(glob.glob(f"{ROOT}/results/*/runs.csv.gz")))
    rows = rows[rows["key"].isin(cells.keys()) & rows["state"].isin(DONE)]
    rows = rows[(rows["episodes"] > 0) & (rows["damage"] == "")].sort_values("key", key=lambda k: k.map([*cells].index))
    if not len(rows):
        fail(f"{' '.join(args.grids)}: none of the grid's {len(cells)} runs has ended; scripts/sweep.sh makes them")
    if len(rows) < len(cells):
        print(f"warning: {len(cells) - len(rows)} of the grid's {len(cells)} runs are missing", file=sys.stderr)
    env_ids = rows["env_id"].map(lambda env_id: env_id.rpartition(":")[2])
    rows = rows.assign(setting=env_ids + describe(rows, SETTING_FLAGS), name=[cells[key].name for key in rows["key"]])
    rows["series"] = describe_optimizers(rows)
    names = rows["name"].map(lambda name: f", {name}" * bool(name))
    rows["series"] += names.where(rows.groupby("series")["name"].transform("nunique") > 1, "")
    for flag in [column for column in rows.columns if column not in {*COLUMNS, "source", "damage", "seed", "name"}]:
        for _, values in several_values(rows, flag, ["setting", "series"]):
            differ = f"runs differ in --{flag.replace('_', '-')} ({' '.join(sorted(map(str, values)))})"
            fail(f"{' '.join(args.grids)}: {differ} too, which no curve tells apart; give each a table with a name")
    starts = rows["curve"].map(lambda curve: curve[0]).groupby(rows["env_id"]).transform("mean")
    found = [losses(*run) for run in zip(rows["curve"], starts, rows["state"] == "diverged", strict=True)]
    return rows.assign(**dict(zip(("lost", "kept", "peak"), map(list, zip(*found, strict=True)), strict=True)))


def describe(rows, flags):
    """Return for each row the values of those `flags`, {column: name}, that differ between rows."""
    differ = [flag for flag in flags if rows[flag].nunique() > 1]
    words = lambda x: " ".join(f"{number:g}" for number in (x if isinstance(x, tuple) else (x,)))  # noqa: E731
    texts = ["".join(f", {flags[flag]} {words(row[flag])}" for flag in differ) for row in rows.to_dict("records")]
    return np.array(texts, object)


def describe_optimizers(rows):
    """Return each row's optimizer, with the flags that differ between the runs of this optimizer."""
    series = np.empty(len(rows), object)
    for optimizer in rows["optimizer"].unique():
        mine = (rows["optimizer"] == optimizer).to_numpy()
        series[mine] = STYLES[optimizer][0] + describe(rows[mine], OPTIMIZER_FLAGS)
    return series


# ---- results -----------------------------------------------------------------------------------------------


def table(rows):
    """Return a row {column: value} for each setting and series: how many runs lost a fifth, when, what they kept."""
    found = []
    for (setting, series), part in rows.groupby(["setting", "series"], sort=False):
        lost, total = np.stack(part["lost"]), part["total_timesteps"].iloc[0]
        first = (lost[lost.any(1)].argmax(1) + 1) * total / BINS
        count, share = len(first), wilson(lost.any(1).sum(), len(part))
        found.append({
            "setting": setting, "series": series, "runs": len(part), "diverged": (part["state"] == "diverged").sum(),
            "lost a fifth": count, **dict(zip(("share", "share_low", "share_high"), share, strict=True)),
            "earliest": first.min() if count else np.nan, "median": np.median(first) if count else np.nan,
            "lost at the end": lost[:, -1].sum(), "share of the height kept": part["kept"].mean(),
            "peak": part["peak"].mean(), "final return": part["final_return"].mean(),
        })  # fmt: skip
    return found


def shares(rows):
    """Return a row {column: value} for each setting, series and bin: the share of runs that have had a loss by then."""
    found = []
    for (setting, series), part in rows.groupby(["setting", "series"], sort=False):
        had = np.logical_or.accumulate(np.stack(part["lost"]), axis=1).sum(0)
        for k, ends in enumerate(zip(*wilson(had, len(part)), strict=True)):
            step = (k + 1) * part["total_timesteps"].iloc[0] / BINS
            found.append({"setting": setting, "series": series, "step": step, "share": ends[0],
                          "share_low": ends[1], "share_high": ends[2]})  # fmt: skip
    return found


def signs(rows):
    """Return a row {column: value} for each setting, series, tag of SIGNS and bin: mean and range over the runs."""
    found = []
    for (setting, series), part in rows.groupby(["setting", "series"], sort=False):
        runs = [read_events(folder)[0] for folder in part["source"]]
        total = part["total_timesteps"].iloc[0]
        for tag in SIGNS:
            points = [scalars[tag].T for scalars in runs if tag in scalars]  # only a scaled optimizer has an eta
            curves = [bin_returns(steps.astype(int), values, total, steps[-1]) for steps, values in points]
            for k, values in enumerate(zip(*curves, strict=True)):
                found.append({"setting": setting, "series": series, "runs": len(curves), "tag": tag,
                              "step": (k + 1) * total / BINS, "value": np.mean(values), "least": min(values),
                              "most": max(values)})  # fmt: skip
    return found


def lines(rows):
    """Return the colour and the line of each series, {series: {option: value}}."""
    found = {}
    for series, optimizer in dict(zip(rows["series"], rows["optimizer"], strict=True)).items():
        color = STYLES[optimizer][1]
        same = sum(style["color"] == color for style in found.values())
        found[series] = {"color": color, "linestyle": ("-", "--", ":", "-.")[same % 4]}
    return found


def add_legend(figure, styles):
    handles = [plt.Line2D([], [], label=series, **style) for series, style in styles.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))


def draw_signs(rows, by_step):
    settings, styles = list(dict.fromkeys(rows["setting"])), lines(rows)
    unit, unit_name = steps_unit(rows["total_timesteps"].max())
    size = TEXT_WIDTH, 1.3 * len(settings) + 0.5
    figure, grid = plt.subplots(len(settings), len(SIGNS), figsize=size, squeeze=False, sharex=True)
    for setting, axes in zip(settings, grid, strict=True):
        for tag, axis in zip(SIGNS, axes, strict=True):
            for series, style in styles.items():
                part = [r for r in by_step if (r["setting"], r["series"], r["tag"]) == (setting, series, tag)]
                steps = np.array([r["step"] for r in part]) / unit
                value, least, most = ([r[column] for r in part] for column in ("value", "least", "most"))
                axis.plot(steps, value, **style)
                axis.fill_between(steps, least, most, color=style["color"], alpha=0.12, lw=0)
            if tag in ("stability/kl", "hesscale/eta_actor"):
                axis.set_yscale("log")
            if setting == settings[0]:
                axis.set_title(SIGNS[tag])
        axes[0].set_ylabel(setting.replace(", ", "\n"))
    add_legend(figure, styles)
    figure.supxlabel(f"environment steps ({unit_name})")
    return figure


def draw(rows, by_step):
    settings, styles = list(dict.fromkeys(rows["setting"])), lines(rows)
    unit, unit_name = steps_unit(rows["total_timesteps"].max())
    names = [*styles]
    size = TEXT_WIDTH, 1.75 * len(settings) + 0.4
    figure, grid = plt.subplots(len(settings), len(names) + 1, figsize=size, squeeze=False)
    for (setting, name), part in rows.groupby(["setting", "series"], sort=False):
        axis, last = (grid[settings.index(setting), i] for i in (names.index(name), -1))
        steps, color = (np.arange(BINS) + 1) * part["total_timesteps"].iloc[0] / BINS / unit, styles[name]["color"]
        for curve, lost in zip(map(smooth, part["curve"]), part["lost"], strict=True):
            axis.plot(steps, curve, color=color, lw=0.6, alpha=0.8)
            if lost.any():
                axis.plot(steps[lost.argmax()], curve[lost.argmax()], "x", color="black", ms=3.5, zorder=3)
        count = f"{sum(map(np.any, part['lost']))} of {len(part)} lost a fifth"
        axis.set_title("\n".join([*name.split(", ", 1), count]))
        share = [row for row in by_step if (row["setting"], row["series"]) == (setting, name)]
        value, low, high = ([row[f"share{end}"] for row in share] for end in ("", "_low", "_high"))
        last.plot(steps, value, **styles[name])
        last.fill_between(steps, low, high, color=color, alpha=0.12, lw=0)
    for setting, axes in zip(settings, grid, strict=True):
        returns = np.concatenate([smooth(curve) for curve in rows.loc[rows["setting"] == setting, "curve"]])
        for axis in axes[:-1]:
            axis.set_ylim(np.nanmin(returns), np.nanmax(returns) + 0.05 * np.ptp(returns[np.isfinite(returns)]))
        axes[0].set_ylabel("\n".join([*setting.split(", "), "return"]))
        axes[-1].set(ylim=(-0.03, 1.03), title="share that have\nlost a fifth")
    add_legend(figure, styles)
    figure.supxlabel(f"environment steps ({unit_name})")
    return figure


def main(args):
    rows = choose(args)
    by_step, summary = shares(rows), table(rows)
    write_csv(f"{args.out}_share.csv", by_step)
    write_csv(f"{args.out}_table.csv", summary)
    for row in summary:
        when = f", first after {row['earliest']:,.0f} steps" if row["lost a fifth"] else ""
        print(f"{row['setting']}, {row['series']}: {row['lost a fifth']} of {row['runs']} runs lost a fifth{when}")
    with plt.rc_context(RC):
        write_figure(args.out, draw(rows, by_step))
        if rows["source"].map(os.path.isdir).all() and (by_step := signs(rows)):
            write_csv(f"{args.out}_signs.csv", by_step, digits=3)
            write_figure(f"{args.out}_signs", draw_signs(rows, by_step))


if __name__ == "__main__":
    main(parse_args(Args))
