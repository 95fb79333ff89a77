"""Draw what runs say of the optimizers, as PNG and PDF, with the drawn numbers beside them as CSV.

    scripts/run.sh scripts/plot.py quick --out plots/quick         # the runs of scripts/grids/quick.toml
    scripts/run.sh scripts/plot.py --out plots/all                 # every run in runs/
    scripts/run.sh scripts/plot.py selection --by delta --where "agent == 'ppo'" --out plots/radius

Runs come from runs/ and, for a grid, from the archives in results/ too. PREFIX_curves: episodic return over steps.
PREFIX_step_sizes: score over the step size, where there are several. PREFIX_sensitivity: how much the step size matters
beside what is reached (stats.sensitivity). PREFIX_aggregate: interquartile mean, probability of improvement and
performance profile over all environments (Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the
Statistical Precipice"). PREFIX_table: final return (mean over the last 50 episodes) and mean return over the run, and
their differences from the baseline, in bold where the 95% interval of a difference is above zero.

Where an optimizer has several step sizes, curves, table and aggregate show, for each agent and environment, the one
with the best mean final return in the grid's tables with `selection = true`, whose seeds are reported nowhere else. A
score is 0 for an untrained policy (the mean return in the first 1% of all runs) and 1 for the baseline there. A run
that diverged counts as untrained.
"""

import glob
import itertools
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import drawing
import numpy as np
import stats
import tyro
from drawing import label, looks
from reading import BINS, COLUMNS, ROOT, describe, pd, read_all  # which checks that pandas is there
from sweep import ABOUT, DONE, read_cells
from tables import write_csv

from hesscale_utils import fail, parse_args

# CleanRL's PPO after 1M steps, with its own settings: mean and 95% t interval over 3 seeds of the last 100 training
# episodes (docs.cleanrl.dev, benchmark of ppo_continuous_action.py)
CLEANRL = {"Hopper-v4": "2383 ± 676", "HalfCheetah-v4": "1443 ± 114", "Walker2d-v4": "2288 ± 1421",
           "InvertedPendulum-v4": "963 ± 55", "Humanoid-v4": "716 ± 122"}  # fmt: skip
PANEL, ENDS = ["agent", "env_id"], ("", "_low", "_high")
RETURNS = {"final": "final return", "mean": "mean return over the run"}


@dataclass
class Args:
    grids: tyro.conf.Positional[tuple[str, ...]] = ()
    """grid files, or names of those in scripts/grids, whose runs are drawn; without one, every run in --runs is"""
    out: str = ""
    """how the files' names begin, say results/study/all; must be given"""
    what: tuple[Literal["curves", "step-sizes", "sensitivity", "aggregate", "table"], ...] = ()
    """what to make; left out, all that there are runs for"""
    runs: tuple[str, ...] = ("runs",)
    """folders that hold the runs' folders"""
    baseline: str = "adam"
    """the series that the others are compared with"""
    by: tuple[str, ...] = ()
    """flags that tell curves apart, besides the optimizer"""
    where: str = ""
    """condition on the flags of the runs to draw, as "optimizer == 'adam' and delta < 1e-6" (pandas' query)"""
    evaluations: bool = False
    """whether to draw the evaluations (--eval-interval), the last one as final return, not the training episodes"""
    choose_on_reported: bool = False
    """whether the best step size may be chosen on the seeds that are reported, which makes the best look better"""


def words(values):
    return " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def warn(rows, text):
    """Say which of the runs, if there are any, are not whole."""
    if len(rows):
        groups = rows.groupby(["agent", "env_id", "series"], sort=False)["seed"]
        parts = [f"{words(key)}, seeds {words(sorted({*seeds}))}" for key, seeds in groups]
        more = f"; and {len(parts) - 4} more" * (len(parts) > 4)
        print(f"warning: {text}: {len(rows)} runs: {'; '.join(parts[:4])}{more}", file=sys.stderr, flush=True)


# ---- which runs, and their scores --------------------------------------------------------------------------


