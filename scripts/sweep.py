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
import csv
import datetime
import glob
import gzip
import hashlib
import importlib.util
import itertools
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, make_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from hesscale_envs import make_env
from hesscale_run import DIVERGED, INTERRUPTED, SIGNALS, folders_like, identity, lock, lock_file, read_status
from hesscale_utils import check_args, fail, parse_args

ARCHIVES = f"{ROOT}/results/*/runs.csv.gz"
AGENTS = "ppo, a2c or the path of a script"
ABOUT = ("seed", "env_id", "total_timesteps", "optimizer", "learning_rate")
# what a run's folder can say of a cell, best first; "killed": it says "running", and no process holds its lock
DONE, STATES = ("finished", "diverged"), ("finished", "diverged", "running", "interrupted", "killed", "failed")


# ---- the grid ----------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A run of the grid: the script's path, its arguments with the step size that it will have, and its seed's role."""

    script: str
    args: Any
    selection: bool = False

    @property
    def key(self):
        return identity(os.path.basename(self.script), asdict(self.args))

    def flags(self):
        """The arguments as a command line: what the run is about, and what else is not the script's default."""
        for field in fields(self.args):
            value, flag = getattr(self.args, field.name), field.name.replace("_", "-")
            if value != field.default or field.name in ABOUT:
                words = map(str, value if isinstance(value, tuple) else [value])
                yield from [f"--{'' if value else 'no-'}{flag}"] if field.type is bool else [f"--{flag}", *words]

    def command(self):
        return shlex.join([os.path.relpath(self.script), *self.flags()])

    def __str__(self):
        a = self.args
        return f"{agent_name(self.script)} {a.env_id} {a.optimizer} {a.learning_rate:g} seed {a.seed}"


def agent_name(script):
    return Path(script).stem.removesuffix("_hesscale")


@cache
def load_script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    before, sys.modules[path.stem] = sys.modules.get(path.stem), module  # where a dataclass looks for its types
    spec.loader.exec_module(module)
    if not hasattr(module, "Args") or not hasattr(module, "LEARNING_RATES"):
        sys.modules[path.stem] = before or module
        fail(f"--agent {path.name}: the script has no Args and LEARNING_RATES, as ppo_hesscale.py has")
    return module


def load_agent(name):
    """The module of an agent: `ppo`, `a2c`, or the path of a script that has Args and LEARNING_RATES as theirs do."""
    for path in Path(name), ROOT / name, ROOT / f"{name}_hesscale.py":
        if path.suffix == ".py" and path.exists():
            return load_script(path.resolve())
    fail(f"--agent {name}: choose {AGENTS}")


def known_grids():
    return ", ".join(sorted(path.stem for path in (ROOT / "scripts/grids").glob("*.toml")))


def read_grid(name):
    """The [[grid]] tables of a TOML file, or of scripts/grids/{name}.toml, each {flag: list of values}."""
    path = Path(name) if Path(name).is_file() else ROOT / f"scripts/grids/{name}.toml"
    if not path.is_file():
        fail(f"{name or repr(name)}: there is no such grid file; name a TOML file or one of {known_grids()}")
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        fail(f"{name}: can't be read as TOML: {error}")
    tables = content.pop("grid", None)
    if content or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables) or not tables:
        fail(f"{name}: must consist of [[grid]] tables" + "".join(f", not of {key}" for key in content))
    return [{key: v if isinstance(v, list) else [v] for key, v in table.items()} for table in tables]


def typed(flag, values, kind):
    """The values of a flag, which has the type `kind`; ends the program with one line if they are no such values."""
    kinds = (tuple,) if get_origin(kind) is tuple else get_args(kind) or (kind,)
    if kinds == (tuple,):  # which TOML does not have
        values = [tuple(v) if isinstance(v, list) else v for v in ([values] if type(values[0]) is float else values)]
    values = [float(v) if type(v) is int and float in kinds else v for v in values]
    for value in values:
        if type(value) not in kinds:
            fail(f"{flag} {value!r}: must be of type {' or '.join(k.__name__ for k in kinds if k is not type(None))}")
    if len({*values}) < len(values):
        fail(f"{flag} {' '.join(map(str, values))}: names a value twice")
    return values


def expand(table, where):
    """The cells of one table {flag: values}; ends the program with one line where the table is invalid."""
    flag = lambda name: f"{where}--{name.replace('_', '-')}"  # noqa: E731
    if empty := [name for name, values in table.items() if not values]:
        fail(f"{flag(empty[0])} has no values")
    (selection,) = typed(f"{where}selection", table.get("selection", [False]), bool)
    agents = typed(flag("agent"), table.get("agent", []), str) or fail(f"{flag('agent')} is missing: name {AGENTS}")
    for module in map(load_agent, agents):
        types = {field.name: field.type for field in fields(module.Args) if field.name != "resume"}
        if unknown := [name for name in table if name not in (*types, "agent", "selection")]:
            fail(f"{flag(unknown[0])}: is not a flag that a sweep of {Path(module.__file__).name} can have")
        values = {name: typed(flag(name), table[name], types[name]) for name in table if name in types}
        names = sorted(values, key=lambda name: name != "seed")  # a sweep that is stopped has all of its first seeds
        for combination in itertools.product(*(values[name] for name in names)):
            args = module.Args(**dict(zip(names, combination, strict=True)))
            check_args(args)
            getattr(module, "check_minibatches", lambda args: None)(args)
            args.learning_rate = args.learning_rate or module.LEARNING_RATES[args.optimizer]
            yield Cell(module.__file__, args, selection)


