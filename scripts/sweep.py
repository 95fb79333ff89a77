"""Run a grid of agents, environments, optimizers, step sizes and seeds: here, N at a time, or as SLURM job arrays.

    scripts/sweep.sh quick                      # a grid file, here scripts/grids/quick.toml; a run on each core
    scripts/sweep.sh quick --dry-run            # what there is to do, what is done, how long the rest will take
    scripts/sweep.sh --agent ppo a2c --env-id Hopper-v4 --optimizer adam adahesscale --seed 1 2 3 --local 4
    scripts/sweep.sh performance robustness --seed 1 2 3 --slurm --time 12:00:00 --sbatch="--account=def-someone"

A grid file is TOML. Each of its [[grid]] tables gives flags of the agents one value or a list, and stands for all
combinations of these; what is left out has the agent's default. A flag on the command line replaces the files'.

A cell of the grid is known by its script and all its arguments. A run in runs/ that has them and is finished or
diverged is not made again, and one that was interrupted or killed is gone on with: so the same command, given again,
completes the sweep. Exit status: 0 all done, 1 some failed, 75 stopped before the end.
"""

import contextlib
import datetime
import glob
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
import tempfile
import time
import tomllib
from collections import Counter, defaultdict, deque
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

ABOUT = ("seed", "env_id", "total_timesteps", "optimizer", "learning_rate")
# what a run's folder can say of a cell, best first; "killed": it says "running", and no process holds its lock
DONE, STATES = ("finished", "diverged"), ("finished", "diverged", "running", "interrupted", "killed", "failed")


# ---- the grid ----------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A run of the grid: the script's path, and its arguments with the step size that the run will have."""

    script: str
    args: Any

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

    def __str__(self):
        a = self.args
        return f"{agent_name(self.script)} {a.env_id} {a.optimizer} {a.learning_rate:g} seed {a.seed}"


def agent_name(script):
    return Path(script).stem.removesuffix("_hesscale")


def load_agent(name):
    """The module of an agent: `ppo`, `a2c`, or the path of a script that has Args and LEARNING_RATES as theirs do."""
    path = Path(name) if name.endswith(".py") else ROOT / f"{name}_hesscale.py"
    path = path if path.exists() else ROOT / path
    if str(path.resolve()) in load_agent.known:
        return load_agent.known[str(path.resolve())]
    if not path.exists():
        fail(f"--agent {name}: choose ppo, a2c or the path of a script")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "Args") or not hasattr(module, "LEARNING_RATES"):
        fail(f"--agent {name}: the script has no Args and LEARNING_RATES, as ppo_hesscale.py has")
    load_agent.known[str(path.resolve())] = module
    return module


load_agent.known = {}


def known_grids():
    return ", ".join(sorted(path.stem for path in (ROOT / "scripts/grids").glob("*.toml")))


def read_grid(name):
    """The [[grid]] tables of a TOML file, or of scripts/grids/{name}.toml, each {flag: list of values}."""
    path = Path(name)
    if not path.is_file():
        path = ROOT / f"scripts/grids/{name}.toml"
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


def expand(table, where):
    """The cells of one table {flag: values}; ends the program with one line where the table can't be meant."""
    flag = lambda name: f"{where}--{name.replace('_', '-')}"  # noqa: E731
    for name, values in table.items():
        if not values:
            fail(f"{flag(name)} has no values")
        if len(set(map(repr, values))) < len(values):
            fail(f"{flag(name)} {' '.join(map(str, values))}: names a value twice")
    if "agent" not in table:
        fail(f"{where}--agent is missing: name ppo, a2c or the path of a script")
    for name in table["agent"]:
        module, rest = load_agent(str(name)), {key: values for key, values in table.items() if key != "agent"}
        types = {field.name: get_args(field.type) or (field.type,) for field in fields(module.Args)}
        types |= {field.name: (tuple,) for field in fields(module.Args) if get_origin(field.type) is tuple}
        for key, values in rest.items():
            if key not in types or key == "resume":
                fail(f"{flag(key)}: is not a flag that a sweep of {os.path.basename(module.__file__)} can have")
            values = [tuple(v) if type(v) is list else v for v in values]  # TOML has no tuples
            rest[key] = [float(v) if type(v) is int and float in types[key] else v for v in values]
            for value in rest[key]:
                if type(value) not in types[key]:
                    wanted = " or ".join(t.__name__ for t in types[key] if t is not type(None))
                    fail(f"{flag(key)} {value!r}: must be of type {wanted}")
        keys = sorted(rest, key=lambda key: key != "seed")  # a sweep that is stopped early has all of its first seeds
        for values in itertools.product(*(rest[key] for key in keys)):
            args = module.Args(**dict(zip(keys, values, strict=True)))
            check_args(args)
            getattr(module, "check_minibatches", lambda args: None)(args)
            args.learning_rate = args.learning_rate or module.LEARNING_RATES[args.optimizer]
            yield Cell(module.__file__, args)