def choose(args):
    """Return the runs that are asked for, with the columns `series` and `selection`."""
    for folder in args.runs:
        if not os.path.isdir(folder) and args.runs != Args.runs:
            fail(f"--runs {folder}: there is no such folder; name one that holds runs' folders, as runs")
    cells = read_cells(args.grids) if args.grids else {}
    rows = read_all(args.runs, sorted(glob.glob(f"{ROOT}/results/*/runs.csv.gz")) if cells else [])
    if cells:
        missing = [{"key": key, "state": "missing"} | describe(key) for key in cells.keys() - set(rows["key"])]
        rows = pd.concat([rows[rows["key"].isin(cells.keys())], pd.DataFrame(missing)], ignore_index=True)
    rows = rows.assign(selection=[key in cells and getattr(cells[key], "selection", False) for key in rows["key"]])
    by = [name.replace("-", "_") for name in args.by]
    if unknown := {*by} - {*rows.columns}:
        fail(f"--by {words(unknown)}: no run has such a flag")
    if args.where:
        try:
            rows = rows.query(args.where)
        except Exception as error:  # whatever the expression raises
            fail(f"--where {args.where}: {error}; it is a condition as \"optimizer == 'adam'\"")
    if not (rows["state"] != "missing").any():
        fail(f"--runs {words(args.runs)}: has none of these runs; make some, as scripts/sweep.sh quick does")
    about = {*COLUMNS, *ABOUT, *by, "source", "damage", "selection"} - {"total_timesteps"}
    for (agent, _), part in rows.groupby(["agent", "selection"]):
        for name in [column for column in rows.columns if column not in about]:
            if len(values := part[name].map(str).unique()) > 1:
                flag = f"--{name.replace('_', '-')} {words(values)}"
                fail(f'{flag}: {agent} has runs with each; add --by {name}, or --where "{name} == {values[0]}"')
    for name in reversed(by):
        rows = rows.sort_values(name, kind="stable")
    flags = ["".join(f", {name} {words([row[name]])}" for name in by) for row in rows.to_dict("records")]
    rows = rows.assign(series=rows["optimizer"] + flags)
    roles = rows.groupby([*PANEL, "seed"])["selection"].nunique()
    if (roles > 1).any():
        seed = roles[roles > 1].index[0][-1]
        fail(f"seed {seed}: is for selection and for the report too; a step size must be chosen on seeds of its own")

    there = rows["state"] != "missing"
    sources = Counter(os.path.relpath(s) if s.endswith(".gz") else "runs/" for s in rows.loc[there, "source"])
    print("; ".join(f"{n} runs from {source}" for source, n in sources.items()))
    warn(rows[~there], "missing from the grid")
    drawn = there & (rows["evaluations" if args.evaluations else "episodes"].map(bool) | (rows["state"] == "diverged"))
    warn(rows[there & ~drawn], f"left out, without {'an evaluation' if args.evaluations else 'the end of an episode'}")
    warn(rows[drawn & ~rows["state"].isin(DONE)], "unfinished, and drawn as far as they went")
    warn(rows[rows["state"] == "diverged"], "diverged, and counted as untrained")
    warn(rows[drawn & (rows["damage"] != "")], f"damaged ({words(rows.loc[drawn, 'damage'].unique())})")
    versions = Counter(str(v.get("mujoco")) for v in rows.loc[there, "versions"])
    warn(rows[there] if len(versions) > 1 else rows[:0], f"of several versions of MuJoCo ({words(versions)})")
    if not drawn.any():
        fail("none of the runs has got as far as the end of an episode; let them go on, or make others")
    return rows[drawn].reset_index(drop=True)


def prepare(rows, args):
    """Return the runs to report, and those of them at the chosen step sizes, with returns and scores.

    Adds the final and the mean return, in which a run that diverged counts as untrained, and their scores.
    """
    panels = [rows[column] for column in (*PANEL, "selection")]
    start = rows["curve"].map(lambda curve: curve[0]).groupby(panels).transform("mean")
    if args.evaluations:
        values = rows["evaluations"].map(
            lambda evaluations: [evaluations[step] for step in sorted(evaluations)] or [np.nan]
        )
        rows = rows.assign(final_return=values.map(lambda v: v[-1]), mean_return=values.map(np.mean))
    for name in RETURNS:
        rows[name] = rows[f"{name}_return"].where(rows["state"] != "diverged", start)
    report = rows[~rows["selection"]] if not rows["selection"].all() else rows
    judges = rows[rows["selection"]] if rows["selection"].any() else rows
    best = judges.groupby([*PANEL, "series", "learning_rate"])["final"].mean().reset_index()
    best = best.sort_values(["final", "learning_rate"], ascending=[False, True])  # of equal ones the smaller
    best = best.drop_duplicates([*PANEL, "series"]).set_index([*PANEL, "series"])["learning_rate"]
    several = report.groupby([*PANEL, "series"])["learning_rate"].transform("nunique") > 1
    chooses = not args.what or {"curves", "aggregate", "table"} & {*args.what}
    if several.any() and chooses and not rows["selection"].any() and not args.choose_on_reported:
        fail(
            "several step sizes, and no seeds to choose one on: give the grid a table with selection = true, draw "
            "--what step-sizes sensitivity alone, or allow the choice on the reported seeds with --choose-on-reported"
        )
    chosen = best.reindex(pd.MultiIndex.from_frame(report[[*PANEL, "series"]])).to_numpy()
    drawn = report[~several | (report["learning_rate"] == chosen)]
    tops = drawn.groupby([*PANEL, "series"])[[*RETURNS]].mean()
    if args.baseline not in set(drawn["series"]):
        tops = tops.groupby(PANEL).max()
    else:
        tops = tops.xs(args.baseline, level="series")
    for name in RETURNS:
        top = tops[name].reindex(pd.MultiIndex.from_frame(report[PANEL])).to_numpy()
        score = (report[name] - start[report.index]) / (top - start[report.index])
        report, drawn = report.assign(**{f"{name}_score": score}), drawn.assign(**{f"{name}_score": score[drawn.index]})
    return report, drawn


