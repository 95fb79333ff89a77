"""Draw what runs say of the optimizers, as PNG and PDF, with the drawn numbers beside them as CSV.

    scripts/run.sh scripts/plot.py quick --out plots/quick         # the runs of scripts/grids/quick.toml
    scripts/run.sh scripts/plot.py --out plots/all                 # every run in runs/
    scripts/run.sh scripts/plot.py selection --by delta --where "agent == 'ppo'" --out plots/radius

Runs come from runs/ and, for a grid, from the archives in results/ too. PREFIX_curves: episodic return over steps.
PREFIX_step_sizes: score over the step size, where there are several. PREFIX_sensitivity: how much the step size matters
beside what is reached (stats.sensitivity). PREFIX_aggregate: interquartile mean, probability of improvement and
performance profile over all environments (Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the
Statistical Precipice"). PREFIX_table: final return (mean over the last 50 episodes) and mean return over the run, and
their differences from the baseline, in bold where the 95% interval of a difference is above zero; and, where it is
known, the policy's entropy (mean over the last 20 points of the log) and KL (losses/approx_kl, median), in nats.

Where an optimizer has several step sizes, curves, table and aggregate show, for each agent and environment, the one
with the best mean final return in the grid's tables with `selection = true`, whose seeds are reported nowhere else. A
score is 0 for an untrained policy (the mean return in the first 1% of all runs; of evaluations, the mean of those at
step 0) and 1 for the baseline there, or for the best series of an agent of which Adam is not drawn, where no other
baseline is given. A run that diverged counts as untrained, and a step size at which one did is chosen last.
"""

import glob
import math
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import done
import drawing
import numpy as np
import stats
import tyro
from drawing import label, order
from grid import ABOUT, read_cells
from reading import BINS, COLUMNS, POLICY, check_folders, pd, read_all, several_values  # checks for pandas
from tables import csv_text

from hesscale_utils import fail, parse_args, quiet_end

# CleanRL's PPO after 1M steps, with its own settings: mean and 95% t interval over 3 seeds of the last 100 training
# episodes (docs.cleanrl.dev, benchmark of ppo_continuous_action.py)
CLEANRL = {"Hopper-v4": "2383 ± 676", "HalfCheetah-v4": "1443 ± 114", "Walker2d-v4": "2288 ± 1421",
           "InvertedPendulum-v4": "963 ± 55", "Humanoid-v4": "716 ± 122"}  # fmt: skip
PANEL = ["agent", "env_id"]
MISSING = {
    "sensitivity": "it needs an optimizer with several step sizes in several environments, the same in each",
    "aggregate": "it needs an optimizer with runs in all environments",
}
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
    """flags that tell curves of an optimizer apart where it has runs with several values"""
    where: str = ""
    """condition on the flags of the runs to draw, as "optimizer == 'adam' and delta < 1e-6" (pandas' query)"""
    evaluations: bool = False
    """whether to draw the evaluations (--eval-interval), the last one as final return, not the training episodes"""
    choose_on_reported: bool = False
    """whether the best step size may be chosen on the seeds that are reported, which makes the best look better"""


def words(values):
    texts = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    return " ".join({"nan": "None", "": '""'}.get(text, text) for text in texts)  # pandas makes None a NaN


