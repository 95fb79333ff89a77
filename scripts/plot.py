"""Draw what the runs in runs/ say of the optimizers, as PNG and PDF, with the drawn numbers beside them as CSV.

    scripts/run.sh scripts/plot.py study --out results/study   # the runs of scripts/grids/study.toml
    scripts/run.sh scripts/plot.py --out results/all           # every run in runs/
    scripts/run.sh scripts/plot.py study --out results/ppo --what curves table --where agent=ppo seed=1 seed=2

PREFIX_curves: episodic return over steps, a panel for each environment. PREFIX_step_sizes: normalized return over the
step size, where an optimizer has several (Fig. 6 of the HesScale paper). PREFIX_aggregate: interquartile mean,
probability of improvement and performance profile over all environments (Agarwal et al. 2021, "Deep Reinforcement
Learning at the Edge of the Statistical Precipice"). PREFIX_table.md: final returns. PREFIX_runs.csv: a row each run.

A run's final return is the mean over its last 50 episodes, or with --evaluations its last evaluation's. Everywhere but
in PREFIX_step_sizes, an optimizer is drawn at the step size that is best by it, for each agent and environment. A run
that diverged is never left out: its curve ends with a cross, the table counts it apart, and elsewhere it counts as an
untrained policy or, over step sizes, as the worst. What is missing, unfinished or damaged is drawn as far as it goes,
with a warning.
"""

import csv
import glob
import io
import logging
import math
import os
import signal
import sys
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from sweep import DONE, STATES, agent_name, cores, defaults, find_runs, rank, read_cells  # and makes the next two known
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

from hesscale_run import FREE_FLAGS, read_status, write_atomically
from hesscale_utils import check_installed, fail, parse_args

for package in "matplotlib", "pandas", "scipy":
    check_installed(package, "scripts/plot.py", "requirements-study.txt")
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from archive import BINS, LAST, bin_returns
from matplotlib.lines import Line2D
from stats import bootstrap, improvement, interquartile_mean, share

VARIED = ("agent", "env_id", "optimizer", "learning_rate", "seed")  # what the runs of a study may differ in
# label, colour, line, marker. The colours are Okabe and Ito's, which the colour-blind tell apart, made darker or
# lighter for greyscale to tell them apart too; a scaled optimizer has its base's in light, dashed and hollow
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
TEXT_WIDTH = 6.75  # inches, of a paper
plt.rcParams |= {
    "font.size": 7, "axes.titlesize": 7.5, "axes.labelsize": 7.5, "figure.labelsize": 7.5, "legend.fontsize": 7,
    "legend.title_fontsize": 7, "legend.frameon": False, "lines.linewidth": 1.1, "lines.markersize": 3.3,
    "lines.markeredgewidth": 0.8, "errorbar.capsize": 1.5, "axes.linewidth": 0.6, "xtick.major.width": 0.6,
    "ytick.major.width": 0.6, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.25, "grid.linewidth": 0.5, "pdf.fonttype": 42, "savefig.dpi": 220,
    "figure.constrained_layout.use": True,
}  # fmt: skip


@dataclass
class Args:
    grids: tyro.conf.Positional[tuple[str, ...]] = ()
    """grid files, or names of those in scripts/grids, whose runs are drawn; without one, every run is"""
    out: str = ""
    """how the files' names begin, say results/study; must be given"""
    what: tuple[Literal["curves", "step-sizes", "aggregate", "table"], ...] = ()
    """what to make; left out, all that there are runs for"""
    runs: tuple[str, ...] = ("runs",)
    """folders that hold the runs' folders"""
    interval: Literal["bootstrap", "stderr"] = "bootstrap"
    """of curves, over step sizes and for bold face: 95 percent bootstrap, or one standard error as in the paper"""
    evaluations: bool = False
    """whether to draw the mean returns of evaluations (--eval-interval of the agents) instead of training's episodes"""
    where: tuple[str, ...] = ()
    """which runs to draw, as name=value of agent or a flag; a name given twice allows both values"""


@dataclass
class Run:
    """A run, or a cell of the grid that has none; the last five are known once it is read."""

    args: dict  # with "agent"
    state: str = "missing"  # or one of sweep.STATES
    folder: str = ""
    status: dict = field(default_factory=dict)
    several: bool = False  # whether its optimizer has several step sizes there
    episodes: int = 0
    final: float = math.nan  # mean return of the last episodes
    curve: np.ndarray = None  # returns [BINS], NaN after the run's end
    step: int = 0  # the last that is logged
    damage: str = ""

    @property
    def key(self):
        return tuple(self.args[name] for name in VARIED)

    @property
    def name(self):
        return os.path.basename(self.folder)

    @property
    def diverged(self):
        return self.state == "diverged"


# ---- words -------------------------------------------------------------------------------------------------


def warn(text):
    print(f"warning: {text}", file=sys.stderr, flush=True)