def samples(rows, column):
    """Return a column as {series: {env_id: array [runs]}}."""
    return {
        series: {env_id: of.to_numpy() for env_id, of in part.groupby("env_id", sort=False)[column]}
        for series, part in rows.groupby("series", sort=False)
    }


# ---- the numbers of the pictures ---------------------------------------------------------------------------


def about(rows):
    seeds = words(sorted({*rows["seed"]}))
    return {"runs": len(rows), "diverged": int((rows["state"] == "diverged").sum()), "seeds": seeds}


def estimate(value_low_high, name="value"):
    return dict(zip((name, f"{name}_low", f"{name}_high"), value_low_high, strict=True))


def curve_rows(report, drawn, args):
    """Return the points of learning curves: means over the runs that have come so far."""
    found = []
    for key, part in drawn.groupby([*PANEL, "series", "learning_rate"], sort=False):
        row = dict(zip([*PANEL, "series", "learning_rate"], key, strict=True)) | about(part)
        middles = (np.arange(BINS) + 0.5) * part["total_timesteps"].max() / BINS
        curves = (
            part["evaluations"] if args.evaluations else [dict(zip(middles, c, strict=True)) for c in part["curve"]]
        )
        for step, values in pd.DataFrame([*curves]).sort_index(axis=1).items():
            if len(values := values.dropna().to_numpy()):
                found.append(row | {"step": step, "runs_there": len(values)} | estimate(stats.mean([values])))
    return pd.DataFrame(found)


def step_size_rows(report, drawn, args):
    """Return final scores over the step size for each environment, and their mean over the environments."""
    found = []
    for (agent, lr), part in report.groupby(["agent", "learning_rate"]):
        env_ids = report[report["agent"] == agent]["env_id"].unique()
        for series, scores in samples(part, "final_score").items():
            panels = {env_id: [score] for env_id, score in scores.items()}
            if len(scores) == len(env_ids) > 1:
                panels[f"mean of {len(env_ids)}"] = [*scores.values()]
            for env_id, values in panels.items():
                row = {"agent": agent, "env_id": env_id, "series": series, "learning_rate": lr}
                runs = part[
                    (part["series"] == series) & part["env_id"].isin([env_id] if env_id in env_ids else env_ids)
                ]
                found.append(row | estimate(stats.mean(values)) | about(runs) | {"runs": min(map(len, values))})
    mean_last = lambda names: names.str.startswith("mean of")  # noqa: E731
    return pd.DataFrame(found).sort_values("env_id", key=mean_last, kind="stable")


def sensitivity_rows(report, drawn, args):
    """Return stats.sensitivity of the mean return over a run, for each agent."""
    found = []
    for agent, part in report.groupby("agent"):
        part, cells = part.assign(p=part["mean"].where(part["state"] != "diverged")), {}
        for (series, env_id, lr), returns in part.groupby(["series", "env_id", "learning_rate"])["p"]:
            cells.setdefault(series, {}).setdefault(env_id, {})[lr] = returns.to_numpy()
        swept = {series: envs for series, envs in cells.items() if min(map(len, envs.values())) > 1}
        for series, result in stats.sensitivity(swept).items():
            row = {"agent": agent, "series": series, "step_size": result["step_size"]}
            row |= estimate(result["phi"], "phi") | estimate(result["best"], "best")
            found.append(row | about(part[part["series"] == series]))
    return pd.DataFrame(found)


def aggregate_rows(report, drawn, args):
    """Return interquartile means, performance profiles, and probabilities of improvement over the baseline."""
    found = []
    for agent, part in drawn.groupby("agent", sort=False):
        scores, base = samples(part, "final_score"), samples(part, "final_score").get(args.baseline, {})
        thresholds = np.linspace(min(0, part["final_score"].min()), max(1, part["final_score"].max()), BINS + 1)
        for series, score in scores.items():
            row = {"agent": agent, "series": series, "baseline": args.baseline} | about(part[part["series"] == series])
            iqm = stats.bootstrap(stats.interquartile_mean, [*score.values()])
            found.append(row | {"quantity": "interquartile mean"} | estimate(iqm))
            shares = stats.bootstrap(stats.share, [values > thresholds[:, None] for values in score.values()])
            for threshold, *share in zip(thresholds, *shares, strict=True):
                found.append(row | {"quantity": "share of runs above", "over": threshold} | estimate(share))
            pairs = [env_id for env_id in score if env_id in base]
            if series != args.baseline and pairs:
                values = [scores[env_id] for scores in (score, base) for env_id in pairs]
                improvement = stats.bootstrap(stats.improvement, values)
                found.append(row | {"quantity": "probability of improvement"} | estimate(improvement))
    return pd.DataFrame(found)