def condition(name, value):
    """Return what --where takes for the runs with this value of a flag."""
    if words([value]) == "None":
        return f"{name}.isna()"
    return f"{name}.astype('str') == {str(value)!r}" if isinstance(value, tuple) else f"{name} == {value!r}"


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
    check_folders(args)
    cells = read_cells(args.grids) if args.grids else {}
    rows = read_all(args.runs, sorted(glob.glob(done.ARCHIVES)) if cells else [])
    if missing := len(cells.keys() - set(rows["key"])):
        warning = (
            f"warning: {missing} of the grid's {len(cells)} runs are missing; scripts/sweep.sh --dry-run names them"
        )
        print(warning, file=sys.stderr)
    rows = rows[rows["key"].isin(cells.keys())] if cells else rows
    if not len(rows):
        fail(f"--runs {words(args.runs)}: has none of these runs; make some, as scripts/sweep.sh quick does")
    known = [cells.get(key) for key in rows["key"]]
    rows = rows.assign(selection=[bool(c and c.selection) for c in known], name=[c.name if c else "" for c in known])
    by = [name.replace("-", "_") for name in args.by]
    if unknown := {*by} - {*rows.columns}:
        fail(f"--by {words(unknown)}: no run has such a flag")
    if args.where:
        number = len(rows)
        try:
            true = rows.eval(args.where)
            if not pd.api.types.is_bool_dtype(true) or len(true) != number:
                raise ValueError("is not true or false of each run")
        except Exception as error:  # whatever the expression raises
            fail(f"--where {args.where}: {error}; it is a condition as \"optimizer == 'adam'\"")
        rows = rows[true]
        if not len(rows):
            fail(f"--where {args.where}: is true of none of the {number} runs; give another condition, or leave it out")
    about = {*COLUMNS, *ABOUT, "source", "damage", "selection", "name"} - {"total_timesteps"} | {*by}
    for name in [column for column in rows.columns if column not in about]:
        # the paper gives Humanoid more steps than the others
        same = [*PANEL, "selection"] if name == "total_timesteps" else ["agent", "selection", "name"]
        for (agent, *_), values in several_values(rows, name, same):
            flag = f"--{name.replace('_', '-')} {words(values)}"
            fail(f'{flag}: {agent} has runs with each; add --by {name}, or --where "{condition(name, values[0])}"')
    rows = rows.assign(series=rows["optimizer"] + rows["name"].map(lambda name: f", {name}" * bool(name)))
    for name in by:
        differs = (
            rows.groupby(["agent", "optimizer", "name"])[name].transform(lambda values: values.map(str).nunique()) > 1
        )
        rows["series"] += (f", {name} " + rows[name].map(lambda value: words([value]))).where(differs, "")
    rows = rows.sort_values("seed").sort_values("series", key=lambda names: names.map(order), kind="stable")
    rows = rows.sort_values(PANEL, kind="stable")
    roles = rows.groupby([*PANEL, "seed"])["selection"].nunique()
    if (roles > 1).any():
        seed = roles[roles > 1].index[0][-1]
        fail(f"seed {seed}: is for selection and for the report too; a step size must be chosen on seeds of its own")

    sources = Counter(os.path.relpath(s) if s.endswith(".gz") else "runs/" for s in rows["source"])
    print("; ".join(f"{n} runs from {source}" for source, n in sources.items()))
    trained = rows["evaluations"].map(any) if args.evaluations else rows["episodes"] > 0  # any step but 0
    drawn = trained | (rows["state"] == "diverged")
    warn(rows[~drawn], f"left out, without {'an evaluation' if args.evaluations else 'the end of an episode'}")
    warn(rows[drawn & ~rows["state"].isin(done.DONE)], "unfinished, and drawn as far as they went")
    warn(rows[rows["state"] == "diverged"], "diverged, and counted as untrained")
    warn(rows[rows["damage"] != ""], f"damaged ({'; '.join(sorted({*rows['damage']} - {''}))})")
    versions = Counter(str(v.get("mujoco")) for v in rows["versions"])
    warn(rows if len(versions) > 1 else rows[:0], f"of several versions of MuJoCo ({words(versions)})")
    if not drawn.any() and args.evaluations:
        fail("--evaluations: none of the runs was evaluated as it trained yet; make runs with --eval-interval")
    if not drawn.any():
        fail("none of the runs has got as far as the end of an episode; let them go on, or make others")
    return rows[drawn].reset_index(drop=True)