def words(values, limit=20):
    values = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    return " ".join(values[:limit]) + f" and {len(values) - limit} more" * (len(values) > limit)


def flag(name):
    return f"--{name.replace('_', '-')}"


def order(optimizer):
    """Key to sort optimizers as STYLES has them, unknown ones last."""
    return (list(STYLES).index(optimizer) if optimizer in STYLES else len(STYLES)), optimizer


def label(name):
    """What pictures call an optimizer or an agent."""
    return name.upper() if name in ("ppo", "a2c") else STYLES.get(name, (name,))[0]


def describe(runs, limit=20):
    """Runs in few words, as "3 runs: ppo Hopper-v4 adam adahesscale, seed 2; ..."."""
    keys = [run.key if run.several else (*run.key[:3], "", run.key[4]) for run in runs]
    for i in (4, 3, 2):  # merge what differs in the seed alone, then in the step size, then in the optimizer
        groups = defaultdict(set)
        for key in keys:
            groups[key[:i] + key[i + 1 :]].add(key[i])
        keys = [(*key[:i], tuple(sorted(of, key=order if i == 2 else None)), *key[i:]) for key, of in groups.items()]
    phrases = [
        f"{agent} {env_id} {words(names)}{' at ' * any(lrs)}{words(lrs)}, seed{'s' * (len(seeds) > 1)} {words(seeds)}"
        for agent, env_id, names, lrs, seeds in keys
    ]
    more = "; and more, all in PREFIX_runs.csv" * (len(phrases) > limit)
    return f"{len(runs)} run{'s' * (len(runs) > 1)}: {'; '.join(phrases[:limit])}{more}"


# ---- which runs --------------------------------------------------------------------------------------------


def is_sound(status):
    """Whether a status says all that is asked of it; one of a version long gone may not."""
    kinds = {"env_id": str, "optimizer": str, "seed": int, "learning_rate": (int, float), "total_timesteps": int}
    return (
        status is not None
        and isinstance(status.get("step"), int)
        and status["state"] in STATES
        and isinstance(status["args"], dict)
        and all(isinstance(status["args"].get(name), kind) for name, kind in kinds.items())
    )


def collect(folders):
    """All runs in `folders`, {key: [Run, ...]}, the best first as sweep.find_runs judges; warns of what is none."""
    found, unreadable, foreign = defaultdict(list), [], defaultdict(list)
    for parent in folders:
        if not os.path.isdir(parent):
            fail(f"--runs {parent}: there is no such folder; name one that holds runs' folders, as runs")
        for path in sorted(glob.glob(f"{glob.escape(parent)}/*/")):
            status, name = read_status(path), os.path.basename(path[:-1])
            if not is_sound(status):
                unreadable.append(name)
                continue
            script, now = status["script"], defaults(status["script"])
            if now is not None and (unknown := status["args"].keys() - now - set(FREE_FLAGS)):
                foreign[script, words(map(flag, sorted(unknown)))].append(name)
                continue
            try:
                same = find_runs(glob.escape(path[:-1]))
            except OSError:  # the lock of another user's run
                unreadable.append(name)
                continue
            for key, (state, folder, status) in same.items():
                args = {"agent": agent_name(script)} | (now or {}) | status["args"]
                found[key].append(Run(args, state, folder, status))
    if unreadable:
        warn(f"left out, for want of a status.json and lock that can be read: {words(unreadable)}")
    for (script, flags), names in foreign.items():
        warn(f"left out, as runs of another version, for {script} has no {flags} now: {words(names)}")
    for runs in found.values():
        runs.sort(key=lambda run: rank(run.state, run.status))
    return found


def filter_by(where, runs):
    """Those of {key: Run} that --where asks for; ends the program where it can't be meant."""

    def is_value(value, text):
        try:
            return float(value) == float(text)
        except (TypeError, ValueError):
            return str(value).lower() == text.lower()

    known, wanted = sorted({name for run in runs.values() for name in run.args}), defaultdict(list)
    for text in where:
        name, _, value = text.partition("=")
        name = name.replace("-", "_")
        if not value:
            fail(f"--where {text}: must be name=value, as optimizer=adam")
        if name not in known:
            fail(f"--where {text}: no run has a {name}; choose one of {', '.join(known)}")
        wanted[name].append(value)
    for name, texts in wanted.items():
        there = words(sorted({run.args.get(name) for run in runs.values()}, key=str))
        runs = {k: run for k, run in runs.items() if any(is_value(run.args.get(name), text) for text in texts)}
        if not runs:
            fail(f"--where {' '.join(f'{name}={text}' for text in texts)}: leaves no run; choose of {name} {there}")
    return runs