def table_rows(report, drawn, args):
    """Return final and mean returns in each environment, scores over all, and their differences from the baseline."""
    found = []
    for agent, part in drawn.groupby("agent", sort=False):
        env_ids = list(part["env_id"].unique())
        for place, series in itertools.product([*env_ids, "all, score"], looks(part["series"])):
            row = {"agent": agent, "env_id": place, "series": series}
            runs = part[(part["series"] == series) & ((part["env_id"] == place) | (place not in env_ids))]
            if not len(runs) or (place not in env_ids and not runs["env_id"].nunique() == len(env_ids) > 1):
                continue
            row |= about(runs) | {"step_sizes": words(sorted({*runs["learning_rate"]}))}
            for name in RETURNS:
                columns = samples(part, name if place in env_ids else f"{name}_score")
                values, base = (
                    [columns.get(s, {}).get(e) for e in runs["env_id"].unique()] for s in (series, args.baseline)
                )
                row |= estimate(stats.mean(values), name)
                if series != args.baseline and all(x is not None for x in base):
                    row |= estimate(stats.difference(values, base), f"{name}_difference")
            found.append(row)
    names = [f"{name}{kind}{end}" for name in RETURNS for kind in ("", "_difference") for end in ("", "_low", "_high")]
    return pd.DataFrame(found, columns=[*found[0]][:7] + names)


def markdown(rows, args, total_timesteps):
    """Return table_rows as Markdown: value ± half its 95% interval, and the difference with the interval's ends."""
    short = lambda x: f"{x:.0f}" if abs(x) >= 100 else f"{x:.2g}"  # noqa: E731
    head = ["environment", "optimizer", "runs"] + [f"{t} | less {label(args.baseline)}'s" for t in RETURNS.values()]
    lines = [f"| {' | '.join(head)} |", "| --- " * (len(head) + len(RETURNS)) + "|"]
    for (agent, env_id), block in rows.groupby(PANEL, sort=False):
        for row in block.to_dict("records"):
            cells = [f"{label(agent)}, {env_id}", label(row["series"]), str(row["runs"])]
            for name in RETURNS:
                value, low, change, least, most = (
                    row[name + k] for k in ("", "_low", *(f"_difference{e}" for e in ENDS))
                )
                cells.append(short(value) + f" ± {short(value - low)}" * (low == low))
                text = short(change) + f" ({short(least)} to {short(most)})" * (least == least)
                cells.append((f"**{text}**" if least > 0 else text) if change == change else "")
            lines.append(f"| {' | '.join(cells)} |")
        if agent == "ppo" and env_id in CLEANRL and total_timesteps == {1_000_000}:
            lines.append(f"| {label(agent)}, {env_id} | CleanRL | 3 | {CLEANRL[env_id]} | | | |")
    return "\n".join(lines) + "\n"


def main(args):
    if not os.path.basename(args.out):
        fail(f"--out {args.out or 'is missing'}: must be how the files' names begin, as --out results/study")
    folder = next(path for path in Path(args.out).absolute().parents if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        fail(f"--out {args.out}: {folder} is not a folder that can be written to")
    report, drawn = prepare(choose(args), args)
    drawing.plt.rcParams |= drawing.RC
    several = report.groupby([*PANEL, "series"])["learning_rate"].nunique().max() > 1
    if {"step-sizes", "sensitivity"} & {*args.what} and not several:
        fail(f"--what {words(args.what)}: no optimizer was run at more than one step size; make such runs")
    tables = {"curves": curve_rows, "step-sizes": step_size_rows, "sensitivity": sensitivity_rows}
    for name, make_rows in (tables | {"aggregate": aggregate_rows, "table": table_rows}).items():
        if name in args.what or (not args.what and (several or name not in ("step-sizes", "sensitivity"))):
            rows, prefix = make_rows(report, drawn, args), f"{args.out}_{name.replace('-', '_')}"
            if name == "table":
                drawing.write(f"{prefix}.md", markdown(rows, args, {*drawn["total_timesteps"]}).encode())
            else:
                figure = getattr(drawing, f"draw_{name.replace('-', '_')}")(rows, label(args.baseline))
                drawing.write_figure(prefix, figure)
            write_csv(f"{prefix}.csv", rows.to_dict("records"))
            print(f"{prefix}.csv", flush=True)


if __name__ == "__main__":
    main(parse_args(Args))