def prepare(rows, args):
    """Return the runs to report, and those of them at the chosen step sizes, with returns and scores.

    Adds the final and the mean return, in which a run that diverged counts as untrained, and their scores.
    """
    panels = [rows[column] for column in (*PANEL, "selection")]
    start = (lambda row: row.evaluations.get(0, np.nan)) if args.evaluations else (lambda row: row.curve[0])
    untrained = pd.Series(map(start, rows.itertuples()), rows.index).groupby(panels).transform("mean")
    if untrained.isna().any():
        agent, env_id = rows.loc[untrained.isna(), PANEL].iloc[0]
        why = "has come to the end of an episode before it diverged, and an untrained policy has score 0"
        if args.evaluations:
            why = "was evaluated before it trained, and such an evaluation has score 0"
        fail(f'no run of {agent} on {env_id} {why}; leave it out, as by --where "env_id != {env_id!r}"')
    rows = rows.assign(untrained=untrained)
    if args.evaluations:
        values = rows["evaluations"].map(lambda found: [found[step] for step in sorted(found) if step] or [np.nan])
        rows = rows.assign(final_return=values.map(lambda v: v[-1]), mean_return=values.map(np.mean))
    for name in RETURNS:
        rows[name] = rows[f"{name}_return"].where(rows["state"] != "diverged", untrained)
    selects = rows["selection"].any()
    report = rows if rows["selection"].all() else rows[~rows["selection"]]
    judges = report if args.choose_on_reported or not selects else rows[rows["selection"]]
    several = report.groupby([*PANEL, "series"])["learning_rate"].transform("nunique") > 1
    chooses = not args.what or {"curves", "aggregate", "table"} & {*args.what}
    best = judges.assign(lost=judges["state"] == "diverged").groupby([*PANEL, "series", "learning_rate"])
    best = best.agg({"lost": "any", "final": "mean"}).reset_index()
    # one at which a run diverged is the last choice, and of equal ones the smaller is the first
    best = best.sort_values(["lost", "final", "learning_rate"], ascending=[True, False, True])
    best = best.drop_duplicates([*PANEL, "series"]).set_index([*PANEL, "series"])["learning_rate"].rename("chosen")
    report = report.join(best, on=[*PANEL, "series"])
    shown = ~several | (report["learning_rate"] == report["chosen"])
    lost = report[~shown.groupby([report[column] for column in (*PANEL, "series")]).transform("any")]
    if several.any() and chooses and (not selects or len(lost)) and not args.choose_on_reported:
        which = f" of {words(lost[[*PANEL, 'series']].iloc[0])}" if selects else ""
        fail(
            f"several step sizes{which}, and no seeds to choose one on: give the grid a table with selection = true, "
            "whose choice is reported too, draw --what step-sizes sensitivity alone, or allow the choice on the "
            "reported seeds with --choose-on-reported"
        )
    if several.any() and chooses and rows["selection"].all():
        same = "the best step sizes are shown on the seeds that they are chosen on, and look better"
        print(f"warning: {same}", file=sys.stderr)
    drawn = report[shown]
    base = drawn[drawn["series"] == args.baseline]
    if not len(base) and args.baseline != Args.baseline:
        there = "; ".join(sorted({*drawn["series"]}, key=order))
        fail(f"--baseline {args.baseline}: no such series; there are {there}")
    base = drawn[(drawn["series"] == args.baseline) | ~drawn["agent"].isin(base["agent"])]  # or an agent's best series
    tops = base.groupby([*PANEL, "series"])[[*RETURNS]].mean().groupby(PANEL).max()
    report = report.join(tops.add_suffix("_top"), on=PANEL)
    for name in RETURNS:
        span = report[f"{name}_top"] - report["untrained"]
        report[f"{name}_score"] = ((report[name] - report["untrained"]) / span).where(~(span <= 0), 0.0)
    warn(report[span.isna()], f"it has no score and counts nowhere over all, for {args.baseline} is missing there")
    better = f"{args.baseline} or, without it, the best series is"
    warn(report[span <= 0], f"its score counts as 0, for {better} no better than an untrained policy")
    return report, report.loc[drawn.index]


# ---- the numbers of the pictures ---------------------------------------------------------------------------


def estimate(value_low_high, name="value"):
    return dict(zip((name, f"{name}_low", f"{name}_high"), value_low_high, strict=True))


def samples(rows, column):
    """Return a column's values in each environment, [environments][runs]."""
    return [values.to_numpy(float) for _, values in rows.groupby("env_id")[column]]