def read_tables(names, given=None):
    """The cells of each table of grid files, [{key: cell}, ...].

    Args:
        names: grid files.
        given: {flag: values} that replace those of every table; without a file, a table of their own.
    """
    tables, known = [], {}
    for name in names or [None]:
        for table in [{}] if name is None else read_grid(name):
            tables.append({})
            for cell in expand(table | (given or {}), f"{name}: " if name else ""):
                same = known.setdefault(cell.key, cell)
                differ = [k for k, v in asdict(cell.args).items() if v != getattr(same.args, k)]
                if differ and cell.key in tables[-1]:
                    fail(f"{name or 'the grid'}: {cell} has two values of {differ[0]}, which do not make two runs")
                if same.selection != cell.selection:
                    fail(f"{name}: {cell} is for selection and for the report too; choose on seeds of their own")
                tables[-1][cell.key] = same
    return tables


def read_cells(names, given=None):
    """All cells of grid files, {key: cell}, each once though two tables may have it."""
    return {key: cell for table in read_tables(names, given) for key, cell in table.items()}


def write_cells(path, cells):
    """Write cells as a grid file, a table each."""
    with open(path, "w", encoding="utf-8") as file:
        for cell in cells:
            differ = {f.name: v for f in fields(cell.args) if (v := getattr(cell.args, f.name)) != f.default}
            lines = [f"{name} = {json.dumps([value])}\n" for name, value in differ.items()]
            file.write("".join(["[[grid]]\n", f"agent = {json.dumps(cell.script)}\n", *lines]))


# ---- what is done ------------------------------------------------------------------------------------------


@cache
def defaults(script):
    """A script's arguments as they are now; None for a script that isn't of this repository."""
    return asdict(load_agent(script).Args()) if (ROOT / script).is_file() else None


def find_runs(pattern="runs/*"):
    """The runs in folders that match the pattern, {key: (state, folder, status)}; the furthest one of a key."""
    runs = {}
    for path in glob.glob(f"{pattern}/status.json"):
        folder = os.path.dirname(path)
        status = read_status(folder)
        if status is None or status["state"] not in STATES:  # half written, or of another version
            continue
        state = status["state"]
        if state == "running" and (held := lock(folder)):
            held.release()
            state = "killed"
        key = identity(status["script"], (defaults(status["script"]) or {}) | status["args"])
        rank = lambda run: (STATES.index(run[0]), -run[2]["step"], run[2]["start"])  # noqa: E731
        runs[key] = min(runs.get(key, (state, folder, status)), (state, folder, status), key=rank)
    return runs


def read_archives():
    """The runs in the repository's archives, as find_runs returns those in folders."""
    runs = {}
    for path in sorted(glob.glob(ARCHIVES)):
        try:
            with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    script, args = json.loads(row["key"])
                    status = {"script": script, "args": args, "total_timesteps": args["total_timesteps"]}
                    status["seconds"] = float(row["seconds"] or "nan")
                    runs[identity(script, (defaults(script) or {}) | args)] = row["state"], path, status
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
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


def cores():
    """The number of cores that this process may use, or of all where the system doesn't tell, as on macOS."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- here, N at a time -------------------------------------------------------------------------------------


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
        process = subprocess.Popen(
            [sys.executable, cell.script, *cell.flags(), "--resume", "auto"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
            env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,  # Ctrl-C comes through on_signal alone
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # and so on Windows
        )  # fmt: skip
        self.running[process] = cell, time.time()
        lines = process.communicate()[1].strip().splitlines()
        _, start = self.running.pop(process)
        code = process.returncode
        state = {0: "finished", DIVERGED: "diverged", INTERRUPTED: "interrupted"}.get(code, "failed")
        if self.stop is not None and code == -signal.SIGTERM:  # before it could begin
            state = "interrupted"
        elif code < 0:
            lines.append(f"killed by {signal.Signals(-code).name}" + ", out of memory?" * (code == -signal.SIGKILL))
        _, _, status = find_runs(folders_like(cell.args)).get(cell.key, (None, None, None))
        self.note(cell, state, status, time.time() - start, lines)

    def note(self, cell, state, status, seconds=None, lines=()):
        """Count a run that has ended, and say so."""
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
        if None not in seconds:
            begun = [now - start for _, start in running] + [0]
            seconds = sum(max(0, all - gone) for all, gone in zip(seconds, begun, strict=True)) / self.number
        return f"{len(running)} running; {duration(None if isinstance(seconds, list) else seconds)} left"

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


# ---- on SLURM ----------------------------------------------------------------------------------------------


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
                *shlex.split(args.sbatch), str(ROOT / "scripts/sweep.sbatch"), sys.executable, __file__,
                str(folder / "cells.toml"), str(offset), str(args.runs_per_task), str(args.cpus_per_task),
            ).strip().split(";")[0]  # fmt: skip
        except SystemExit:
            if offset == 0:
                shutil.rmtree(folder)
            raise  # what was submitted before stays queued, and the same command submits the rest
        job = {"id": id, "cells": str(folder / "cells.toml"), "offset": offset, "runs_per_task": args.runs_per_task}
        with open(folder / "jobs", "a") as file:
            file.write(json.dumps(job) + "\n")
        print(f"job {id}: {number} elements of {args.runs_per_task} runs, logs in {folder}", flush=True)


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
    cells = dict(list(cells.items())[slice(*args.cells or (None,))])
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
    sys.exit(main())