def choose(args):
    """The runs that are asked for, the missing ones among them; ends the program where they can't be drawn as one."""
    cells = read_cells(args.grids) if args.grids else {}
    cells = {key: Run({"agent": agent_name(cell.script)} | asdict(cell.args)) for key, cell in cells.items()}
    found, folders = collect(args.runs), words(args.runs)
    if not found:
        fail(f"--runs {folders}: holds no run that can be read; make some, say with scripts/sweep.sh quick")
    wanted = filter_by(args.where, cells or {key: runs[0] for key, runs in found.items()})
    values, step_sizes = defaultdict(dict), defaultdict(set)
    for run in wanted.values():
        step_sizes[run.key[:3]].add(run.key[3])
        for name, value in run.args.items():
            if name not in VARIED + FREE_FLAGS:
                values[run.args["agent"], name][str(value)] = value
    for (agent, name), of in values.items():
        if len(of) > 1:
            what = f"{flag(name)} {' and '.join(of)}: {agent} has runs with each, which are not to be compared"
            fail(f"{what}; choose with a grid file, or --where {name}={next(iter(of))}")
    runs = [found[key][0] if key in found else cell for key, cell in wanted.items()]
    if all(run.state == "missing" for run in runs):
        fail(f"--runs {folders}: holds none of the grid's {len(runs)} runs; scripts/sweep.sh makes them")
    print(f"{sum(run.state != 'missing' for run in runs)} runs, of {len(runs)} asked for")
    for run in runs:
        run.several = len(step_sizes[run.key[:3]]) > 1

    lack = {run.name: run.args.keys() - run.status["args"] - {"agent", *FREE_FLAGS} for run in runs if run.folder}
    if any(lack.values()):
        flags, names = words(map(flag, sorted(set().union(*lack.values())))), words(name for name in lack if lack[name])
        warn(f"of another version, without {flags}, for which the default is taken: {names}")
    doubles = [run.name for key in wanted if key in found for run in found[key][1:]]
    if doubles:
        warn(f"left out, for another folder holds the same run and got as far: {words(doubles)}")
    commits = [run.status.get("commit") or "unknown" for run in runs if run.folder]
    commits = Counter(commit[:7] + "+" * commit.endswith("+") for commit in commits)
    if len(commits) > 1:
        warn(f"the runs are of several commits: {', '.join(f'{n} of {c}' for c, n in commits.items())}")
    return sorted(runs, key=lambda run: (*run.key[:2], order(run.key[2]), *run.key[3:]))


# ---- their event files -------------------------------------------------------------------------------------