def read_cells(names, given=None):
    """All cells of grid files, {key: cell}, each once though two files may have it.

    Args:
        names: grid files.
        given: {flag: values} that replace those of every table; without a file, a table of their own.
    """
    given, cells = given or {}, {}
    for name in names or [None]:
        table_keys = {}
        for table in [{}] if name is None else read_grid(name):
            for cell in expand(table | given, f"{name}: " if name else ""):
                same = table_keys.setdefault(cell.key, cell)
                if asdict(same.args) != asdict(cell.args):
                    differ = [k for k, v in asdict(cell.args).items() if v != getattr(same.args, k)]
                    fail(f"{name or 'the grid'}: {cell} has two values of {differ[0]}, which do not make two runs")
                cells.setdefault(cell.key, cell)
    return cells


def write_cells(path, cells):
    """Write cells as a grid file, a table each."""
    with open(path, "w", encoding="utf-8") as file:
        for cell in cells:
            file.write(f"[[grid]]\nagent = {json.dumps(cell.script)}\n")
            for field in fields(cell.args):
                value = getattr(cell.args, field.name)
                if value != field.default:
                    file.write(f"{field.name} = {json.dumps([value])}\n")  # a list of values


# ---- what is done ------------------------------------------------------------------------------------------


@cache
def defaults(script):
    """A script's arguments as they are now; None for a script that isn't of this repository."""
    return asdict(load_agent(script).Args()) if (ROOT / script).is_file() else None


def rank(state, status):
    """Key to sort the runs of a cell by, the one that got furthest first."""
    return STATES.index(state), -status["step"], status["start"]


def find_runs(pattern="runs/*"):
    """The runs in folders that match the pattern, {key: (state, folder, status)}; the best one where two have a key."""
    runs = {}
    for path in glob.glob(f"{pattern}/status.json"):
        folder = os.path.dirname(path)
        status = read_status(folder)
        if status is None or status["state"] not in STATES:  # half written, or of another version
            continue
        script, state = status["script"], status["state"]
        if state == "running" and (held := lock(folder)):
            held.release()
            state = "killed"
        key, run = identity(script, (defaults(script) or {}) | status["args"]), (state, folder, status)
        runs[key] = min(runs.get(key, run), run, key=lambda run: rank(run[0], run[2]))
    return runs


def find_run(cell):
    """The state, folder and status of a cell's run now, from its few folders alone; (None, None, None) without one."""
    return find_runs(folders_like(cell.args)).get(cell.key, (None, None, None))


def wall_time(state, status):
    """The seconds of a run that finished without an interruption; NaN of any other."""
    if state != "finished" or status["resumed_at"]:
        return math.nan
    begin, end = (datetime.datetime.fromisoformat(status[key]) for key in ("start", "end"))
    return (end - begin).total_seconds()


def seconds_per_step(runs):
    """From finished runs, a function that estimates a cell's; None where nothing like it has ended.

    Like it is, in this order: script, environment and optimizer the same; script and optimizer; script; any run.
    """
    alike = lambda script, args: [  # noqa: E731
        (script, args["env_id"], args["optimizer"]), (script, args["optimizer"]), script, None
    ]  # fmt: skip
    seconds, steps = defaultdict(float), defaultdict(int)
    for state, _, status in runs:
        if not math.isnan(taken := wall_time(state, status)):
            for kind in alike(status["script"], status["args"]):
                seconds[kind] += taken
                steps[kind] += status["total_timesteps"]
    return lambda cell: next(
        (seconds[k] / steps[k] for k in alike(os.path.basename(cell.script), asdict(cell.args)) if k in steps), None
    )


def estimate(cells, runs):
    """Core-seconds that these cells will take, judged by the finished runs; None where there are none."""
    per_step = seconds_per_step(runs)
    seconds = [(s := per_step(cell)) and s * cell.args.total_timesteps for cell in cells]
    return None if None in seconds else sum(seconds)


def duration(seconds):
    """Seconds in words."""
    if seconds is None:
        return "unknown"
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h" if hours >= 10 else f"{hours} h {minutes} min" if hours else f"{minutes} min"


