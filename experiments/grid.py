"""Run a grid of agents, environments, optimizers, step sizes and seeds, and keep what came of it as CSV.

    python experiments/grid.py --out results/ppo_step_sizes --env-ids Hopper-v4 --optimizers adam adahesscale \
        --learning-rates 1e-4 1e-3 --seeds 1 2 --total-timesteps 300000

writes results/ppo_step_sizes.csv, a row for each run as it ends, and results/ppo_step_sizes_curves.csv, the
run's learning curve in 100 bins of steps (a bin's value is the mean return of the episodes that ended in it).
A run that stands in the table already is not run again, so that the same command goes on where it was stopped.
"""

import csv
import itertools
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from hesscale_run import DIVERGED

KEYS = ["agent", "env_id", "optimizer", "learning_rate", "seed", "total_timesteps", "extra"]
BINS = 100


@dataclass
class Args:
    out: str
    """where the tables go: {out}.csv and {out}_curves.csv"""
    env_ids: tuple[str, ...]
    """environments"""
    optimizers: tuple[str, ...]
    """optimizers"""
    learning_rates: tuple[str, ...] = ("default",)
    """step sizes; `default` is the agent's own for each optimizer"""
    seeds: tuple[int, ...] = (1, 2)
    """seeds"""
    agent: str = "ppo_hesscale.py"
    """the script to run"""
    total_timesteps: int = 300_000
    """steps of each run"""
    extra: str = ""
    """more flags for every run, as one string"""
    jobs: int = os.cpu_count() or 1
    """runs at a time, one thread each"""


def run(config):
    """One run; return its row and its curve."""
    command = [sys.executable, str(ROOT / config["agent"]), *config["extra"].split()]
    for flag in ("env_id", "optimizer", "seed", "total_timesteps"):
        command += [f"--{flag.replace('_', '-')}", str(config[flag])]
    if config["learning_rate"] != "default":
        command += ["--learning-rate", str(config["learning_rate"])]
    start = time.time()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.time() - start
    folder = done.stdout.splitlines()[0].split()[-1] if done.stdout else None  # the agent's first line ends with it
    if done.returncode not in (0, DIVERGED):
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    events = EventAccumulator(folder, size_guidance={"scalars": 0})
    events.Reload()
    scalars = lambda tag: events.Scalars(tag) if tag in events.Tags()["scalars"] else []  # noqa: E731
    episodes = [(e.step, e.value) for e in scalars("charts/episodic_return")]
    last = [value for _, value in episodes[-50:]]
    row = config | {
        "state": "diverged" if done.returncode else "finished",
        "return_last_50": f"{np.mean(last):.1f}" if last else "nan",
        "episodes": len(episodes),
        "sps": scalars("charts/SPS")[-1].value if scalars("charts/SPS") else math.nan,
        "seconds": f"{seconds:.1f}",
    }
    bins = [[] for _ in range(BINS)]
    for step, value in episodes:
        bins[min(BINS - 1, step * BINS // config["total_timesteps"])].append(value)
    width = config["total_timesteps"] / BINS
    curve = [
        config | {"step": int((i + 0.5) * width), "return": f"{np.mean(values):.1f}"}
        for i, values in enumerate(bins)
        if values
    ]
    return row, curve


def append(path, rows):
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        if new:
            writer.writeheader()
        writer.writerows(rows)


def main(args):
    table, curves = Path(f"{args.out}.csv"), Path(f"{args.out}_curves.csv")
    done = set()
    if table.exists():
        with open(table, newline="") as file:
            done = {tuple(row[key] for key in KEYS) for row in csv.DictReader(file)}
    grid = itertools.product(args.seeds, args.env_ids, args.learning_rates, args.optimizers)
    configs = [
        dict(zip(KEYS, (args.agent, env_id, optimizer, lr, seed, args.total_timesteps, args.extra), strict=True))
        for seed, env_id, lr, optimizer in grid
    ]
    left = [c for c in configs if tuple(str(c[key]) for key in KEYS) not in done]
    print(f"{len(configs)} runs, {len(configs) - len(left)} done already, {args.jobs} at a time", flush=True)
    start = time.time()
    with ThreadPoolExecutor(args.jobs) as pool:
        for n, (row, curve) in enumerate(pool.map(run, left), start=1):
            append(table, [row])
            if curve:
                append(curves, curve)
            minutes = (time.time() - start) / n * (len(left) - n) / 60
            what = " ".join(str(row[key]) for key in KEYS[1:5])
            outcome = f"{row['state']}, {row['return_last_50']}"
            print(f"{n}/{len(left)} {what}: {outcome}; {minutes:.0f} min left", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
