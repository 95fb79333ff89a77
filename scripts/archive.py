"""Archive a study: a row for each run that has ended, in results/STUDY/runs.csv.gz, which outlives runs/.

    scripts/run.sh scripts/archive.py quick                # the runs of scripts/grids/quick.toml
    scripts/run.sh scripts/archive.py mine ppo.toml --runs runs /scratch/runs

The same command, given again, adds what has ended since; a row that is there stays. A row takes a kilobyte and has the
script and all its arguments (`key`), versions and commit, the state, the final return (mean of the last 50 episodes),
the mean return over the run, the curve in 100 bins, evaluations, and the wall time.
"""

import glob
import io
import json
import logging
import math
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "scripts"))
from sweep import DONE, STATES, agent_name, cores, defaults, find_runs, read_cells, wall_time

from hesscale_run import FREE_FLAGS, identity, write_atomically
from hesscale_utils import check_installed, fail, parse_args

check_installed("pandas", "scripts/archive.py", "requirements-study.txt")
import pandas as pd

BINS, LAST = 100, 50
COLUMNS = "key state step episodes final_return mean_return seconds start commit versions curve evaluations".split()


def describe(key):
    """Return a run's key as a table's columns: its agent and arguments, with today's default for a flag it has not."""
    script, args = json.loads(key)
    now = {name: value for name, value in (defaults(script) or {}).items() if name not in FREE_FLAGS}
    args = {name: tuple(value) if isinstance(value, list) else value for name, value in args.items()}
    return {"agent": agent_name(script)} | now | args


# ---- runs ---------------------------------------------------------------------------------------------------


def find_all(folders):
    """Return the runs in `folders` as find_runs does; of two equal ones that of the earlier folder."""
    return {key: run for folder in reversed(folders) for key, run in find_runs(f"{glob.escape(folder)}/*").items()}


