"""A run on disk: checkpoints and how to go on from them, status.json, logging, progress, and how a run ends."""

import argparse
import atexit
import collections
import contextlib
import datetime
import fcntl
import glob
import importlib.metadata
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from hesscale_utils import EnvironmentFailed, fail, from_plain, to_plain

# exit statuses, besides 0 for a run that is finished
ERROR, DIVERGED, INTERRUPTED = 1, 3, 75  # 75 is EX_TEMPFAIL of sysexits.h: run it again


def execute(main, args):
    """Run main(args); what ends it early becomes one line, a state in status.json and an exit status."""
    try:
        return main(args)
    except FloatingPointError as error:
        state, status = "diverged", DIVERGED
        message = str(error)
    except EnvironmentFailed as error:
        state, status = "failed", ERROR
        message = f"--env-id {args.env_id}: {error}"
    except OSError as error:  # the disk is full, a folder is gone
        state, status = "failed", ERROR
        message = f"{error}; what was written before stays"
    if Run.active is not None:
        message += Run.active.end(state, message)
    fail(message, status)


# ---- checkpoints -------------------------------------------------------------------------------------------

CHECKPOINT_FORMAT = 1
# flags that a run may go on with another value of
FREE_FLAGS = (
    "resume",
    "checkpoint_interval",
    "track",
    "wandb_project_name",
    "wandb_entity",
    "capture_video",
    "save_model",
)


def get_random_states(rng):
    """The state of every generator of random numbers: Python's, numpy's old one and `rng`, torch's."""
    states = {"random": random.getstate(), "numpy": to_plain(np.random.get_state(legacy=False))}
    states |= {"rng": rng.bit_generator.state, "torch": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else {})