def tabulate(rows, keys, numbers):
    """Return a row for each group of runs: keys, runs, seeds, and what `numbers` makes of it."""
    found = []
    for key, part in rows.groupby(keys, sort=False):
        runs = {"runs": len(part), "diverged": sum(part["state"] == "diverged"), "seeds": words(part["seed"].unique())}
        found.append(dict(zip(keys, key, strict=True)) | runs | numbers(part))
    return pd.DataFrame(found)


def everywhere(rows, *by):
    """Return the runs of what has run in all of its agent's environments: series, or also step sizes, as `by` names."""
    number = rows.groupby("agent")["env_id"].transform("nunique")
    return rows[rows.groupby(["agent", *by])["env_id"].transform("nunique") == number]


def with_all(rows, *by):
    """Return the runs with `place`, their environment, and again as "all" what has run in all of several."""
    several = rows[rows["final_score"].notna()]
    several = several[several.groupby("agent")["env_id"].transform("nunique") > 1]
    return pd.concat([rows.assign(place=rows["env_id"]), everywhere(several, *by).assign(place="all, score")])


def curve_rows(report, drawn, args):
    """Return the points of learning curves: means over the runs that have come so far, or have diverged.

    A run that diverged counts as untrained from then on; else the curve would become that of the others.
    """
    if args.evaluations:
        steps = {panel: sorted(set().union(*found)) for panel, found in drawn.groupby(PANEL)["evaluations"]}
        evaluated = drawn["evaluations"].copy()
        for i, row in drawn[drawn["state"] == "diverged"].iterrows():
            later = [step for step in steps[row["agent"], row["env_id"]] if step > max(row["evaluations"], default=-1)]
            evaluated[i] = row["evaluations"] | dict.fromkeys(later, row["untrained"])
        points = drawn.assign(step=evaluated.map(list), value=evaluated.map(lambda found: [*found.values()]))
    else:
        middles = drawn["total_timesteps"].map(lambda total: (np.arange(BINS) + 0.5) * total / BINS)
        ends = drawn["untrained"].where(drawn["state"] == "diverged")
        curves = [np.where(np.isnan(curve), end, curve) for curve, end in zip(drawn["curve"], ends, strict=True)]
        points = drawn.assign(step=middles, value=pd.Series(curves, drawn.index))
    points = points.explode(["step", "value"]).dropna(subset="value").sort_values("step", kind="stable")
    keys = [*PANEL, "series", "learning_rate", "step"]
    return tabulate(points, keys, lambda part: estimate(stats.mean(samples(part, "value"))))


def step_size_rows(report, drawn, args):
    """Return final scores over the step size for each environment, and their mean over the environments."""
    keys, rows = ["agent", "place", "series", "learning_rate"], report[report["final_score"].notna()]
    rows = with_all(rows, "series", "learning_rate")
    rows = tabulate(rows, keys, lambda part: estimate(stats.mean(samples(part, "final_score"))))
    return rows.rename(columns={"place": "env_id"}).sort_values("learning_rate", kind="stable")


def sensitivity_rows(report, drawn, args):
    """Return stats.sensitivity of the mean return over a run, for each agent."""
    rows, found = everywhere(report, "series"), []
    several = rows.groupby("agent")["env_id"].transform("nunique") > 1
    for agent, part in rows[several].groupby("agent"):  # in one environment the best for all is the best for each
        part, cells = part.assign(p=part["mean"].where(part["state"] != "diverged")), {}
        for (series, env_id, lr), returns in part.groupby(["series", "env_id", "learning_rate"])["p"]:
            cells.setdefault(series, {}).setdefault(env_id, {})[lr] = returns.to_numpy()
        swept = {series: envs for series, envs in cells.items() if len(set.intersection(*map(set, envs.values()))) > 1}
        for series, result in stats.sensitivity(swept).items():
            row = {"agent": agent, "series": series, "runs": sum(part["series"] == series)}
            row |= estimate(result["phi"], "phi") | estimate(result["best"], "best")
            found.append(row | {"step_size": result["step_size"]})
    found = pd.DataFrame(found)
    return found if len(found) and found[["phi", "best"]].notna().any(axis=None) else found[:0]