def read_run(run, evaluations=False):
    """Read a run's event files by TensorBoard's reader, which leaves out what a resumed run has logged again."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it would tell of that
    steps, returns = np.empty(0, int), np.empty(0)
    try:
        events = EventAccumulator(run.folder, size_guidance={"scalars": 0}).Reload()
        tags = events.Tags()
        logged = [events.Scalars(tag) for tag in tags["scalars"]] + [events.Tensors(tag) for tag in tags["tensors"]]
        run.step = max((of_tag[-1].step for of_tag in logged if of_tag), default=0)
        tag = "eval/episodic_return" if evaluations else "charts/episodic_return"
        if tag in tags["scalars"]:
            episodes = [(event.step, event.value) for event in events.Scalars(tag)]
            steps, returns = np.array(episodes, float).reshape(-1, 2).T
    except Exception as error:  # whatever a damaged file makes the reader raise
        run.damage = " ".join(f"can't be read: {type(error).__name__}: {error}".split())
    finite = np.isfinite(returns)
    if not finite.all():
        run.damage = f"{(~finite).sum()} of {len(returns)} returns not finite, and left out"
    steps, returns = steps[finite].astype(int), returns[finite]
    run.episodes, run.curve = len(returns), bin_returns(steps, returns, run.args["total_timesteps"], run.step)
    run.final = float(np.mean(returns[-1 if evaluations else -LAST :])) if len(returns) else math.nan
    return run


def read_runs(runs, evaluations=False):
    """Read the event files and warn of what is not whole; return all runs, read."""
    start, there = time.perf_counter(), [run for run in runs if run.state != "missing"]
    workers, ignore = min(cores(), len(there), 61), (signal.SIGINT, signal.SIG_IGN)  # 61: more Windows can't wait for
    with ProcessPoolExecutor(workers, initializer=signal.signal, initargs=ignore) as pool:
        there = list(
            tqdm(
                pool.map(partial(read_run, evaluations=evaluations), there, chunksize=4),
                "reading",
                len(there),
                unit=" runs",
                disable=None,
            )
        )
    print(f"{len(there)} runs read in {time.perf_counter() - start:.1f} s")
    missing = [run for run in runs if run.state == "missing"]
    empty = [run for run in there if not run.episodes]
    if len(empty) == len(there):
        fail(f"none of the {len(there)} runs has logged an episode's end; let them go on, or make others")
    kinds = {"missing from the grid": missing, "without an episode's end in its event files": empty}
    kinds["diverged, and counted as such"] = [run for run in there if run.diverged]
    for state in STATES:
        if state not in DONE:
            kinds[f"{state}, and drawn as far as it went"] = [run for run in there if run.state == state]
    for text, some in kinds.items():
        if some:
            warn(f"{text}: {describe(some)}")
    damaged = []
    for run in there:
        # an unfinished A2C run may be 2048 steps past what it has logged last, and a running one any number
        past = {"finished": 0, "diverged": 0, "running": math.inf}.get(run.state, 2048)
        if run.damage or run.step < run.status["step"] - past:
            short = f"ends at step {run.step} of {run.status['step']}"
            damaged.append(f"{run.name} ({run.damage or short})")
    if damaged:
        warn(f"damaged event files: {words(damaged)}")
    return there + missing


# ---- statistics --------------------------------------------------------------------------------------------


def mean_of_means(*samples, axis=-1):
    return sum(np.mean(sample, axis) for sample in samples) / len(samples)


def spread(samples, interval):
    """Mean over environments of the mean over runs, low and high: by bootstrap, or a standard error away."""
    if interval == "bootstrap":
        return bootstrap(mean_of_means, samples)
    mean, error = mean_of_means(*samples), np.full(samples[0].shape[:-1], np.nan)
    if min(sample.shape[-1] for sample in samples) > 1:
        error = np.sqrt(sum(np.var(sample, -1, ddof=1) / sample.shape[-1] for sample in samples)) / len(samples)
    return mean, mean - error, mean + error


class Study:
    """What the runs come to.

    Attributes:
        groups: {(agent, env_id, optimizer, learning_rate): its runs}.
        drawn: {(agent, env_id): {optimizer: its runs at the step size with the best mean final return}}.
        step_sizes: {(agent, env_id, optimizer): how many were run}.
        scores: {agent: {optimizer: {env_id: scores [runs]}}}: 0 is the mean return in the first 1% of steps over all
            runs there, which a diverged run counts as, and 1 the best optimizer's mean final return.
    """

    def __init__(self, runs):
        starts = defaultdict(list)
        for run in runs:
            if run.episodes:
                starts[run.key[:2]].append(run.curve[0])
        self.groups, self.drawn = defaultdict(list), {}
        for run in runs:
            if run.episodes or (run.diverged and run.key[:2] in starts):
                self.groups[run.key[:4]].append(run)
        self.step_sizes = Counter(key[:3] for key in self.groups)
        self.scores = defaultdict(lambda: defaultdict(dict))
        for (agent, env_id), low in ((panel, np.mean(returns)) for panel, returns in starts.items()):
            here = {key: runs for key, runs in self.groups.items() if key[:2] == (agent, env_id)}
            returns = {key: np.array([low if run.diverged else run.final for run in here[key]]) for key in here}
            ascending = sorted(here, key=lambda key: (np.mean(returns[key]), -key[3]))
            best = dict(sorted({key[2]: key for key in ascending}.items(), key=lambda item: order(item[0])))
            self.drawn[agent, env_id] = {optimizer: here[key] for optimizer, key in best.items()}
            span = np.mean(returns[ascending[-1]]) - low
            for optimizer, key in best.items():
                self.scores[agent][optimizer][env_id] = (returns[key] - low) / span if span > 0 else 0 * returns[key]


# ---- from runs to the rows of a table ----------------------------------------------------------------------


def behind(runs):
    """What stands behind a number, as columns of its row."""
    seeds = sorted({run.key[4] for run in runs})
    return {"runs": len(runs), "diverged": sum(run.diverged for run in runs), "seeds": " ".join(map(str, seeds))}


def curve_rows(study, interval):
    """The points of the learning curves: means over the runs that have come so far, and where runs diverged."""
    rows = []
    for runs in (runs for of in study.drawn.values() for runs in of.values()):
        total, curves = runs[0].args["total_timesteps"], np.array([run.curve for run in runs])
        alive, points = ~np.isnan(curves), np.full((3, BINS), np.nan)
        for pattern in np.unique(alive, axis=1).T:
            bins = (alive == pattern[:, None]).all(axis=0)
            if pattern.any():
                points[:, bins] = spread([curves[pattern][:, bins].T], interval)
        drawn = [("mean", i, *points[:, i]) for i in np.flatnonzero(alive.any(axis=0))]
        for run, number in zip(runs, alive.sum(axis=1), strict=True):
            if run.diverged and number:
                drawn.append(("diverged", number - 1, run.curve[number - 1], math.nan, math.nan))
        what = dict(zip(VARIED[:4], runs[0].key[:4], strict=True)) | {
            "of_step_sizes": study.step_sizes[runs[0].key[:3]]
        }
        for point, i, *values in drawn:
            row = what | {"total_timesteps": total, "point": point, "step": (i + 0.5) * total / BINS}
            row |= dict(zip(("return", "low", "high"), values, strict=True))
            rows.append(row | {"runs_there": alive[:, i].sum()} | behind(runs))
    return rows


def min_max(groups):
    """Scores of runs between the least and the greatest of the averages drawn, as in Fig. 6: {key: scores [runs]}.

    A diverged run counts as the least average of runs that did not diverge. Where all averages are the same, they are
    1 and diverged runs 0.

    Args:
        groups: {key: runs} of one agent in one environment.
    """
    averages = [np.mean(of) for runs in groups.values() if (of := [run.final for run in runs if not run.diverged])]
    low = min(averages, default=0.0)
    high = max(np.mean([low if run.diverged else run.final for run in runs]) for runs in groups.values())
    score = lambda run: 0.0 if run.diverged else (run.final - low) / (high - low) if high > low else 1.0  # noqa: E731
    return {key: np.array([score(run) for run in runs]) for key, runs in groups.items()}


def step_size_rows(study, interval):
    """Fig. 6's points for each agent and environment, and their mean over the environments."""
    samples, runs_of = {}, {}
    for panel in sorted({key[:2] for key, number in study.step_sizes.items() if number > 1}):
        groups = {key: runs for key, runs in study.groups.items() if key[:2] == panel}
        runs_of |= groups
        samples |= {key: [scores] for key, scores in min_max(groups).items()}
    for agent in sorted({key[0] for key in samples}):
        env_ids = sorted({key[1] for key in samples if key[0] == agent})
        for point in dict.fromkeys(key[2:] for key in list(samples) if key[0] == agent and len(env_ids) > 1):
            keys = [(agent, env_id, *point) for env_id in env_ids]
            if all(key in samples for key in keys):
                mean = (agent, f"mean of {len(env_ids)} environments", *point)
                samples[mean] = [samples[key][0] for key in keys]
                runs_of[mean] = [run for key in keys for run in runs_of[key]]
    rows = []
    for key, runs in runs_of.items():
        returns = [run.final for run in runs if not run.diverged] if key in study.groups else []
        row = dict(zip(VARIED[:4], key, strict=True)) | {"mean_return": np.mean(returns) if returns else math.nan}
        row |= dict(zip(("normalized_return", "low", "high"), spread(samples[key], interval), strict=True))
        rows.append(row | behind(runs))
    return rows


