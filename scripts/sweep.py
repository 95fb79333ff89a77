"""Run a grid of agents, environments, optimizers, step sizes and seeds: here, N at a time, or as SLURM job arrays.

    scripts/sweep.sh quick                      # a grid file, here scripts/grids/quick.toml; a run on each core
    scripts/sweep.sh quick --dry-run            # what there is to do, what is done, how long the rest will take
    scripts/sweep.sh --agent ppo a2c --env-id Hopper-v4 --optimizer adam adahesscale --seed 1 2 3 --local 4
    scripts/sweep.sh performance robustness --seed 1 2 3 --slurm --time 12:00:00 --sbatch="--account=def-someone"

A grid file is TOML. Each of its [[grid]] tables gives flags of the agents one value or a list, and stands for all
combinations of these; what is left out has the agent's default. A flag on the command line replaces the files'.
`selection = true` marks a table's seeds as those that choices are made on, for scripts/plot.py.

A cell of the grid is known by its script and all its arguments. A run in runs/ or in an archive (results/*/runs.csv.gz)
that has them and is finished or diverged is not made again, and one that was interrupted or killed is gone on with: so
the same command, given again, completes the sweep. Exit status: 0 all done, 1 some failed, 75 stopped before the end.
"""

import contextlib
import hashlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from done import DONE, duration, estimate, find_runs, read_archives
from grid import ROOT, known_grids, load_agent, read_tables
from slurm import queued, submit

from hesscale_envs import make_env
from hesscale_run import DIVERGED, INTERRUPTED, SIGNALS, folders_like, lock_file
from hesscale_utils import fail, parse_args, quiet_end


