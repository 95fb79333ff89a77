"""What is done of a grid: in the folders of runs, and in archives; and how long the rest will take."""

import csv
import datetime
import glob
import gzip
import itertools
import json
import math
import os
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from grid import defaults

from hesscale_run import identity, is_under_way, read_status
from hesscale_utils import fail

ARCHIVES = f"{ROOT}/results/*/runs.csv.gz"
# what a run's folder can say of a cell, best first; "killed": it says "running", and no process has it under way
DONE, STATES = ("finished", "diverged"), ("finished", "diverged", "running", "interrupted", "killed", "failed")


def find_runs(*patterns, unread=None):
    """The runs in folders that match a pattern, by default "runs/*", as {key: (state, folder, status)}.

    Of several with a key it is the furthest one. A list `unread` gets the folders whose status.json can't be read.
    """
    runs = {}
    for path in itertools.chain(*(glob.glob(f"{pattern}/status.json") for pattern in patterns or ["runs/*"])):
        folder = os.path.dirname(path)
        status = read_status(folder)
        if status is None or status["state"] not in STATES:  # damaged, or of another version
            if unread is not None:
                unread.append(folder)
            continue
        state = status["state"]
        try:
            if state == "running" and not is_under_way(folder, status):
                state = "killed"
        except OSError:  # another user's lock
            pass
        key = identity(status["script"], (defaults(status["script"]) or {}) | status["args"])
        rank = lambda run: (STATES.index(run[0]), -run[2]["step"], run[2]["start"])  # noqa: E731
        runs[key] = min(runs.get(key, (state, folder, status)), (state, folder, status), key=rank)
    return runs


def read_archives():
    """The runs in the repository's archives, as find_runs returns those in folders."""
    runs = {}
    csv.field_size_limit(2**31 - 1)  # a run may have more evaluations than fit in the usual 131,072 characters
    for path in sorted(glob.glob(ARCHIVES)):
        try:
            with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
                rows = csv.DictReader(file)
                if rows.fieldnames is None:
                    raise ValueError("it is empty")
                for row in rows:
                    script, args = json.loads(row["key"])
                    status = {"script": script, "args": args, "total_timesteps": args["total_timesteps"]}
                    status["seconds"] = float(row["seconds"] or "nan")
                    if row["state"] in DONE:
                        runs[identity(script, (defaults(script) or {}) | args)] = row["state"], path, status
        except Exception as error:  # whatever a damaged file makes gzip, zlib, csv or json raise
            fail(f"{path}: is not an archive that can be read ({error}); restore it, or leave it out by --no-archive")
    return runs


def wall_time(state, status):
    """The seconds of a run that finished without an interruption; NaN of any other."""
    if "seconds" in status or state != "finished" or status["resumed_at"]:
        return status.get("seconds", math.nan)
    begin, end = (datetime.datetime.fromisoformat(status[key]) for key in ("start", "end"))
    return (end - begin).total_seconds()


def estimate(cells, runs):
    """Core-seconds that these cells will take, judged by the finished runs most alike; None where there are none.

    Alike are, in this order: script, environment and optimizer the same; script and optimizer; script; any run.
    """
    alike = lambda script, args: [  # noqa: E731
        (script, args["env_id"], args["optimizer"]), (script, args["optimizer"]), script, None
    ]  # fmt: skip
    seconds, steps, total = Counter(), Counter(), 0
    for state, _, status in runs:
        if not math.isnan(taken := wall_time(state, status)):
            for kind in alike(status["script"], status["args"]):
                seconds[kind] += taken
                steps[kind] += status["total_timesteps"]
    for cell in cells:
        kinds = [kind for kind in alike(os.path.basename(cell.script), asdict(cell.args)) if kind in steps]
        if not kinds:
            return None
        total += seconds[kinds[0]] / steps[kinds[0]] * cell.args.total_timesteps
    return total


def duration(seconds):
    """Seconds in words."""
    if seconds is None or seconds < 100:
        return "unknown" if seconds is None else f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h" if hours >= 10 else f"{hours} h {minutes} min" if hours else f"{minutes} min"