def aggregate_rows(study, interval):
    """Interquartile means, performance profiles, and probabilities of improvement over every other optimizer.

    Their intervals are bootstrapped whatever `interval` is: standard errors are of means.
    """
    rows = []
    for agent, scores in study.scores.items():
        env_ids = sorted({env_id for of in scores.values() for env_id in of})
        for env_id in env_ids:
            if not any(of[env_id].any() for of in scores.values() if env_id in of):
                warn(f"aggregate: {agent} {env_id}: nothing beats an untrained policy, so every score there is 0")
        every = np.concatenate([sample for of in scores.values() for sample in of.values()])
        thresholds = np.linspace(min(0.0, every.min()), max(1.0, every.max()), BINS + 1)
        for optimizer, of in scores.items():
            if len(of) < len(env_ids):
                warn(f"aggregate: {agent} {optimizer} has {words(sorted(of))} alone of {words(env_ids)}")
            samples = list(of.values())
            above = [sample > thresholds[:, None] for sample in samples]
            points = [("interquartile mean", "", *bootstrap(interquartile_mean, samples))]
            shares = zip(thresholds, *bootstrap(share, above), strict=True)
            points += [("share of runs above", *share) for share in shares]
            for other in scores:
                both = [env_id for env_id in of if env_id in scores[other]]
                if other != optimizer and both:
                    pairs = [scores[name][env_id] for name in (optimizer, other) for env_id in both]
                    points.append(("probability of improvement over", other, *bootstrap(improvement, pairs)))
            runs = [run for env_id in of for run in study.drawn[agent, env_id][optimizer]]
            for point in points:
                row = dict(zip(("quantity", "over", "value", "low", "high"), point, strict=True))
                rows.append({"agent": agent, "optimizer": optimizer} | row | {"environments": len(of)} | behind(runs))
    return rows


# ---- pictures of such rows ---------------------------------------------------------------------------------


def look(optimizer):
    """How an optimizer is drawn, in every picture."""
    _, color, line, marker = STYLES.get(optimizer, (optimizer, "#A0A0A0", (0, (4, 1, 1, 1)), "P"))
    face = "white" if optimizer.startswith("scaled-") else color
    return dict(color=color, linestyle=line, marker=marker, markerfacecolor=face)


