"""SLURM job arrays for the cells of a sweep: what is queued, and submission. The job script is sweep.sbatch."""

import datetime
import json
import math
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from grid import read_cells, write_cells

from hesscale_utils import fail


def slurm(*command):
    """The output of a SLURM command; ends the program with its complaint."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        fail(f"--slurm: there is no {command[0]} here; run this where SLURM is, or use --local")
    if done.returncode:
        fail(f"--slurm: {shlex.join(command)} says: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def queued():
    """The keys of the cells that wait or run in SLURM's queue, from what was submitted in this folder."""
    submitted = [json.loads(line) for path in Path("slurm").glob("*/jobs") for line in path.read_text().splitlines()]
    if not submitted or shutil.which("squeue") is None:
        return set()
    queue, keys = slurm("squeue", "--me", "-h", "-r", "-o", "%F_%K").split(), set()
    for job in submitted:
        elements = [int(name.partition("_")[2]) for name in queue if name.startswith(f"{job['id']}_")]
        cells = list(read_cells([job["cells"]])) if elements else []
        for element in elements:
            first = (job["offset"] + element) * job["runs_per_task"]
            keys.update(cells[first : first + job["runs_per_task"]])
    return keys


def submit(cells, args):
    """Submit the cells as job arrays, as few as the site's limit allows, and say where things are."""
    config = slurm("scontrol", "show", "config")
    limit = int(next(line.split("=")[1] for line in config.splitlines() if line.startswith("MaxArraySize")))
    if limit < 1:
        fail("--slurm: this site allows no job arrays (MaxArraySize 0)")
    folder = Path("slurm", datetime.datetime.now().strftime("%Y-%m-%d_%H%M%S_%f"))
    try:
        folder.mkdir(parents=True)
        write_cells(folder / "cells.toml", cells)
    except OSError as error:
        fail(f"--slurm: {error}")
    elements = math.ceil(len(cells) / args.runs_per_task)
    for offset in range(0, elements, limit):
        number = min(limit, elements - offset)
        try:
            id = slurm(
                "sbatch", "--parsable", f"--array=0-{number - 1}", f"--output={folder}/%A_%a.log",
                f"--time={args.time}", f"--mem={args.mem}", f"--cpus-per-task={args.cpus_per_task}",
                *shlex.split(args.sbatch), str(ROOT / "scripts/sweep.sbatch"),
                sys.executable, str(ROOT / "scripts/sweep.py"), str(folder / "cells.toml"),
                str(offset), str(args.runs_per_task), str(args.cpus_per_task),
            ).strip().split(";")[0]  # fmt: skip
        except SystemExit:
            if offset == 0:
                shutil.rmtree(folder)
            raise  # what was submitted before stays queued, and the same command submits the rest
        job = {"id": id, "cells": str(folder / "cells.toml"), "offset": offset, "runs_per_task": args.runs_per_task}
        with open(folder / "jobs", "a") as file:
            file.write(json.dumps(job) + "\n")
        print(f"job {id}: {number} elements of {args.runs_per_task} runs, logs in {folder}", flush=True)