def set_random_states(states, rng):
    random.setstate(states["random"])
    np.random.set_state(from_plain(states["numpy"]))
    rng.bit_generator.state = states["rng"]
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def write_atomically(path, content, keep=None):
    """Write bytes so that `path` holds, at every moment, the old content or the new one whole, on disk.

    `keep` is what the old one is renamed to, once the new one is whole; without it, it is replaced.
    """
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        Path(temporary).unlink(missing_ok=True)  # a full disk needs the room
        raise
    if keep is not None and os.path.exists(path):
        os.replace(path, keep)
    os.replace(temporary, path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_checkpoint(folder):
    """The newest whole checkpoint of a run's folder.

    Raises:
        ValueError: there is none, with what is wrong with those that there are.
    """
    damage = []
    for name in ("checkpoint.pt", "checkpoint_previous.pt"):
        try:
            with zipfile.ZipFile(f"{folder}/{name}") as file:  # torch.load does not look at the checksums
                if file.testzip() is not None:
                    raise zipfile.BadZipFile("wrong checksum")
            checkpoint = torch.load(f"{folder}/{name}", weights_only=True)
            if not isinstance(checkpoint, dict) or not {"format", "args", "step"} <= checkpoint.keys():
                raise ValueError("not a checkpoint of these scripts")
        except FileNotFoundError:
            continue
        except Exception as error:  # whatever random bytes make zipfile and pickle raise
            damage.append(f"{name} is damaged ({first_sentence(error)})")
            continue
        if damage:
            print(f"warning: {damage[0]}; going on from {name}, of step {checkpoint['step']:,}", file=sys.stderr)
        return checkpoint
    raise ValueError("; ".join(damage) or "there is no checkpoint")


def first_sentence(error):
    """What an error says, without the advice that follows in torch's."""
    return re.split(r"\.\s", f"{type(error).__name__}: {error}")[0]


def read_status(folder):
    """status.json of a run's folder as a dict; None where there is none that can be read."""
    try:
        status = json.loads(Path(folder, "status.json").read_text())
        needed = {"state", "step", "script", "args", "versions", "start", "resumed_at"}
        return status if isinstance(status, dict) and needed <= status.keys() else None
    except (OSError, ValueError):
        return None


def lock(folder):
    """Hold the lock of a run's folder for as long as the process lives; None where another holds it.

    So a run that was killed is known: its state is "running", and nobody holds its lock.
    """
    file = open(f"{folder}/lock", "w")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # a cluster's file system may have no locks; its runs do without
        pass
    return file


def identity(script, args):
    """What tells a run from another, as one string: its script's name and its arguments, but for FREE_FLAGS.

    Args:
        script: the script's name.
        args: all of the script's arguments as a dict, with the step size that the run has.
    """
    return json.dumps([script, {name: value for name, value in sorted(args.items()) if name not in FREE_FLAGS}])


def script_of(args):
    """The name of the script whose arguments these are."""
    return os.path.basename(sys.modules[type(args).__module__].__file__)


def model_of(args, agent, env_states):
    """What a saved model holds: the agent's state_dict, the normalization of each environment, and what it is for."""
    statistics = [state["statistics"] for state in env_states]
    return {"env_id": args.env_id, "norm_obs": args.norm_obs, "agent": agent, "statistics": statistics}


def load_model(path):
    """What --save-model wrote, from its file or its run's folder, or else the same from the folder's checkpoint.

    Ends the program with one line where there is neither.
    """
    files = sorted(Path(path).glob("*.pt")) if os.path.isdir(path) else [Path(path)]
    models = [file for file in files if not file.name.startswith("checkpoint")]
    try:
        if models:
            model = torch.load(models[0], weights_only=True)
            return {key: model[key] for key in ("env_id", "norm_obs", "agent", "statistics")}
        checkpoint = read_checkpoint(path)
        return model_of(argparse.Namespace(**checkpoint["args"]), checkpoint["agent"], checkpoint["envs"])
    except FileNotFoundError:
        fail(f"{path}: there is no such file or folder")
    except Exception as error:  # whatever random bytes make torch.load raise
        what = "holds neither a saved model nor a checkpoint" if os.path.isdir(path) else "is not a saved model"
        fail(f"{path}: {what} ({first_sentence(error)})")


def folders_like(args):
    """Glob pattern of the folders that a run with these arguments may have: a study has thousands of others."""
    name = f"{args.env_id}__{args.exp_name}__{args.optimizer}__{args.seed}__"
    return f"runs/{glob.escape(name.replace('/', '-'))}*"


def find_run(args, learning_rates):
    """The folder of the newest run that has these arguments, is not at its end and has a checkpoint, or None."""
    script, defaults = script_of(args), asdict(type(args)())
    wanted = asdict(args) | {"learning_rate": args.learning_rate or learning_rates.get(args.optimizer)}
    found = []
    for folder in glob.glob(folders_like(args)):
        status = read_status(folder)
        if status is None or status["state"] in ("finished", "diverged"):
            continue
        same = identity(status["script"], defaults | status["args"]) == identity(script, wanted)
        if same and list(Path(folder).glob("checkpoint*.pt")):
            found.append((status["start"], folder))
    return max(found)[1] if found else None


def load_checkpoint(args, learning_rates):
    """Return the checkpoint that --resume asks for, after giving `args` its values; None for a new run.

    Args:
        args: the script's arguments.
        learning_rates: the step size of each optimizer where args has none.

    Ends the program with one line where the run can't go on, or not with these flags.
    """
    if args.resume is None:
        return None
    folder = find_run(args, learning_rates) if args.resume == "auto" else args.resume.rstrip("/")
    if folder is None:
        print("--resume auto: no such run to go on with, so this is a new one")
        return None
    status, script = read_status(folder), script_of(args)
    if status is None:
        fail(f"--resume {folder}: is not a run's folder, for it has no readable status.json")
    if status["state"] in ("finished", "diverged"):
        fail(f"--resume {folder}: the run is {status['state']}, so there is nothing to go on with")
    if status["script"] != script:
        fail(f"--resume {folder}: is a run of {status['script']}; go on with that instead of {script}")
    try:
        checkpoint = read_checkpoint(folder)
    except ValueError as error:
        fail(f"--resume {folder}: {error}; start the run anew, without --resume")
    if checkpoint["format"] != CHECKPOINT_FORMAT:
        written = f"commit {status.get('commit')} wrote its checkpoint in format {checkpoint['format']}"
        fail(f"--resume {folder}: {written}, this one reads format {CHECKPOINT_FORMAT}; use that commit")
    for package, version in status["versions"].items():
        if versions()[package] != version:
            print(
                f"warning: {package} was {version} and is {versions()[package]}: the run may end differently",
                file=sys.stderr,
            )
    defaults = type(args)()
    for name, stored in checkpoint["args"].items():
        given = getattr(args, name)
        if name not in FREE_FLAGS:
            if given not in (getattr(defaults, name), stored):
                flag = f"--{name.replace('_', '-')}"
                fail(f"{flag} {given}: the run in {folder} has {stored}; leave the flag out, or start a new run")
            setattr(args, name, stored)
        elif given == getattr(defaults, name):
            setattr(args, name, stored)
    args.resume = folder
    return checkpoint


def versions():
    """The versions that decide what a run does."""
    packages = "torch", "numpy", "gymnasium", "mujoco"
    return {"python": sys.version.split()[0]} | {name: importlib.metadata.version(name) for name in packages}


def commit():
    """The git commit of these files, with a + where they differ from it; None outside a repository."""
    git = ["git", "-C", os.path.dirname(os.path.abspath(__file__))]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode
        return head + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return None


# ---- the run -----------------------------------------------------------------------------------------------


class Run:
    """A run's folder: its event file, its status.json, its checkpoints, its W&B twin if asked for; and its progress.

    SIGTERM, SIGINT and SIGUSR1 let the update under way end, write a checkpoint and end the program with status 75;
    a second SIGINT ends it at once.

    Args:
        args: the script's arguments.
        name: what the run is called; its folder is runs/{name}, or runs/{name}_1 where that exists already.
        checkpoint: of the run to go on with, from load_checkpoint; None for a new run.
    """

    active = None

    def __init__(self, args, name, checkpoint=None):
        self.signal = None  # before anything on disk says that the run is under way
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(signum, self._on_signal)
        self.args, self.total_timesteps = args, args.total_timesteps
        resumed = checkpoint is not None
        self.step = self.start_step = self.last_checkpoint = checkpoint["step"] if resumed else 0
        self.recent_returns = collections.deque(checkpoint["recent_returns"] if resumed else [], maxlen=50)
        self.folder = args.resume if resumed else self._make_folder(name)
        self.name = os.path.basename(self.folder)
        self.lock = lock(self.folder)
        if self.lock is None:
            fail(f"--resume {self.folder}: the run is under way in another process; wait for its end, or end it")
        if args.track:
            self._start_wandb()
        # what was logged after the checkpoint, readers of the events leave out: it is logged again
        self.writer = SummaryWriter(self.folder, purge_step=self.step + 1 if resumed else None)
        self.status = {
            "state": "running", "message": "", "step": self.step, "total_timesteps": args.total_timesteps,
            "return": None, "start": now(), "updated": None, "end": None, "resumed_at": [],
            "script": script_of(args), "args": asdict(args), "versions": versions(), "commit": commit(),
            "host": socket.gethostname(), "pid": None,
        }  # fmt: skip
        if resumed:
            before = read_status(self.folder)
            self.status |= {key: before[key] for key in ("start", "resumed_at")}
            self.status["resumed_at"] = [*before["resumed_at"], self.step]
        else:
            rows = "\n".join(f"|{field.name}|{getattr(args, field.name)}|" for field in fields(args))
            self.writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
        self.write_status(pid=os.getpid())
        self.terminal = sys.stdout.isatty()
        self.bar = tqdm(
            total=self.total_timesteps, initial=self.step, unit=" steps", file=sys.stdout, disable=not self.terminal
        )
        # its writing thread hands an error of a full disk on to the next add_event, which reports it
        threading.excepthook = lambda e: None if issubclass(e.exc_type, OSError) else threading.__excepthook__(e)
        self.start_time = self.last_line = time.perf_counter()
        Run.active = self
        atexit.register(self.close)  # whatever ends the run, its event file is whole

    @staticmethod
    def _make_folder(name):
        for n in range(1000):
            folder = f"runs/{name.replace('/', '-')}" + f"_{n}" * (n > 0)
            try:
                os.makedirs(folder)
                return folder
            except FileExistsError:
                continue
            except OSError as error:
                fail(f"the run folder can't be made: {error}")

    def _start_wandb(self):
        import wandb

        try:
            wandb.init(
                project=self.args.wandb_project_name,
                entity=self.args.wandb_entity,
                sync_tensorboard=True,
                config=vars(self.args),
                name=self.name,
                id=re.sub("[:;,#?/']", "-", self.name),
                resume="allow",
                monitor_gym=self.args.capture_video,
                save_code=True,
                settings=wandb.Settings(init_timeout=30),
            )
        except Exception as error:  # no account, no network, no such project
            if self.step == 0:
                shutil.rmtree(self.folder)
            fail(f"--track: W&B can't be used ({error}); log in, set WANDB_MODE=offline, or leave --track out")

    def _on_signal(self, signum, frame):
        if signum == signal.SIGINT and self.signal is not None:
            os._exit(128 + signum)  # at once, whatever is under way
        self.signal = signum
        print(
            f"\n{signal.Signals(signum).name}: the update under way ends first, and a checkpoint is written", flush=True
        )

    def checkpoint(self, step, get_state):
        """Write a checkpoint where one is due or a signal has come; after a signal, end the program.

        Args:
            step: environment steps made so far.
            get_state: function that returns what the algorithm needs to go on, in to_plain's types.
        """
        self.step = step
        interval = self.args.checkpoint_interval
        if self.signal is None and (interval == 0 or step - self.last_checkpoint < interval):
            return
        self.writer.flush()  # what is logged until here is not logged again
        state = {"format": CHECKPOINT_FORMAT, "args": asdict(self.args), "step": step}
        content = io.BytesIO()
        torch.save(state | {"recent_returns": list(self.recent_returns)} | get_state(), content)
        previous = f"{self.folder}/checkpoint_previous.pt"
        write_atomically(f"{self.folder}/checkpoint.pt", content.getvalue(), keep=previous)
        self.last_checkpoint = step
        self.write_status()
        if self.signal is not None:
            name = signal.Signals(self.signal).name
            again = self.end("interrupted", f"by {name}")
            print(f"interrupted by {name} after {step:,} of {self.total_timesteps:,} steps{again}", flush=True)
            sys.exit(INTERRUPTED)

    def write_status(self, **changes):
        self.status |= {"step": self.step, "updated": now()} | changes
        self.status["return"] = self.mean_return() if self.recent_returns else None
        write_atomically(f"{self.folder}/status.json", json.dumps(self.status, indent=1).encode())

    def save_model(self, agent, envs):
        """Save the agent, and with it what scripts/evaluate.py needs to act as it does."""
        content = io.BytesIO()
        torch.save(model_of(self.args, agent.state_dict(), [env.get_state() for env in envs]), content)
        path = f"{self.folder}/{self.args.exp_name}.pt"
        write_atomically(path, content.getvalue())
        print(f"model saved to {path}")

    def end(self, state, message=""):
        """Record how the run has ended; return what to tell the user of how it goes on."""
        with contextlib.suppress(OSError):  # of a full disk, which is being reported already
            if state == "diverged":
                self.writer.add_text("diverged", message, self.step)
            self.close()
        with contextlib.suppress(OSError):
            self.write_status(state=state, message=message, end=now())
        if state == "finished":
            for name in ("checkpoint.pt", "checkpoint_previous.pt"):
                Path(self.folder, name).unlink(missing_ok=True)
        elif state != "diverged" and list(Path(self.folder).glob("checkpoint*.pt")):
            return f"; to go on: --resume {self.folder}"
        return ""

    def log(self, step, scalars):
        self.step = step
        # one event for all, where add_scalar would make one for each: in short episodes logging is 5% of a run
        values = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in scalars.items()]
        self.writer.file_writer.add_event(Event(summary=Summary(value=values)), step)

    def log_episode(self, step, env):
        """Log the episode that `env` has just ended."""
        self.recent_returns.append(env.episode_return)
        self.log(step, {"charts/episodic_return": env.episode_return, "charts/episodic_length": env.episode_length})

    def progress(self, step):
        """Move the bar to `step`; where the output is no terminal, print a line every ten seconds."""
        recent = f"return {self.mean_return():.1f}"
        if self.terminal:
            self.bar.set_postfix_str(recent, refresh=False)
            self.bar.update(step - self.bar.n)
        elif (time_now := time.perf_counter()) - self.last_line >= 10:
            self.last_line = time_now
            sps = self.sps(step)
            left = (self.total_timesteps - step) / max(sps, 1)
            done = f"{step:,}/{self.total_timesteps:,} steps"
            print(f"{done}, {sps:,.0f} steps/s, {recent}, {left:.0f} s left", flush=True)

    def mean_return(self):
        """Mean return of the last 50 episodes."""
        return float(np.mean(self.recent_returns)) if self.recent_returns else float("nan")

    def sps(self, step):
        """Steps per second since this process began to train."""
        return int((step - self.start_step) / (time.perf_counter() - self.start_time))

    def close(self):
        self.bar.close()
        with contextlib.suppress(OSError):  # of a full disk, at the program's end
            self.writer.close()


def now():
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