def by(rows, *names):
    """Rows that agree in these columns, {agreed values: rows}, in the order of the rows."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    return groups


def columns(rows, *names):
    return (np.array([row[name] for row in rows]) for name in names)


def panels(rows, most=4):
    """A figure with a panel for each agent and environment: an agent a row, or several if it has more than `most`."""
    keys, env_ids = by(rows, "agent", "env_id"), [env_id for (env_id,) in by(rows, "env_id")]
    width = -(-len(env_ids) // -(-len(env_ids) // most))
    lines = [(agent, env_ids[i : i + width]) for (agent,) in by(rows, "agent") for i in range(0, len(env_ids), width)]
    lines = [(agent, some) for agent, some in lines if any((agent, env_id) in keys for env_id in some)]
    size = min(2.6 * width + 0.4, TEXT_WIDTH), (1.55 if len(lines) < 5 else 1.3) * len(lines) + 0.2
    figure, grid = plt.subplots(len(lines), width, figsize=size, squeeze=False)
    axes, titled = {}, set()
    for (agent, some), line in zip(lines, grid, strict=True):
        line[0].set_ylabel(label(agent), fontweight="bold")
        for axis, env_id in zip(line, some + [None] * (width - len(some)), strict=True):
            if (agent, env_id) in keys:
                axes[agent, env_id] = axis
                axis.set_title(env_id if len(env_ids) > width or env_id not in titled else "")
                titled.add(env_id)
            else:  # but for the label of the row
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
    return figure, axes


def add_legend(figure, rows, cross="", column="seeds"):
    """The optimizers, how many seeds or runs they stand on and what a cross means, above the panels."""
    numbers, handles = {}, []
    for (optimizer,), of in sorted(by(rows, "optimizer").items(), key=lambda item: order(item[0][0])):
        of = sorted({len(row["seeds"].split()) if column == "seeds" else row["runs"] for row in of})
        text = "\N{EN DASH}".join(map(str, sorted({of[0], of[-1]})))
        numbers[optimizer] = f"{text} {column if of[-1] > 1 else column[:-1]}"
    same = len(set(numbers.values())) == 1
    for optimizer in numbers:
        text = label(optimizer) + f" ({numbers[optimizer]})" * (not same)
        handles.append(Line2D([], [], label=text, **look(optimizer)))
    widest = 0.5 + 0.053 * max(len(handle.get_label()) for handle in handles)  # inches
    lines = -(-len(handles) // max(1, int(figure.get_figwidth() / widest)))
    figure.set_figheight(figure.get_figheight() + 0.15 * (lines + 2))
    title = "; ".join([*[numbers[optimizer]] * same, *[f"$\\times$: {cross}"] * bool(cross)])
    options = dict(ncols=-(-len(handles) // lines), handlelength=2.6, columnspacing=1.4, title=title)
    figure.legend(handles=handles, loc="outside upper center", **options)


def draw_curves(rows):
    figure, axes = panels(rows)
    total = max(row["total_timesteps"] for row in rows)
    unit, unit_name = (1e6, "millions") if total >= 3e6 else (1e3, "thousands")
    for (agent, env_id), of_panel in by(rows, "agent", "env_id").items():
        axis = axes[agent, env_id]
        for place, ((optimizer,), of) in enumerate(by(of_panel, "optimizer").items()):
            points, style = by(of, "point"), look(optimizer)
            if ("mean",) in points:
                steps, mean, low, high = columns(points["mean",], "step", "return", "low", "high")
                axis.plot(steps / unit, mean, markevery=(3 + 4 * place % 20, 20), zorder=3, **style)
                axis.fill_between(steps / unit, low, high, color=style["color"], alpha=0.18, linewidth=0)
            for row in points["diverged",]:
                axis.plot(row["step"] / unit, row["return"], "x", color=style["color"], ms=5.5, mew=1.6, zorder=4)
        axis.set_xlim(0, of_panel[0]["total_timesteps"] / unit)
        axis.locator_params("x", nbins=4 if len(axes) < 3 else 3)
        axis.locator_params("y", nbins=5)
    figure.supxlabel(f"environment steps ({unit_name})")
    figure.supylabel("episodic return")
    crosses = any(row["point"] == "diverged" for row in rows)
    add_legend(figure, rows, "diverged, and the mean goes on over the other runs" * crosses)
    return figure


def draw_step_sizes(rows):
    figure, axes = panels(rows)
    crosses = defaultdict(list)  # of several optimizers at one step size, side by side
    for (agent, env_id, optimizer), of in by(rows, "agent", "env_id", "optimizer").items():
        axis, style = axes[agent, env_id], look(optimizer)
        x, y, low, high = columns(of, "learning_rate", "normalized_return", "low", "high")
        axis.plot(x, y, **style | {"marker": ""})
        some = np.array([row["diverged"] < row["runs"] for row in of])
        error = np.nan_to_num([y - low, high - y])[:, some].clip(0)
        axis.errorbar(x[some], y[some], error, elinewidth=0.7, **style | {"linestyle": ""})
        for row in of:
            if row["diverged"]:
                number = f"{row['diverged']}/{row['runs']}" * (row["diverged"] < row["runs"])
                crosses[axis, row["learning_rate"]].append((style["color"], number))
    numbers = any(number for of in crosses.values() for _, number in of)
    for axis in axes.values():
        axis.set_xscale("log")
        axis.set_ylim(min(-0.3 if numbers else -0.1, axis.get_ylim()[0]), max(1.06, axis.get_ylim()[1]))
    for (axis, learning_rate), of in crosses.items():
        for i, (color, number) in enumerate(of):
            place = dict(xy=(learning_rate, 0), textcoords="offset points", color=color, ha="center", va="center")
            shift = 4.5 * (i - (len(of) - 1) / 2)
            axis.annotate(r"$\mathbf{\times}$", xytext=(shift, 0), fontsize=8, zorder=5, **place)
            axis.annotate(number, xytext=(0, -7 - 6 * i), fontsize=5.5, **place)
    figure.supxlabel("step size")
    figure.supylabel("normalized return")
    add_legend(figure, rows, "diverged, counts as 0 (k/n: k of n runs)" * bool(crosses))
    return figure


def draw_aggregate(rows):
    agents = by(rows, "agent")
    optimizers = sorted({row["optimizer"] for row in rows}, key=order)
    reference = "adam" if "adam" in optimizers else optimizers[0]
    size = TEXT_WIDTH, (0.16 * len(optimizers) + 0.45) * len(agents) + 0.2
    figure, grid = plt.subplots(len(agents), 3, figsize=size, squeeze=False, width_ratios=[1, 1, 1.3])
    for ((agent,), of_agent), (left, middle, right) in zip(agents.items(), grid, strict=True):
        for (optimizer,), of in by(of_agent, "optimizer").items():
            place, style, points = optimizers.index(optimizer), look(optimizer), by(of, "quantity")
            better = [row for row in points["probability of improvement over",] if row["over"] == reference]
            for axis, row in [(left, points["interquartile mean",][0]), *((middle, row) for row in better)]:
                error = np.nan_to_num([[row["value"] - row["low"]], [row["high"] - row["value"]]]).clip(0)
                axis.errorbar(row["value"], place, xerr=error, elinewidth=0.9, **style | {"linestyle": ""})
            x, share, low, high = columns(points["share of runs above",], "over", "value", "low", "high")
            right.plot(x, share, drawstyle="steps-post", markevery=(5 + 3 * place, 25), **style)
            right.fill_between(x, low, high, step="post", color=style["color"], alpha=0.15, linewidth=0)
        for axis in left, middle:
            axis.set(yticks=range(len(optimizers)), ylim=(len(optimizers) - 0.5, -0.5))
        left.set(yticklabels=map(label, optimizers))
        left.set_ylabel(label(agent), fontweight="bold")
        middle.set(xlim=(-0.05, 1.05), yticklabels=[])
        middle.axvline(0.5, color="0.4", linewidth=0.7)
        right.set(ylim=(-0.03, 1.03), ylabel="share of runs above")
    left.set_xlabel("interquartile mean score")
    middle.set_xlabel(f"P(better than {label(reference)})")
    right.set_xlabel("score (0 untrained, 1 best mean)")
    add_legend(figure, rows, column="runs")
    return figure


def make_table(study, interval, evaluations=False):
    """Final returns as a Markdown table: a row for each agent and environment, a column for each optimizer."""
    optimizers = sorted({optimizer for of in study.drawn.values() for optimizer in of}, key=order)
    numbers = {len(runs) for of in study.drawn.values() for runs in of.values()}
    lines = [f"| final return | {' | '.join(map(label, optimizers))} |", "| --- |" + " --- |" * len(optimizers)]
    chosen = []
    for (agent, env_id), of in study.drawn.items():
        returns = {o: np.array([run.final for run in runs if not run.diverged]) for o, runs in of.items()}
        spreads = {o: spread([some], interval) for o, some in returns.items() if len(some)}
        best = max(spreads, key=lambda o: spreads[o][0], default=None)
        # False where an interval is NaN
        parts = len(of) > 1 and all(spreads[best][1] > spreads[o][2] for o in spreads if o != best)
        digits = max(0, 2 - int(math.log10(max([1.0, *(abs(mean) for mean, _, _ in spreads.values())]))))
        line = f"| {label(agent)}, {env_id} |"
        for optimizer in optimizers:
            runs, cell = of.get(optimizer, []), "—"
            diverged = sum(run.diverged for run in runs)
            if optimizer in spreads:
                mean, low, _ = spread([returns[optimizer]], "stderr")
                cell = f"{mean:.{digits}f}" + f" ± {mean - low:.{digits}f}" * (not np.isnan(low))
                cell = f"**{cell}**" if optimizer == best and parts and len(returns[best]) == len(runs) > 1 else cell
            if diverged:
                cell += f" ({diverged} of {len(runs)} diverged)"
            elif runs and len(numbers) > 1:
                cell += f" (n = {len(runs)})"
            line += f" {cell} |"
            if runs and study.step_sizes[agent, env_id, optimizer] > 1:
                chosen.append(f"{label(agent)} {env_id} {label(optimizer)} {runs[0].key[3]:g}")
        lines.append(line)
    over = f"{max(numbers)} seed{'s' * (max(numbers) > 1)}" if len(numbers) == 1 else "n seeds"
    name = "95% bootstrap interval" if interval == "bootstrap" else "standard error"
    final = "last evaluation" if evaluations else f"mean over its last {LAST} episodes"
    lines += ["", f"Mean ± standard error over {over} of the final return, a run's {final}."]
    lines += [f"In bold: the best, where its {name} is clear of all others' and none of its runs diverged."]
    lines += ["Step sizes, each the best of several by this mean: " + ", ".join(chosen) + "."] * bool(chosen)
    return "\n".join(lines) + "\n"


# ---- the command line --------------------------------------------------------------------------------------


def write(path, content):
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        write_atomically(os.path.abspath(path), content)
    except OSError as error:
        fail(f"--out: {error}")
    print(path, flush=True)


def write_csv(path, rows):
    """Write rows {column: value}; numbers have six digits, and an empty field means that there is none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        shown = {name: f"{v:.6g}" if isinstance(v, (float, np.floating)) else v for name, v in row.items()}
        writer.writerow({name: "" if v == "nan" else v for name, v in shown.items()})
    write(path, text.getvalue().encode())