def cores():
    """The number of cores that this process may use, or of all where the system doesn't tell, as on macOS."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def claim(cell):
    """Keep other sweeps in this folder from starting the same cell, until release; None if another has it."""
    try:
        return lock_file(f"runs/.claims/{hashlib.sha1(cell.key.encode()).hexdigest()}")
    except OSError:  # the claim of another user's sweep, killed; without a claim the run's own lock is left
        return contextlib.nullcontext()


def release(held):
    with contextlib.suppress(OSError, AttributeError):  # Windows removes it in `release`
        os.remove(held.lock_file)
    with contextlib.suppress(AttributeError):
        held.release()


class Local:
    """Runs of cells, so many at a time, each a process with one thread.

    Any of SIGNALS lets each run write a checkpoint and end; a second Ctrl-C kills them.
    """

    def __init__(self, cells, done, number):
        self.cells, self.number, self.start, self.stop = cells, number, time.time(), None
        self.done = [run for key, run in done.items() if key in cells and run[0] in DONE]
        self.count = Counter(state for state, _, _ in self.done)
        self.pending = deque(cell for key, cell in cells.items() if done.get(key, (None,))[0] not in DONE)
        self.running = {}  # process: cell and when it began
        self.noting = threading.Lock()
        try:
            os.makedirs("runs/.claims", exist_ok=True)
        except OSError as error:
            fail(f"the runs can't be written here: {error}")

    def on_signal(self, signum, frame):
        if self.stop is not None and signum == signal.SIGINT:
            for process in list(self.running):
                process.kill()
            os._exit(128 + signum)
        self.stop = signum

    def work(self):
        """Run one pending cell after the other; those that another process has under way come again later."""
        while self.stop is None:
            try:
                cell = self.pending.popleft()
            except IndexError:
                return
            held = claim(cell)
            state, _, status = find_runs(folders_like(cell.args)).get(cell.key, (None, None, None))
            if state in DONE:
                self.note(cell, state, status)
            elif held is None or state == "running":
                self.pending.append(cell)
                time.sleep(1)
            else:
                self.run_cell(cell)
            release(held)

    def run_cell(self, cell):
        # no pipe: it would break with this process, and stay open as long as W&B's process, which inherits it
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            process = subprocess.Popen(
                [sys.executable, cell.script, *cell.flags(), "--resume", "auto"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,  # Ctrl-C comes by on_signal alone
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # and so on Windows
            )  # fmt: skip
            self.running[process] = cell, time.time()
            code = process.wait()
            _, start = self.running.pop(process)
            errors.seek(0)
            lines = errors.read().strip().splitlines()
        state = {0: "finished", DIVERGED: "diverged", INTERRUPTED: "interrupted"}.get(code, "failed")
        if self.stop is not None and code == -signal.SIGTERM:  # before it could begin
            state = "interrupted"
        elif code < 0:
            lines.append(f"killed by {signal.Signals(-code).name}" + ", out of memory?" * (code == -signal.SIGKILL))
        _, _, status = find_runs(folders_like(cell.args)).get(cell.key, (None, None, None))
        self.note(cell, state, status, time.time() - start, lines)

    def note(self, cell, state, status, seconds=None, lines=()):
        """Count a run that has ended, and say so."""
        with self.noting:  # += of two threads at once can lose one
            self.count[state] += 1
            self.done += [(state, None, status)] * (state in DONE)
            text = f"[{sum(self.count[s] for s in DONE)}/{len(self.cells)}] {cell}: {state}"
        if status is not None and status["return"] is not None:
            text += f", return {status['return']:.1f}"
        text += "" if seconds is None else f", {duration(seconds)}"
        text += f"; {cell.command()}" * (state == "failed")
        told = lines if state == "failed" else [line for line in lines if line.startswith("warning")]
        tqdm.write("\n    ".join([text, *told]), file=sys.stdout)
        sys.stdout.flush()

    def left(self):
        """Words for what is running and pending, and the time until the end, judged by the runs that have ended."""
        now, running = time.time(), list(self.running.values())
        seconds = [estimate([cell], self.done) for cell, _ in running] + [estimate([*self.pending], self.done)]
        left = None
        if None not in seconds:
            begun = [now - start for _, start in running] + [0]
            seconds = [max(0, all - gone) for all, gone in zip(seconds, begun, strict=True)]
            left = max(sum(seconds) / self.number, *seconds[:-1], 0)  # at the end there are fewer than slots
        return f"{len(running)} running; {duration(left)} left"

    def run(self):
        """Run all; return the exit status."""
        for signum in SIGNALS:
            signal.signal(signum, self.on_signal)
        told, last, ended = set(), time.time(), lambda: sum(self.count[state] for state in DONE)
        bar = tqdm(total=len(self.cells), file=sys.stdout, disable=not sys.stdout.isatty(),
                   bar_format="{n}/{total} runs |{bar:20}| {elapsed}{postfix}")  # fmt: skip
        with ThreadPoolExecutor(self.number) as pool:
            workers = [pool.submit(self.work) for _ in range(self.number)]
            while not all(worker.done() for worker in workers):
                time.sleep(0.1)
                for process in list(self.running) if self.stop is not None else ():
                    if process not in told:
                        told.add(process)
                        process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
                if time.time() - last >= (60 if bar.disable else 1):
                    last, bar.n = time.time(), ended()
                    print(self.left(), flush=True) if bar.disable else bar.set_postfix_str(self.left())
        bar.close()
        for worker in workers:
            worker.result()
        count = ", ".join(
            f"{n} {state}" for state, n in (self.count + Counter({"not begun": len(self.pending)})).items()
        )
        print(f"{len(self.cells)} runs: {count}; {duration(time.time() - self.start)}", flush=True)
        if self.stop is not None:
            print("the same command goes on from here", flush=True)
            return INTERRUPTED
        return 1 if self.count["failed"] else INTERRUPTED if self.count["interrupted"] else 0


# ---- the command line --------------------------------------------------------------------------------------


@dataclass
class Sweep:
    grids: tyro.conf.Positional[tuple[str, ...]] = ()
    """grid files, or names of those in scripts/grids"""
    local: int | None = None
    """runs at a time on this machine, one thread each; left out, as many as it has cores"""
    dry_run: bool = False
    """list the cells with their states and commands, and run nothing"""
    archive: bool = True
    """whether a run that an archive in results/ holds is done; --no-archive makes it again"""
    slurm: bool = False
    """submit to SLURM, as job arrays, what is neither done nor queued"""
    time: str = "03:00:00"
    """SLURM: time limit of an element; two minutes before it the runs write checkpoints and the element is requeued"""
    mem: str = "2G"
    """SLURM: memory of an element"""
    runs_per_task: int = 1
    """SLURM: runs of an element, for sites that allow few jobs"""
    cpus_per_task: int = 1
    """SLURM: how many of them at a time"""
    sbatch: str = ""
    """SLURM: more flags for sbatch, as --sbatch="--partition=main --account=mine" """
    cells: tuple[int, int] | None = None
    """first and last + 1 of the grid's cells to take; the rest is left"""
    agent: tuple[str, ...] = ()
    """ppo, a2c or paths of scripts; and all flags of theirs, each with any number of values:"""