def aggregate_rows(report, drawn, args):
    """Return interquartile means, performance profiles, and probabilities of improvement over the baseline."""
    drawn = drawn[drawn["final_score"].notna()]
    rows = everywhere(drawn, "series")
    warn(drawn.drop(rows.index), "left out of the aggregate, because it is not of all environments")
    if not len(rows):
        return rows
    thresholds = np.linspace(min(0, rows["final_score"].min()), max(1, rows["final_score"].max()), BINS + 1)

    def numbers(part):
        base = rows[(rows["agent"] == part["agent"].iloc[0]) & (rows["series"] == args.baseline)]
        scores = samples(part, "final_score")
        points = {"interquartile mean": stats.bootstrap(stats.interquartile_mean, scores)}
        if len(base) and args.baseline != part["series"].iloc[0]:
            pairs = [*scores, *samples(base, "final_score")]
            points["probability of improvement"] = stats.bootstrap(stats.improvement, pairs)
        shares = stats.bootstrap(stats.share, [score > thresholds[:, None] for score in scores])
        quantities = [*points, *["share of runs above"] * len(thresholds)]
        over = [math.nan] * len(points) + [*thresholds]
        values = [np.append(p, share) for p, share in zip(zip(*points.values(), strict=True), shares, strict=True)]
        return {"quantity": quantities, "over": over} | estimate(values)

    return tabulate(rows, ["agent", "series"], numbers).explode(["quantity", "over", *estimate("abc")]).infer_objects()


def table_rows(report, drawn, args):
    """Return final and mean returns in each environment, scores over all, and their differences from the baseline."""
    policy = drawn[POLICY].where(np.isfinite(drawn[POLICY]) & (drawn["state"] != "diverged").to_numpy()[:, None])
    rows = with_all(drawn.assign(**policy), "series")
    known = [name for name in POLICY if policy[name].notna().any()]

    def numbers(part):
        agent, place, series = part[["agent", "place", "series"]].iloc[0]
        base = rows[(rows["agent"] == agent) & (rows["place"] == place) & (rows["series"] == args.baseline)]
        found = {"step_sizes": words(part["learning_rate"].unique())}
        for name in RETURNS:
            column = name if place in {*drawn["env_id"]} else f"{name}_score"
            found |= estimate(stats.mean(samples(part, column)), name)
            comparable = len(base) and series != args.baseline
            both = (samples(part, column), samples(base, column)) if comparable else ()
            found |= estimate(stats.difference(*both) if both else [math.nan] * 3, f"{name}_difference")
        return found | {name: part[name].mean() if place in {*drawn["env_id"]} else math.nan for name in known}

    return tabulate(rows, ["agent", "place", "series"], numbers).rename(columns={"place": "env_id"})


def in_words(row, name):
    """Return a return ± half its 95% interval, and its difference from the baseline with the ends of the interval.

    They are "" where there is none; their numbers have equal decimals, because they are compared.
    """
    columns = *estimate("abc", name), *estimate("abc", f"{name}_difference")
    value, low, _, change, least, most = (row[column] for column in columns)
    size = max([x for x in (abs(value), value - low) if 0 < x < math.inf], default=1)
    scale = math.floor(math.log10(size))
    decimals = max(0, 2 - scale - (scale < 0))
    short = lambda x: f"{round(x, decimals) + 0.0:.{decimals}f}"  # noqa: E731, no "-0"
    difference = short(change) + f" ({short(least)} to {short(most)})" * (least == least)
    return short(value) + f" ± {short(value - low)}" * (low == low), difference * (change == change)


def in_a_cell(text):
    return text.replace("|", r"\|")