def cores():
    """The number of cores that this process may use, or of all where the system doesn't tell, as on macOS."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- here, N at a time -------------------------------------------------------------------------------------


class Local:
    """Runs of cells, so many at a time, each a process with one thread.

    Any of SIGNALS lets each run write a checkpoint and end; a second Ctrl-C kills them.
    """

    def __init__(self, cells, done, number):
        self.cells, self.number = cells, number
        self.done = [done[key] for key in cells if key in done]  # the runs that the time left is judged by
        self.count = Counter(state for state, _, _ in self.done if state in DONE)
        self.pending = deque(cell for key, cell in cells.items() if done.get(key, (None,))[0] not in DONE)
        self.elsewhere, self.running = deque(), {}
        self.stop, self.stopping, self.start = None, False, time.time()
        self.claims = {}  # locks, by the keys of the cells that this sweep has under way
        try:
            os.makedirs("runs/.claims", exist_ok=True)
        except OSError as error:
            fail(f"the runs can't be written here: {error}")
        for signum in SIGNALS:
            signal.signal(signum, self.on_signal)
        self.bar = tqdm(
            total=len(cells), initial=sum(self.count.values()), file=sys.stdout, disable=not sys.stdout.isatty(),
            bar_format="{n}/{total} runs |{bar:20}| {elapsed}{postfix}",
        )  # fmt: skip

    def on_signal(self, signum, frame):
        if self.stop is not None and signum == signal.SIGINT:
            for process in self.running:
                process.kill()
            os._exit(128 + signum)
        self.stop = signum

    def stop_runs(self):
        self.stopping = True
        name = signal.Signals(self.stop).name
        self.say(f"{name}: {len(self.running)} runs write a checkpoint and end; Ctrl-C again kills them")
        for process in self.running:
            process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))

    def claim(self, cell):
        """Keep other sweeps in this folder from starting the same cell, until release; whether this one has it now."""
        path = f"runs/.claims/{hashlib.sha1(cell.key.encode()).hexdigest()}"
        try:
            self.claims[cell.key] = held = lock_file(path)
        except OSError:  # the claim of another user's sweep, killed; without a claim the run's own lock is left
            return True
        return held is not None

    def release(self, cell):
        held = self.claims.pop(cell.key, None)
        if held is not None:
            with contextlib.suppress(OSError):  # Windows removes it in `release`
                os.remove(held.lock_file)
            held.release()

    def say(self, text):
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def begin(self, cell):
        """Start a cell's run, unless another process has it under way or has ended it."""
        mine = self.claim(cell)
        state, folder, status = find_run(cell)  # after the claim: whoever had it before has ended
        if state in DONE:
            return self.note(cell, state, folder, status, None)
        if not mine or state == "running":
            self.release(cell)
            return self.elsewhere.append((time.time(), cell))
        errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, cell.script, *cell.flags(), "--resume", "auto"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,  # Ctrl-C comes through on_signal alone
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # and so on Windows
        )  # fmt: skip
        self.running[process] = cell, errors, time.time()

    def end(self, process):
        cell, errors, start = self.running.pop(process)
        code = process.returncode
        state = {0: "finished", DIVERGED: "diverged", INTERRUPTED: "interrupted"}.get(code, "failed")
        if self.stop is not None and code == -signal.SIGTERM:  # before it could begin
            state = "interrupted"
        with errors:
            errors.seek(0)
            lines = errors.read().strip().splitlines()
        if code < 0 and state == "failed":
            lines.append(f"killed by {signal.Signals(-code).name}" + ", out of memory?" * (code == -signal.SIGKILL))
        _, folder, status = find_run(cell)
        self.note(cell, state, folder, status, time.time() - start, lines)

    def note(self, cell, state, folder, status, seconds, lines=()):
        """Count a run that has ended, and say so."""
        self.release(cell)
        self.count[state] += 1
        if state in DONE:
            self.done.append((state, folder, status))
            self.bar.update(1)
        text = f"{cell}: {state}"
        if status is not None and status["return"] is not None:
            text += f", return {status['return']:.1f}"
        if seconds is not None:
            text += f", {duration(seconds)}"
        if state == "failed":
            text += f"; {shlex.join([os.path.basename(cell.script), *cell.flags()])}"
        self.say(f"[{sum(self.count[s] for s in DONE)}/{len(self.cells)}] {text}")
        for line in lines if state == "failed" else [line for line in lines if line.startswith("warning")]:
            self.say(f"    {line}")

    def summary(self):
        count = self.count + Counter({"running": len(self.running), "running elsewhere": len(self.elsewhere)})
        return ", ".join(f"{n} {state}" for state, n in count.items() if n and state != "finished") or "all finished"

    def left(self):
        """Seconds until the end, judged by the runs that have ended; None before the first."""
        seconds = estimate([*self.pending, *(cell for _, cell in self.elsewhere)], self.done)
        running = [(estimate([cell], self.done), time.time() - start) for cell, _, start in self.running.values()]
        if seconds is None or any(expected is None for expected, _ in running):
            return None
        return (seconds + sum(max(0, expected - so_far) for expected, so_far in running)) / self.number

    def run(self):
        """Run all; return the exit status."""
        last = time.time()
        while self.running or (self.stop is None and (self.pending or self.elsewhere)):
            while self.stop is None and self.pending and len(self.running) < self.number:
                self.begin(self.pending.popleft())
            if self.elsewhere and time.time() - self.elsewhere[0][0] > 2:
                self.pending.append(self.elsewhere.popleft()[1])
            if self.stop is not None and not self.stopping:
                self.stop_runs()
            time.sleep(0.1)
            for process in [p for p in self.running if p.poll() is not None]:
                self.end(process)
            if time.time() - last >= (60 if self.bar.disable else 1):
                last = time.time()
                left = f"{self.summary()}; {duration(self.left())} left"
                self.say(left) if self.bar.disable else self.bar.set_postfix_str(left)
        self.bar.close()
        not_begun = len(self.pending) + len(self.elsewhere)
        count = ", ".join(f"{n} {state}" for state, n in (self.count + Counter({"not begun": not_begun})).items())
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
    queue = {tuple(line.split("_")) for line in slurm("squeue", "--me", "-h", "-r", "-o", "%F_%K").splitlines()}
    keys = set()
    for job in submitted:
        elements = [int(k) for f, k in queue if f == job["id"]]
        if elements:
            cells = list(read_cells([job["cells"]]))
            for k in elements:
                first = (job["offset"] + k) * job["runs_per_task"]
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
    elements = -(-len(cells) // args.runs_per_task)
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
        value = getattr(args, name)
        if value is not None and value < 1:
            fail(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if args.cells is not None and not 0 <= args.cells[0] < args.cells[1]:
        fail(f"--cells {args.cells[0]} {args.cells[1]}: takes none; give the first, from 0, and the last + 1")
    if args.slurm and args.local is not None:
        fail(f"--local {args.local}: the runs go here or to SLURM, not both; with --slurm, see --cpus-per-task")
    if not args.slurm:
        for name in ("time", "mem", "runs_per_task", "cpus_per_task", "sbatch"):
            if getattr(args, name) != getattr(Sweep, name):
                fail(f"--{name.replace('_', '-')} {getattr(args, name)}: is for --slurm, which is missing")


def main():
    flags = sweep_flags()
    args = parse_args(make_dataclass("Args", flags, bases=(Sweep,)))
    check(args)
    given = {name: list(getattr(args, name)) for name, _, _ in flags if getattr(args, name)}
    given |= {"agent": list(args.agent)} if args.agent else {}
    if not args.grids and not given:
        fail(f"an empty grid: name a grid file ({known_grids()}), or give --agent, --env-id, --optimizer, --seed, ...")
    cells = read_cells(args.grids, given)
    if args.cells is not None:
        cells = dict(list(cells.items())[slice(*args.cells)])
    for one in {(c.args.env_id, getattr(c.args, "env_kwargs", "")): c.args for c in cells.values()}.values():
        make_env(one).close()

    every = find_runs()
    runs = {key: every[key] for key in cells if key in every}
    in_queue = queued() if args.slurm or args.dry_run else set()
    state = {key: "queued" if key in in_queue else runs.get(key, ("not begun",))[0] for key in cells}
    state |= {key: run[0] for key, run in runs.items() if run[0] in DONE}
    left = {key: cell for key, cell in cells.items() if state[key] not in DONE}
    counts = ", ".join(f"{n} {s}" for s, n in Counter(state.values()).most_common())
    seconds = estimate(left.values(), every.values())
    about = f"about {duration(seconds)} on one core" if seconds is not None else "how long is known after the first run"
    if args.dry_run:
        for key, cell in cells.items():
            print(f"{state[key]:<11} {shlex.join([os.path.relpath(cell.script), *cell.flags()])}")
    print(f"{len(cells)} runs: {counts}" + f"; left: {about}" * bool(left), flush=True)
    if args.dry_run or not left:
        return 0
    if args.slurm:
        left = [cell for key, cell in left.items() if state[key] not in ("queued", "running")]
        return submit(left, args) if left else print("nothing to submit")
    return Local(cells, runs, args.local or cores()).run()


if __name__ == "__main__":
    sys.exit(main())