def sweep_flags():
    """The flags of the agents, each for several values: [(name, type, default), ...]."""
    found = {f.name: f.type for name in ("ppo", "a2c") for f in fields(load_agent(name).Args) if f.name != "resume"}
    return [(n, Annotated[tuple[t, ...], tyro.conf.arg(help="the agents' flag")], ()) for n, t in found.items()]


def check(args):
    for name in ("local", "runs_per_task", "cpus_per_task"):
        if (value := getattr(args, name)) is not None and value < 1:
            fail(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if args.cells is not None and not 0 <= args.cells[0] < args.cells[1]:
        fail(f"--cells {args.cells[0]} {args.cells[1]}: takes none; give the first, from 0, and the last + 1")
    if args.slurm and args.local is not None:
        fail(f"--local {args.local}: the runs go here or to SLURM, not both; with --slurm, see --cpus-per-task")
    try:
        shlex.split(args.sbatch)
    except ValueError as error:
        fail(f"--sbatch {args.sbatch}: {error}; close each quotation")
    for name in ("time", "mem", "runs_per_task", "cpus_per_task", "sbatch"):
        if not args.slurm and getattr(args, name) != getattr(Sweep, name):
            fail(f"--{name.replace('_', '-')} {getattr(args, name)}: is for --slurm, which is missing")


def main():
    flags = sweep_flags()
    args = parse_args(make_dataclass("Args", flags, bases=(Sweep,)))
    check(args)
    given = {name: list(values) for name, *_ in (*flags, ("agent",)) if (values := getattr(args, name))}
    if not args.grids and not given:
        fail(f"an empty grid: name a grid file ({known_grids()}), or give --agent, --env-id, --optimizer, --seed, ...")
    tables = read_tables(args.grids, given)
    cells = {key: cell for table in tables for key, cell in table.items()}
    number = len(cells)
    cells = dict(list(cells.items())[slice(*args.cells or (None,))])
    if not cells:
        fail(f"--cells {args.cells[0]} {args.cells[1]}: takes none; the grid has {number} cells, the first is 0")
    if any(Path(cell.script).parent != ROOT for cell in cells.values()):  # it finds the core, as here
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    for one in {(c.args.env_id, getattr(c.args, "env_kwargs", "")): c.args for c in cells.values()}.values():
        make_env(one).close()

    archived, every = read_archives() if args.archive else {}, find_runs()
    every = every | {key: run for key, run in archived.items() if every.get(key, (None,))[0] not in DONE}
    runs, in_queue = {key: every[key] for key in cells if key in every}, set()
    if args.slurm or args.dry_run:
        in_queue = queued()
    state = {key: runs.get(key, ("queued" if key in in_queue else "not begun",))[0] for key in cells}
    state = {key: "queued" if key in in_queue and s not in DONE else s for key, s in state.items()}
    left = {key: cell for key, cell in cells.items() if state[key] not in DONE}
    place = {
        key: f" in {os.path.relpath(runs[key][1])}"
        for key in cells
        if key in archived and key in runs and runs[key] is archived[key]
    }
    counts = ", ".join(f"{n} {s}" for s, n in Counter(state[key] + place.get(key, "") for key in cells).most_common())
    about = lambda cells: duration(estimate([c for key, c in cells.items() if key in left], every.values()))  # noqa: E731
    if args.dry_run:
        for key, cell in cells.items():
            print(f"{state[key]:<11} {cell.command()}")
        for table in [table for table in tables if len(tables) > 1 and table.keys() & left.keys()]:
            print(f"{len(table)} runs as {next(iter(table.values()))}: left about {about(table)} on one core")
    when = f"about {about(cells)} on one core" if about(cells) != "unknown" else "how long is known after the first run"
    print(f"{len(cells)} runs: {counts}" + f"; left: {when}" * bool(left), flush=True)
    if args.dry_run or not left:
        return 0
    if args.slurm:
        left = [cell for key, cell in left.items() if state[key] not in ("queued", "running")]
        return submit(left, args) if left else print("nothing to submit")
    return Local(cells, runs, args.local or cores()).run()


if __name__ == "__main__":
    with quiet_end():
        sys.exit(main())