def overview(rows, baseline):
    """Return the final returns of table_rows as Markdown, a line for each series and a column for each environment."""
    lines = []
    for agent, part in rows.groupby("agent", sort=False):
        head = dict.fromkeys(part["env_id"], "")
        head |= {f"minus {baseline}'s": ""} if "all, score" in head else {}
        lines += [f"| {' | '.join([f'{label(agent)}, final return', *head])} |", "| --- " * (1 + len(head)) + "|"]
        for series, found in sorted(part.groupby("series"), key=lambda group: order(group[0])):
            cells = dict(head)
            for row in found.to_dict("records"):
                text, difference = in_words(row, "final")
                cells[row["env_id"]] = f"**{text}**" if row["final_difference_low"] > 0 else text
                if row["env_id"] == "all, score":
                    cells[f"minus {baseline}'s"] = difference
            lines.append(f"| {' | '.join([in_a_cell(label(series)), *cells.values()])} |")
        lines.append("")
    return lines


def markdown(rows, args, total_timesteps):
    """Return table_rows as Markdown: the overview of final returns, and then all, with differences."""
    baseline = label(args.baseline)
    head = ["environment", "optimizer", "runs", *(x for t in RETURNS.values() for x in (t, f"minus {baseline}'s"))]
    known = [name for name in POLICY if name in rows]
    head += [f"{name}, nats" for name in known]
    lines = [*overview(rows, baseline), f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for row in rows.to_dict("records"):
        cells = [f"{label(row['agent'])}, {row['env_id']}", in_a_cell(label(row["series"])), str(row["runs"])]
        for name in RETURNS:
            text, difference = in_words(row, name)
            cells += [text, f"**{difference}**" if row[f"{name}_difference_low"] > 0 else difference]
        cells += [f"{row[name]:.2g}" if row[name] == row[name] else "" for name in known]
        lines.append(f"| {' | '.join(cells)} |")
    for env_id in CLEANRL if total_timesteps == {1_000_000} and not args.evaluations else ():
        if ((rows["agent"] == "ppo") & (rows["env_id"] == env_id)).any():
            lines.append(f"| PPO, {env_id} | CleanRL's PPO | 3 | {CLEANRL[env_id]} |{' |' * (len(head) - 4)}")
    return "\n".join(lines) + "\n"


def main(args):
    if not os.path.basename(args.out):
        fail(f"--out {args.out or 'is missing'}: must be how the files' names begin, as --out results/study")
    folder = next(path for path in Path(args.out).absolute().parents if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        fail(f"--out {args.out}: {folder} is not a folder that can be written to")
    report, drawn = prepare(choose(args), args)
    based = drawn[drawn["series"] == args.baseline]
    drawing.plt.rcParams |= drawing.RC
    best, without = "the best series in each environment", {*drawn["agent"]} - {*based["agent"]}
    baseline = f"{label(args.baseline)}{f' ({words(map(label, sorted(without)))}: {best})' * bool(without)}"
    baseline = baseline if len(based) else best
    several = report.groupby([*PANEL, "series"])["learning_rate"].nunique().max() > 1
    if {"step-sizes", "sensitivity"} & {*args.what} and not several:
        fail(f"--what {words(args.what)}: no optimizer was run at more than one step size; make such runs")
    tables = {"curves": curve_rows, "step-sizes": step_size_rows, "sensitivity": sensitivity_rows}
    for name, make_rows in (tables | {"aggregate": aggregate_rows, "table": table_rows}).items():
        if name in args.what or (not args.what and (several or name not in ("step-sizes", "sensitivity"))):
            rows, prefix = make_rows(report, drawn, args), f"{args.out}_{name.replace('-', '_')}"
            if not len(rows):
                print(f"no {name}: {MISSING[name]}")
            elif name == "table":
                steps = {*drawn.loc[drawn["agent"] == "ppo", "total_timesteps"]}
                drawing.write(f"{prefix}.md", markdown(rows, args, steps).encode())
            else:
                figure = getattr(drawing, f"draw_{name.replace('-', '_')}")(rows, baseline)
                drawing.write_figure(prefix, figure)
            if len(rows):
                drawing.write(f"{prefix}.csv", csv_text(rows.to_dict("records")).encode())


if __name__ == "__main__":
    with quiet_end():
        main(parse_args(Args))