def write_figure(prefix, figure):
    for kind, metadata in (("png", None), ("pdf", {"CreationDate": None})):  # the same runs make the same bytes
        content = io.BytesIO()
        figure.savefig(content, format=kind, metadata=metadata)
        write(f"{prefix}.{kind}", content.getvalue())
    plt.close(figure)


def report(study):
    """Print what stands behind each curve; warn where seeds differ or are one."""
    for runs in (runs for of in study.drawn.values() for runs in of.values()):
        number, facts = study.step_sizes[runs[0].key[:3]], behind(runs)
        text = f"{words(runs[0].key[:3])} at {runs[0].key[3]:g}" + f", best of {number} step sizes" * (number > 1)
        text += f": seeds {facts['seeds']}" + f", {facts['diverged']} diverged" * bool(facts["diverged"])
        returns = np.array([run.final for run in runs if not run.diverged])
        mean, low, _ = spread([returns], "stderr") if len(returns) else (math.nan,) * 3
        print(text + f", return {mean:.6g}" * len(returns[:1]) + f" ± {mean - low:.3g}" * (len(returns) > 1))
    seeds = {key: tuple(run.key[4] for run in runs) for key, runs in study.groups.items()}
    usual = Counter(seeds.values()).most_common(1)[0][0]
    unlike = [run for key, runs in study.groups.items() if seeds[key] != usual for run in runs]
    if unlike:
        warn(f"seeds differ between curves: usual are {words(usual)}, not so {describe(unlike)}")
    single = [runs[0] for runs in study.groups.values() if len(runs) == 1]
    if single:
        warn(f"without an interval, for one seed has none: {describe(single)}")


