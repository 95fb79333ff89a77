"""Archive a study: a row for each run that has ended, in results/STUDY/runs.csv.gz, which outlives runs/.

    scripts/run.sh scripts/archive.py quick                # the runs of scripts/grids/quick.toml
    scripts/run.sh scripts/archive.py mine ppo.toml --runs runs /scratch/runs

The same command, given again, adds what has ended since; a row that is there stays. A row takes less than a kilobyte
and has the script and all its arguments (`key`), versions and commit, the state, the final return (mean of the last 50
episodes), the mean return over the run, the curve in 100 bins, evaluations, the wall time, and the policy's entropy at
the end and median KL.
"""

import io
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from done import DONE
from grid import grid_file, read_cells
from reading import COLUMNS, ROOT, check_folders, pd, read_archive, read_runs

from hesscale_run import locked, write_atomically
from hesscale_utils import fail, parse_args, quiet_end


def read_before(path):
    return read_archive(path) if os.path.exists(path) else pd.DataFrame(columns=COLUMNS)


def write_archive(path, rows):
    """Write a table of COLUMNS; equal rows make equal bytes."""
    text, rows = io.BytesIO(), rows[COLUMNS].sort_values("key", ignore_index=True)
    number = lambda x: "" if math.isnan(x) else f"{x:.5g}"  # noqa: E731
    rows = rows.assign(
        versions=rows["versions"].map(json.dumps),
        curve=[" ".join(map(number, curve)) for curve in rows["curve"]],
        evaluations=[json.dumps({step: float(number(x)) for step, x in e.items()}) for e in rows["evaluations"]],
    )
    rows.to_csv(text, index=False, float_format="%.6g", compression={"method": "gzip", "mtime": 0})
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_atomically(path, text.getvalue())
    except OSError as error:
        fail(f"{path}: can't be written ({error}); what was there is as it was")


@dataclass
class Args:
    study: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STUDY")]
    """the study's name: the archive is results/STUDY/runs.csv.gz"""
    grids: tyro.conf.Positional[tuple[str, ...]] = ()
    """grid files, or names of those in scripts/grids, whose runs are archived; left out, the study's own"""
    runs: tuple[str, ...] = ("runs",)
    """folders that hold the runs' folders"""


def main(args):
    if not args.study or Path(args.study).name != args.study or args.study.startswith("."):
        fail(f"STUDY {args.study!r}: must be the name of a folder in results/")
    check_folders(args)
    path, cells = f"{ROOT}/results/{args.study}/runs.csv.gz", read_cells(args.grids or (args.study,))
    if args.grids and (own := grid_file(args.study)).is_file() and cells.keys() - read_cells((str(own),)).keys():
        fail(f"STUDY {args.study}: its grid is {os.path.relpath(own)}, which has not all runs of these; name another")
    before = read_before(path)
    wanted = cells.keys() - set(before["key"])
    rows = read_runs(args.runs, lambda key, state: key in wanted and state in DONE)
    if len(broken := rows[rows["damage"] != ""]):
        print(f"warning: left out, for damaged event files: {' '.join(broken['source'])}", file=sys.stderr)
        rows = rows[rows["damage"] == ""]
    if len(rows):
        with locked(path):
            before = read_before(path)  # again, for another process may have added some meanwhile
            rows = rows[~rows["key"].isin(before["key"])]
            write_archive(path, pd.concat([table[COLUMNS] for table in (before, rows) if len(table)]))
    if not len(before) + len(rows):
        return print(
            f"no archive is made: {' '.join(args.runs)} has none of the grid's {len(cells)} runs ended and whole"
        )
    missing = len(wanted - set(rows["key"]))
    print(f"{path}: {len(before)} runs before, {len(rows)} added, {missing} of the grid's {len(cells)} missing")


if __name__ == "__main__":
    with quiet_end():
        main(parse_args(Args))
