"""Read runs, from their folders and from the archives in results/, as a table with a row a run."""

import glob
import json
import logging
import math
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
from done import STATES, find_runs, wall_time
from grid import agent_name, defaults

from hesscale_run import FREE_FLAGS, identity
from hesscale_utils import check_installed, fail, warn

check_installed("pandas", f"scripts/{os.path.basename(sys.argv[0])}", "requirements-study.txt")
import pandas as pd

BINS, LAST, LAST_POINTS = 100, 50, 20
POLICY = ["entropy", "approx_kl"]  # which archives of before do not have
COLUMNS = "key state step episodes final_return mean_return seconds start commit versions curve evaluations".split()
COLUMNS += POLICY


def describe(key):
    """Return a run's agent and arguments {name: value}, with today's default for an argument that it does not have."""
    script, args = json.loads(key)
    today = {name: value for name, value in (defaults(script) or {}).items() if name not in FREE_FLAGS}
    args = {name: tuple(value) if isinstance(value, list) else value for name, value in args.items()}
    return {"agent": agent_name(script)} | today | args


def bin_returns(steps, returns, total, end):
    """Return a learning curve [BINS] over `total` steps, as in the paper's figures, of a run that made `end` steps.

    It is the mean of `returns` [episodes] that ended at `steps` in a bin, where the first step is 1; where none ended,
    what lies between the neighbours; NaN after the run's end.
    """
    curve = np.full(BINS, np.nan)
    if len(returns):
        bins = np.clip((steps - 1) * BINS // total, 0, BINS - 1)
        number = np.bincount(bins, minlength=BINS)
        ended, sums = np.flatnonzero(number), np.bincount(bins, returns, BINS)
        until = max(bins.max(), min((end - 1) * BINS // total, BINS - 1)) + 1
        curve[:until] = np.interp(np.arange(until), ended, sums[ended] / number[ended])
    return curve


def read_events(folder):
    """Return what a run has logged, {tag: array [points, 2] of steps and values}, and the last step that has a point.

    TensorBoard's reader leaves out what a resumed run has logged again.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it would tell of that
    events = EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()
    scalars = {tag: np.array([(e.step, e.value) for e in events.Scalars(tag)]) for tag in tags["scalars"]}
    text_steps = [events.Tensors(tag)[-1].step for tag in tags["tensors"]]
    return scalars, int(max([steps[-1, 0] for steps in scalars.values()] + text_steps, default=0))


def read_run(key, state, folder, status):
    """Return a run's row: COLUMNS, its folder as `source`, and how its event files are damaged ("" if they are not).

    The final return is the mean over the last LAST episodes, the mean return that over the curve's bins; the policy's
    entropy is the mean over the last LAST_POINTS points of its log, its KL the median over all; both are in nats.
    """
    scalars, last, damage = {}, 0, ""
    try:
        scalars, last = read_events(folder)
    except Exception as error:  # whatever a damaged file makes the reader raise
        damage = " ".join(f"can't be read: {type(error).__name__}: {error}".split())
    steps, returns = scalars.get("charts/episodic_return", np.empty((0, 2))).T
    if not (finite := np.isfinite(returns)).all():
        damage = f"{(~finite).sum()} of {len(returns)} returns not finite, and left out"
    steps, returns = steps[finite].astype(int), returns[finite]
    # an unfinished A2C run may be 2048 steps past its last log, and a running one any number
    past = {"finished": 0, "diverged": 0, "running": math.inf}.get(state, 2048)
    if last < status["step"] - past:
        damage = damage or f"ends at step {last:.0f} of {status['step']}"
    curve = bin_returns(steps, returns, status["total_timesteps"], last)
    evaluated = scalars.get("eval/episodic_return", ())
    evaluations = {int(step): float(value) for step, value in evaluated if math.isfinite(value)}
    final, mean = (np.mean(returns[-LAST:]), np.nanmean(curve)) if len(returns) else (math.nan, math.nan)
    row = key, state, status["step"], len(returns), float(final), float(mean), wall_time(state, status)
    entropy, kl = (scalars.get(f"losses/{name}", np.full((1, 2), math.nan))[:, 1] for name in POLICY)
    row += status["start"], status.get("commit"), status["versions"], curve, evaluations
    row += float(np.mean(entropy[-LAST_POINTS:])), float(np.median(kl))
    return dict(zip(COLUMNS, row, strict=True)) | {"source": folder, "damage": damage}


def check_folders(args):
    """End the program with one line if a folder of --runs is not there; the default one is when the first run is."""
    for folder in args.runs:
        if not os.path.isdir(folder) and args.runs != type(args).runs:
            fail(f"--runs {folder}: there is no such folder; name one that holds runs' folders, as runs")


def read_runs(folders, wanted=lambda key, state: True):
    """Return the runs in `folders` that are `wanted` as a table; of two with a key the furthest one."""
    found = find_runs(*(f"{glob.escape(folder)}/*" for folder in folders), unread=(unread := []))
    if unread:
        warn(f"left out, because their status.json can't be read: {', '.join(unread)}")
    jobs = [(key, *run) for key, run in found.items() if wanted(key, run[0])]
    if not jobs:
        return pd.DataFrame(columns=[*COLUMNS, "source", "damage"])
    end = signal.signal, (signal.SIGINT, signal.SIG_DFL)  # Ctrl-C comes to each process; a traceback of one is enough
    with ProcessPoolExecutor(min(os.cpu_count() or 1, len(jobs)), None, *end) as pool:
        rows = pool.map(read_run, *zip(*jobs, strict=True), chunksize=4)
        return pd.DataFrame(list(tqdm(rows, "reading", len(jobs), unit=" runs", disable=None)))


def several_values(rows, flag, same):
    """Yield (key, values) of each group of runs, equal in the columns `same`, that has several of a flag."""
    for key, part in rows.groupby(same):
        if len(values := part[flag][~part[flag].map(str).duplicated()]) > 1:
            yield key, [*values]


def read_archive(path):
    """Return an archive as a table of COLUMNS and its path in `source`; end the program if it can't be read."""
    try:
        rows = pd.read_csv(path, dtype={"commit": str}, keep_default_na=False, na_values={c: [""] for c in COLUMNS})
        rows = rows.assign(**{name: math.nan for name in POLICY if name not in rows})
        rows = rows[COLUMNS].astype({"evaluations": object})
        keys = [json.loads(key) for key in rows["key"]]
        rows["key"] = [identity(script, (defaults(script) or {}) | args) for script, args in keys]
        rows["versions"] = rows["versions"].map(json.loads)
        rows["curve"] = [np.array([float(x or "nan") for x in text.split(" ")]) for text in rows["curve"]]
        evaluations = rows["evaluations"].fillna("{}").map(json.loads)
        rows["evaluations"] = [{int(step): value for step, value in found.items()} for found in evaluations]
    except Exception as error:  # whatever a damaged file makes gzip, pandas or json raise
        why = f"({type(error).__name__}: {error})"
        fail(f"{path}: is not an archive that can be read {why}; restore it, or move it out of results/")
    return rows.assign(source=path, damage="")


def read_all(folders, archives):
    """Return the runs of `folders` and of `archives` as one table with the columns of describe too.

    Of runs with the same key it has that in the better state, and of equal ones that in a folder.
    """
    tables = [read_runs(folders), *map(read_archive, archives)]
    rows = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    better = rows["state"].map(STATES.index).sort_values(kind="stable").index
    rows = rows.loc[better].drop_duplicates("key").sort_index().reset_index(drop=True)
    return pd.concat([rows, pd.DataFrame(map(describe, rows["key"]), rows.index)], axis=1)