PICTURES = {
    "curves": (curve_rows, draw_curves),
    "step-sizes": (step_size_rows, draw_step_sizes),
    "aggregate": (aggregate_rows, draw_aggregate),
}


def main(args):
    if not args.out:
        fail("--out is missing: say how the files' names begin, as --out results/study")
    if not os.path.basename(args.out):
        fail(f"--out {args.out}: must be how the files' names begin, as results/study")
    folder = next(path for path in Path(args.out).absolute().parents if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        fail(f"--out {args.out}: {folder} is not a folder that can be written to")
    runs = read_runs(choose(args), args.evaluations)
    study = Study(runs)
    several = max(study.step_sizes.values()) > 1
    if "step-sizes" in args.what and not several:
        fail("--what step-sizes: no optimizer was run at more than one step size; leave it out, or make such runs")
    report(study)
    what = args.what or ("curves", *["step-sizes"] * several, "aggregate", "table")
    for name, (make_rows, draw) in PICTURES.items():
        if name in what:
            rows, prefix = make_rows(study, args.interval), f"{args.out}_{name.replace('-', '_')}"
            write_figure(prefix, draw(rows))
            write_csv(f"{prefix}.csv", rows)
    if "table" in what:
        write(f"{args.out}_table.md", make_table(study, args.interval, args.evaluations).encode())
    rows = [
        dict(zip(VARIED, run.key, strict=True))
        | dict(state=run.state, steps=run.step, episodes=run.episodes, final_return=run.final)
        | dict(folder=run.name, commit=run.status.get("commit"))
        for run in runs
    ]
    write_csv(f"{args.out}_runs.csv", rows)


if __name__ == "__main__":
    main(parse_args(Args))