def bin_returns(steps, returns, total, end):
    """Return a learning curve in BINS bins of steps, as in the paper's figures.

    Args:
        steps, returns: of the episodes' ends [episodes]; the first step is 1.
        total: steps that the run was to make.
        end: steps that it made.

    Returns:
        [BINS]: the mean return of the episodes that ended in a bin; where none did, what lies between its
        neighbours; NaN after the run's end.
    """
    curve = np.full(BINS, np.nan)
    if len(returns):
        bins = np.clip((steps - 1) * BINS // total, 0, BINS - 1)
        number = np.bincount(bins, minlength=BINS)
        ended, sums = np.flatnonzero(number), np.bincount(bins, returns, BINS)
        until = max(bins.max(), min((end - 1) * BINS // total, BINS - 1)) + 1
        curve[:until] = np.interp(np.arange(until), ended, sums[ended] / number[ended])
    return curve


def read_run(key, state, folder, status):
    """Return a run's row: COLUMNS, its folder, and how its event files are damaged ("" if they are not).

    TensorBoard's reader leaves out what a resumed run has logged again.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it would tell of that
    scalars, last, damage = {}, 0, ""
    try:
        events = EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
        tags = events.Tags()
        scalars = {tag: np.array([(e.step, e.value) for e in events.Scalars(tag)]) for tag in tags["scalars"]}
        last = max(
            [s[-1, 0] for s in scalars.values()] + [events.Tensors(tag)[-1].step for tag in tags["tensors"]] + [0]
        )
    except Exception as error:  # whatever a damaged file makes the reader raise
        damage = " ".join(f"can't be read: {type(error).__name__}: {error}".split())
    steps, returns = scalars.get("charts/episodic_return", np.empty((0, 2))).T
    if not (finite := np.isfinite(returns)).all():
        damage = f"{(~finite).sum()} of {len(returns)} returns not finite, and left out"
    steps, returns = steps[finite].astype(int), returns[finite]
    # an unfinished A2C run may be 2048 steps past what it has logged last, and a running one any number
    past = {"finished": 0, "diverged": 0, "running": math.inf}.get(state, 2048)
    if last < status["step"] - past:
        damage = damage or f"ends at step {last:.0f} of {status['step']}"
    curve = bin_returns(steps, returns, status["total_timesteps"], last)
    evaluations = {int(step): float(value) for step, value in scalars.get("eval/episodic_return", ())}
    final = float(np.mean(returns[-LAST:])) if len(returns) else math.nan
    average = float(np.nanmean(curve)) if len(returns) else math.nan
    row = key, state, status["step"], len(returns), final, average, wall_time(state, status), status["start"]
    row += status.get("commit"), status["versions"], curve, evaluations
    return dict(zip(COLUMNS, row, strict=True)) | {"source": folder, "damage": damage}


def read_runs(found):
    """Return the rows of find_runs' runs as a table, read on all cores."""
    jobs = [(key, *run) for key, run in found.items()]
    if not jobs:
        return pd.DataFrame(columns=[*COLUMNS, "source", "damage"])
    with ProcessPoolExecutor(min(cores(), len(jobs))) as pool:
        rows = pool.map(read_run, *zip(*jobs, strict=True), chunksize=4)
        return pd.DataFrame(list(tqdm(rows, "reading", len(jobs), unit=" runs", disable=None)))


# ---- archives ----------------------------------------------------------------------------------------------


def archives():
    """Return the files of the repository's archives."""
    return sorted(glob.glob(f"{ROOT}/results/*/runs.csv.gz"))


def read_archive(path):
    """Return an archive as a table of COLUMNS and its path in `source`; ends the program if it can't be read."""
    try:
        rows = pd.read_csv(path, dtype={"commit": str}, keep_default_na=False, na_values={c: [""] for c in COLUMNS})
        rows = rows[COLUMNS].astype({"evaluations": object})
        for row in rows.index:
            script, args = json.loads(rows.at[row, "key"])
            rows.at[row, "key"] = identity(script, (defaults(script) or {}) | args)
        rows["versions"] = rows["versions"].map(json.loads)
        rows["curve"] = [np.array([float(x or "nan") for x in text.split(" ")]) for text in rows["curve"]]
        rows["evaluations"] = rows["evaluations"].map(lambda text: json.loads(text) if isinstance(text, str) else {})
    except Exception as error:  # whatever a damaged file makes gzip, pandas or json raise
        fail(f"{path}: is not an archive that can be read ({type(error).__name__}: {error})")
    return rows.assign(source=path, damage="")


def write_archive(path, rows):
    """Write a table of COLUMNS; equal rows make equal bytes."""
    text, rows = io.BytesIO(), rows[COLUMNS].sort_values("key", ignore_index=True)
    number = lambda x: "" if math.isnan(x) else f"{x:.5g}"  # noqa: E731
    rows = rows.assign(
        versions=rows["versions"].map(json.dumps),
        curve=[" ".join(map(number, curve)) for curve in rows["curve"]],
        evaluations=[json.dumps({step: float(number(x)) for step, x in of.items()}) for of in rows["evaluations"]],
    )
    rows.to_csv(text, index=False, float_format="%.6g", compression={"method": "gzip", "mtime": 0})
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_atomically(path, text.getvalue())


def read_all(folders=("runs",), files=None):
    """Return all runs of `folders` and of archives as one table with describe's columns, of two equal ones the better.

    Args:
        folders: those that hold runs' folders; one that is missing has none.
        files: archives; None for all of the repository.
    """
    tables = [read_runs(find_all(folders)), *map(read_archive, archives() if files is None else files)]
    rows = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    best = rows["state"].map(STATES.index).sort_values(kind="stable").index  # runs/ before archives
    rows = rows.loc[best].drop_duplicates("key").reset_index(drop=True)
    return pd.concat([rows, pd.DataFrame(map(describe, rows["key"]), rows.index)], axis=1)


@dataclass
class Args:
    study: tyro.conf.Positional[str]
    """the study's name: the archive is results/STUDY/runs.csv.gz"""
    grids: tyro.conf.Positional[tuple[str, ...]] = ()
    """grid files, or names of those in scripts/grids, whose runs are archived; left out, the study's own"""
    runs: tuple[str, ...] = ("runs",)
    """folders that hold the runs' folders"""


def main(args):
    if not args.study or Path(args.study).name != args.study or args.study.startswith("."):
        fail(f"STUDY {args.study!r}: must be the name of a folder in results/")
    path, cells = f"{ROOT}/results/{args.study}/runs.csv.gz", read_cells(args.grids or (args.study,))
    before = read_archive(path) if os.path.exists(path) else pd.DataFrame(columns=COLUMNS)
    wanted = cells.keys() - set(before["key"])
    new = {key: run for key, run in find_all(args.runs).items() if key in wanted and run[0] in DONE}
    rows = read_runs(new)
    if len(broken := rows[rows["damage"] != ""]):
        print(f"warning: left out, for damaged event files: {' '.join(broken['source'])}", file=sys.stderr)
        rows = rows[rows["damage"] == ""]
    if len(rows):
        write_archive(path, pd.concat([table[COLUMNS] for table in (before, rows) if len(table)]))
    missing = len(wanted - set(rows["key"]))
    print(f"{path}: {len(before)} runs before, {len(rows)} added, {missing} of the grid's {len(cells)} missing")


if __name__ == "__main__":
    main(parse_args(Args))
