"""A run on disk: checkpoints, resuming from them, status.json, logging, progress, and how a run ends."""

import argparse
import collections
import contextlib
import datetime
import errno
import glob
import importlib.metadata
import io
import json
import os
import random
import re
import shlex
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

import filelock
import numpy as np
import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from hesscale_envs import (
    ActionNotFinite,
    EnvironmentFailed,
    closed_if_it_fails,
    make_env,
    play_episode,
    warnings_of,
)
from hesscale_utils import (
    fail,
    file_name,
    get_random_states,
    make_rng,
    new_folder,
    plain_switches,
    printing,
    random_states_kept,
    set_random_states,
    to_plain,
    warn,
)

# exit statuses besides 0, which is for a finished run
ERROR, DIVERGED, INTERRUPTED = 1, 3, 75  # 75 is EX_TEMPFAIL of sysexits.h: run it again
UNDER_WAY = "is under way in another process; wait for its end, or end it"
# the signals that end a run with a checkpoint, as far as the system has them; SIGBREAK is Windows' Ctrl-Break, and
# SIGHUP comes as a terminal is closed, but not to what nohup has started
SIGNALS = [s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGBREAK")]
SIGNALS = [s for s in SIGNALS if s.name != "SIGHUP" or signal.getsignal(s) != signal.SIG_IGN]
NO_LOCKS = errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL  # of a file system without locks


# ---- checkpoints -------------------------------------------------------------------------------------------

CHECKPOINT_FORMAT = 3
# flags that may differ when a run is resumed
FREE_FLAGS = (
    "resume",
    "checkpoint_interval",
    "track",
    "wandb_project_name",
    "wandb_entity",
    "capture_video",
    "save_model",
)


def seed_everything(seed, torch_deterministic):
    """Seed every random number generator, and return a numpy Generator for the algorithm's own draws.

    Args:
        seed: seed of Python's, numpy's and torch's global generators and of the returned one.
        torch_deterministic: whether cuDNN must use deterministic algorithms.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = torch_deterministic
    return make_rng(seed)


def start(args, envs, checkpoint, agent, optimizers, rng):
    """Reset all environments or, given a checkpoint, restore everything it holds.

    Prints a note if the run will differ from what its arguments say: no GPU, steps that do not make a whole rollout,
    environments that hold something that a checkpoint can't or are simulated by another MuJoCo; and warns of what keeps
    an agent from learning in them.

    Args:
        args: the script's arguments; environment i is reset with seed + i.
        envs: list of num_envs NormalizedEnv.
        checkpoint: from load_checkpoint; None for a new run.
        agent, optimizers, rng: as for get_state.

    Returns:
        The observations to start from, float32 [num_envs, obs_dim].
    """
    notes = []
    if args.cuda and not torch.cuda.is_available():
        notes.append("--cuda: torch finds no GPU here, so the networks are on the CPU")
    rollout = args.num_envs * args.num_steps
    if args.total_timesteps % rollout:
        steps = args.total_timesteps // rollout * rollout
        notes.append(f"--total-timesteps {args.total_timesteps:,}: whole rollouts of {rollout:,} make {steps:,} steps")
    next_obs = np.stack([env.reset(seed=args.seed + i) for i, env in enumerate(envs)])
    if checkpoint is not None:
        try:
            next_obs = set_state(checkpoint, agent, optimizers, envs, rng, args.seed)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            misfit = f"the checkpoint doesn't fit the agent and environments of this commit ({first_sentence(error)})"
            fail(f"--resume {args.resume}: {misfit}; use the commit that wrote it, or start a new run")
    if args.eval_interval and not episode_limit(envs[0]):
        notes.append(f"--eval-interval: {args.env_id} has no time limit, and an evaluation's episode {ENDLESS:,} steps")
    if other := other_mujoco(envs[0]):
        notes.append(other)
    with printing():
        print("".join(f"note: {note}\n" for note in notes), end="")
    tell_unsaved(envs[0], envs)
    for line in warnings_of(args, envs[0]):
        warn(line)
    return next_obs


def other_mujoco(env):
    """Return a sentence if `env` is simulated by a MuJoCo that differs from the pinned one's simulation, else None."""
    simulated = any(layer.__name__ == "MujocoEnv" for layer in type(env.env.unwrapped).__mro__)
    version = importlib.metadata.version("mujoco") if simulated else "0.0"
    if tuple(map(int, version.split(".")[:2])) > (3, 4):
        return f"MuJoCo {version} does not simulate as 3.2.7 does: returns are not to be compared (see README.md)"
    return None


def tell_unsaved(env, envs):
    """Print a note if a checkpoint can't hold `env`, unless there was one about any of `envs`."""
    if not envs[0].told and (unsaved := env.unsaved()):
        envs[0].told = True
        with printing():
            print(
                f"note: {' '.join(unsaved.split())}, which a checkpoint can't hold: --resume will begin a new episode"
            )


def get_state(agent, optimizers, envs, rng, **more):
    """Return everything needed to resume, besides what Run keeps itself, for Run.checkpoint.

    Args:
        agent: a torch module.
        optimizers: dict of torch optimizers.
        envs: list of NormalizedEnv.
        rng: the numpy Generator of the algorithm's draws.
        more: further plain data or arrays, which load_checkpoint's result holds as to_plain converts them.
    """
    env_states = [env.get_state() for env in envs]
    for env, state in zip(envs, env_states, strict=True):
        if state["layers"] is None:  # also since a step of late
            tell_unsaved(env, envs)
    return {
        "agent": agent.state_dict(),
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
        "envs": env_states,
        "random_states": get_random_states() | {"rng": rng.bit_generator.state},
        **to_plain(more),
    }


def set_state(checkpoint, agent, optimizers, envs, rng, seed):
    """Restore what get_state returned, and return the observations to continue from, float32 [num_envs, obs_dim].

    Environment i starts a new episode with seed + the checkpoint's step + i if its episode could not be saved.
    """
    agent.load_state_dict(checkpoint["agent"])
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(checkpoint["optimizers"][name])
    seeds = range(seed + checkpoint["step"], seed + checkpoint["step"] + len(envs))
    next_obs = [env.set_state(*saved) for env, *saved in zip(envs, checkpoint["envs"], seeds, strict=True)]
    rng.bit_generator.state = checkpoint["random_states"]["rng"]
    set_random_states(checkpoint["random_states"])  # last, for an environment's reset may draw random numbers
    return np.stack(next_obs)


ENDLESS = 10_000  # steps after which an evaluation leaves an episode without a time limit; a signal waits for it


def episode_limit(env):
    """Return the most steps of an episode in `env`, a NormalizedEnv; None if it has no time limit."""
    return env.env.spec.max_episode_steps


def evaluate(args, agent, envs):
    """Play args.eval_episodes episodes of the policy's most likely actions, and return the figures to log, by tag.

    The environment is a new one with the normalization statistics of envs[0], and every evaluation starts its episodes
    with the same seeds; so the training goes on as if there had been none, and a resumed run has the same figures. An
    environment that shares state between its instances would break this.
    """
    returns, lengths = [], []
    with random_states_kept():
        env = make_env(args)
        env.freeze({"obs": envs[0].obs_rms.get_state()})
        with closed_if_it_fails([env]):
            for episode in range(args.eval_episodes):
                play_episode(agent, env, seed=args.seed + 10_000 + episode, max_steps=episode_limit(env) or ENDLESS)
                returns.append(env.episode_return)
                lengths.append(env.episode_length)
        env.close()
    return {"eval/episodic_return": np.mean(returns), "eval/episodic_length": np.mean(lengths)}


def write_atomically(path, content, keep=None):
    """Write bytes to `path` so that it holds, at every moment, either the old content or all of the new one on disk.

    `keep` is the name that the old file gets once the new one is complete; without it, the old file is replaced.

    Raises:
        OSError: the bytes could not be written. The old content stays.
    """
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        Path(temporary).unlink(missing_ok=True)  # a full disk needs the space
        raise
    if keep is not None and os.path.exists(path):
        replace(path, keep)
    replace(temporary, path)
    with contextlib.suppress(PermissionError):  # Windows opens no folder
        folder = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def replace(source, target):
    """Do what os.replace does, for up to a second while Windows refuses because another program reads the file."""
    for _ in range(20):
        with contextlib.suppress(PermissionError):
            return os.replace(source, target)
        time.sleep(0.05)
    os.replace(source, target)


def read_checkpoint(folder):
    """Return the newest undamaged checkpoint of a run's folder; warn on stderr if it isn't the newest one.

    Raises:
        ValueError: there is none. The message says how the existing ones are damaged.
    """
    damage = []
    for name in ("checkpoint.pt", "checkpoint_previous.pt"):
        try:
            with zipfile.ZipFile(f"{folder}/{name}") as file:  # torch.load does not verify the checksums
                if file.testzip() is not None:
                    raise zipfile.BadZipFile("wrong checksum")
            checkpoint = torch.load(f"{folder}/{name}", map_location="cpu", weights_only=True)  # of a GPU's run too
            if not isinstance(checkpoint, dict) or not {"format", "args", "step"} <= checkpoint.keys():
                raise ValueError("not a checkpoint of these scripts")
        except FileNotFoundError:
            continue
        except Exception as error:  # zipfile and pickle raise anything on random bytes
            damage.append(f"{name} is damaged ({first_sentence(error)})")
            continue
        if damage:
            warn(f"{damage[0]}; going on from {name}, of step {checkpoint['step']:,}")
        return checkpoint
    raise ValueError("; ".join(damage) or "there is no checkpoint")


def first_sentence(error):
    """Return an exception's type and the first sentence of its message; torch's messages add advice."""
    return re.split(r"\.\s", f"{type(error).__name__}: {error}")[0]


def read_status(folder):
    """Return status.json of a run's folder as a dict, or None if the folder has no readable one."""
    try:
        status = json.loads(Path(folder, "status.json").read_text())
        needed = {"state", "step", "script", "args", "versions", "start", "resumed_at"}
        if not isinstance(status, dict) or not needed <= status.keys():
            return None
        if not isinstance(status["args"], dict) or not isinstance(status["step"], int):
            return None
        # JSON has no tuples
        status["args"] = {name: tuple(v) if isinstance(v, list) else v for name, v in status["args"].items()}
        return status
    except (OSError, ValueError):
        return None


def lock(folder, timeout=0):
    """Lock a run's folder as lock_file does."""
    return lock_file(f"{folder}/lock", timeout)


def is_under_way(folder, status):
    """Return whether a process has the run under way whose status.json says "running"; else it was killed.

    That process holds the lock or, where the file system has no locks, lives, or has written status.json within the
    hour if it is another host's.

    Raises:
        OSError: the lock is another user's.
    """
    held = lock(folder)
    if held is None:
        return True
    has_locks = held.is_locked
    held.release()
    return not has_locks and process_lives(status)


def process_lives(status):
    """Return whether the process of a run lives by its status.json, where the file system has no locks to tell."""
    if os.name == "nt":  # where os.kill would interrupt it
        return False
    if status["host"] != socket.gethostname():
        age = datetime.datetime.now().astimezone() - datetime.datetime.fromisoformat(status["updated"])
        return age < datetime.timedelta(hours=1)
    try:
        os.kill(status["pid"], 0)
    except (ProcessLookupError, TypeError):  # no such process, or none yet
        return False
    except PermissionError:  # another user's
        pass
    return True


def lock_file(path, timeout=0):
    """Lock a file, made if it is missing, until the returned lock's `release` or the end of the process, even a kill.

    Args:
        path: the file.
        timeout: the seconds to wait for another process that holds it, perhaps only to see whether it can.

    Returns:
        A filelock.FileLock, or None if another process holds it. Where the file system has no locks, as on some
        clusters, a lock that keeps nobody out.

    Raises:
        OSError: the file can't be opened, as that of another user.
    """
    held = filelock.FileLock(path, fallback_to_soft=False, thread_local=False)
    try:
        held.acquire(timeout=timeout)
    except filelock.Timeout:
        return None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return held


@contextlib.contextmanager
def locked(path):
    """A context in which no other process changes the file `path`; ends the program with one line if that takes long.

    Its lock is the file {path}.lock.
    """
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        held = lock_file(f"{path}.lock", timeout=60)
    except OSError as error:
        fail(f"{path}: can't be written ({error})")
    if held is None:
        fail(f"{path}: another process has been writing it for a minute; end that, and give the same command again")
    try:
        yield
    finally:
        held.release()


def identity(script, args):
    """Return a string that is equal for equal runs: the script's name and its arguments without FREE_FLAGS.

    Args:
        script: the script's name.
        args: all arguments of the script as a dict, with the run's actual step size rather than None.
    """
    return json.dumps([script, {name: value for name, value in sorted(args.items()) if name not in FREE_FLAGS}])


def script_of(args):
    """Return the file name of the script that defines these arguments."""
    return os.path.basename(sys.modules[type(args).__module__].__file__)


def model_of(args, agent, env_states):
    """Return what a saved model holds, as plain data and tensors.

    Args:
        args: has env_id, norm_obs and state_std, and may have env_kwargs and time_feature.
        agent: the agent's state_dict.
        env_states: NormalizedEnv.get_state() of each environment.
    """
    return {
        "format": CHECKPOINT_FORMAT,
        "env_id": args.env_id,
        "env_kwargs": getattr(args, "env_kwargs", ""),
        "norm_obs": args.norm_obs,
        "time_feature": getattr(args, "time_feature", False),
        "state_std": args.state_std,
        "agent": {name: p.cpu() for name, p in agent.items()},  # a GPU's would need one to be read
        "statistics": [state["statistics"] for state in env_states],
    }


def load_model(path):
    """Load what Run.save_model wrote, or else the same from the newest checkpoint.

    Args:
        path: the saved model's file, or the folder of a run.

    Returns:
        A dict with env_id, env_kwargs, norm_obs, time_feature, state_std, agent (its state_dict) and statistics (one
        dict per environment).

    The tensors are on the CPU, wherever the run's were. Ends the program with one line if the path holds neither a
    model nor a checkpoint, or one of another format, or an agent that is not finite.
    """
    files = sorted(Path(path).glob("*.pt")) if os.path.isdir(path) else [Path(path)]
    models = [file for file in files if not file.name.startswith("checkpoint")]
    if os.path.isfile(path) and not models:
        fail(f"{path}: is a checkpoint; give the folder of its run")
    try:
        if models:
            model = torch.load(models[0], map_location="cpu", weights_only=True)
        else:
            model = read_checkpoint(path)
        if (found := model.get("format", 1)) != CHECKPOINT_FORMAT:
            fail(f"{path}: is in format {found}, this commit reads format {CHECKPOINT_FORMAT}; use its own commit")
        if not models:
            args = {"state_std": False} | model["args"]
            model = model_of(argparse.Namespace(**args), model["agent"], model["envs"])
        model = {"env_kwargs": "", "time_feature": False} | model  # before they were flags
        keys = "env_id", "env_kwargs", "norm_obs", "time_feature", "state_std", "agent", "statistics"
        model = {key: model[key] for key in keys}
        statistics = {f"{key} of the observations": model["statistics"][0]["obs"][key] for key in ("mean", "var")}
        for name, array in (model["agent"] | statistics).items():
            if not array.isfinite().all():
                fail(f"{path}: its {name} is not finite, so this agent can't act; its training diverged")
        return model
    except FileNotFoundError:
        fail(f"{path}: there is no such file or folder")
    except KeyError as error:
        fail(f"{path}: has no {error}, which this commit reads; use the commit that wrote it")
    except Exception as error:  # torch.load raises anything on random bytes
        problem = "holds neither a saved model nor a checkpoint" if os.path.isdir(path) else "is not a saved model"
        fail(f"{path}: {problem} ({first_sentence(error)})")


def folders_like(args):
    """Return a glob pattern of the folders that a run with these arguments may have, since a study has thousands."""
    name = f"{args.env_id}__{args.exp_name}__{args.optimizer}__{args.seed}__"
    name = file_name(name, "?").replace("[", "[[]")  # ? matches what file_name puts there, and what it once left there
    return f"runs/{name}*"


def find_run(args, learning_rates):
    """Return the folder of the newest unfinished run that has these arguments and a checkpoint, or None.

    Args:
        args: the script's arguments.
        learning_rates: the default step size of each optimizer.

    Ends the program with one line if such a run is under way and has no checkpoint yet.
    """
    script, defaults = script_of(args), asdict(type(args)())
    wanted = asdict(args) | {"learning_rate": args.learning_rate or learning_rates.get(args.optimizer)}
    found = []
    for folder in glob.glob(folders_like(args)):
        status = read_status(folder)
        if status is None or status["state"] in ("finished", "diverged"):
            continue
        same = identity(status["script"], defaults | status["args"]) == identity(script, wanted)
        if not same:
            continue
        if list(Path(folder).glob("checkpoint*.pt")):
            found.append((datetime.datetime.fromisoformat(status["start"]), folder))  # of whatever time zone
        elif status["state"] == "running" and is_under_way(folder, status):
            fail(f"--resume auto: {folder} {UNDER_WAY}")
    return max(found)[1] if found else None


def load_checkpoint(args, learning_rates):
    """Return the checkpoint that --resume asks for, and set `args` to its values; return None for a new run.

    Ends the program with one line if the run can't be resumed, or not with these flags.

    Args:
        args: the script's arguments.
        learning_rates: the default step size of each optimizer, for the runs that `--resume auto` looks for.
    """
    if args.resume is None:
        return None
    if args.resume == "auto":
        folder = find_run(args, learning_rates)
    else:
        folder = args.resume.rstrip("/" + os.sep) or args.resume
    if folder is None:
        with printing():
            print("--resume auto: no such run to go on with, so this is a new one")
        return None
    status, script = read_status(folder) if folder else None, script_of(args)
    if status is None:
        fail(f"--resume {args.resume or repr('')}: is not a run's folder, for it has no readable status.json")
    if status["state"] in ("finished", "diverged"):
        fail(f"--resume {folder}: the run is {status['state']}, so there is nothing to go on with")
    if status["script"] != script:
        fail(f"--resume {folder}: is a run of {status['script']}; go on with that instead of {script}")
    try:
        checkpoint = read_checkpoint(folder)
    except ValueError as error:
        fail(f"--resume {folder}: {error}; move that folder away, and start the run anew")
    if checkpoint["format"] != CHECKPOINT_FORMAT:
        written = f"commit {status.get('commit')} wrote its checkpoint in format {checkpoint['format']}"
        remedy = f"this one reads format {CHECKPOINT_FORMAT}; use that commit, or move the folder away"
        fail(f"--resume {folder}: {written}, {remedy}")
    for package, version in status["versions"].items():
        if versions()[package] != version:
            warn(f"{package} was {version} and is {versions()[package]}: the run may end differently")
    defaults = type(args)()
    words = {word.partition("=")[0].replace("_", "-") for word in plain_switches(type(args), sys.argv[1:])}
    for name, stored in (asdict(defaults) | checkpoint["args"]).items():
        flag = f"--{name.replace('_', '-')}"
        if not hasattr(args, name):
            fail(f"--resume {folder}: its run has {flag}, which is no more; use commit {status.get('commit')}")
        value = getattr(args, name)
        given = value != getattr(defaults, name) or not words.isdisjoint((flag, f"--no-{flag[2:]}"))
        if given and value != stored and name not in FREE_FLAGS:
            fail(f"{flag} {value}: the run in {folder} has {stored}; leave the flag out, or start a new run")
        if not given:
            setattr(args, name, stored)
    args.resume = folder
    return checkpoint


def versions():
    """Return the versions of the software that decides a run's results, {name: version}."""
    here = {"python": sys.version.split()[0], "torch": str(torch.__version__)}  # torch's own word names CUDA's build
    return here | {name: importlib.metadata.version(name) for name in ("numpy", "gymnasium", "mujoco")}


def commit():
    """Return the git commit of these files, with a + if they differ from it; None outside a repository."""
    git = ["git", "-C", os.path.dirname(os.path.abspath(__file__))]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode
        return head + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return None


# ---- the run -----------------------------------------------------------------------------------------------


class Run:
    """A run as a context manager: its folder with event file, status.json and checkpoints, its progress and its end.

        with Run(args, run_name, checkpoint) as run:
            ...  # calls run.log, run.progress and run.checkpoint

    Leaving the block is the only way a run ends; status.json then has one of these states:
        finished: the block was completed. The checkpoints are removed.
        diverged: it raised FloatingPointError or ActionNotFinite. The program ends with one line and status 3.
        interrupted: one of SIGNALS came, and the next call of run.checkpoint wrote a checkpoint and ended the program
            with status 75. A second SIGINT ends it at once, with status 130.
        failed: it raised EnvironmentFailed or OSError, and the program ends with one line and status 1; or it raised
            anything else, which propagates.

    Args:
        args: the script's arguments.
        run_name: the folder is runs/{run_name}, or runs/{run_name}_1 and so on if that exists already.
        checkpoint: from load_checkpoint; None for a new run.

    Attributes:
        step: environment steps so far.
        folder: the run's folder, as it is named to the user; `path` is the same from the root.
        recent_returns: returns of the last 50 episodes.
    """

    def __init__(self, args, run_name, checkpoint=None):
        self.args, self.run_name, self.resumed = args, run_name, checkpoint is not None
        self.total_timesteps = args.total_timesteps
        self.step = self.start_step = self.last_checkpoint = checkpoint["step"] if self.resumed else 0
        self.recent_returns = collections.deque(checkpoint["recent_returns"] if self.resumed else [], maxlen=50)
        self.signal = None  # the first signal that came

    def __enter__(self):
        with contextlib.ExitStack() as cleanup:
            self._set_handlers(cleanup)  # before status.json says that the run is under way
            try:
                self._open(cleanup)
            except OSError as error:
                fail(f"{error}; what was written before stays")
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, error_type, error, traceback):
        with self._cleanup:
            if error is None:
                try:
                    self._record_end("finished")
                except OSError as full_disk:
                    error = full_disk
            match error:
                case None:
                    speed = f"{self.step:,} steps at {self.sps(self.step):,} steps/s"
                    returns = "no episode has ended"
                    if recent := len(self.recent_returns):
                        returns = f"mean return of the last {recent} episodes {self.mean_return():.1f}"
                    with printing():
                        print(f"{speed}; {returns}")
                    return
                case FloatingPointError():
                    state, status, message = "diverged", DIVERGED, str(error)
                case ActionNotFinite():
                    agent = f"{self.args.optimizer} with step size {self.args.learning_rate:g}"
                    message = f"{agent}: actions not finite after {self.step:,} steps"
                    state, status = "diverged", DIVERGED
                case EnvironmentFailed():
                    state, status, message = "failed", ERROR, f"--env-id {self.args.env_id}: {error}"
                case OSError():  # the disk is full, or a folder was removed
                    state, status, message = "failed", ERROR, f"{error}; what was written before stays"
                case SystemExit(code=str(line)):  # as an evaluation's environment can't be made
                    state, status, message = "failed", ERROR, line.removeprefix("error: ")
                case SystemExit(code=code) if code == INTERRUPTED:
                    state, status, message = "interrupted", INTERRUPTED, f"by {signal.Signals(self.signal).name}"
                case _:
                    state, status, message = "failed", None, f"{error_type.__name__}: {error}"
            with contextlib.suppress(OSError):  # a full disk, which is being reported already
                self._record_end(state, message)
            hint = ""
            if state != "diverged" and list(Path(self.path).glob("checkpoint*.pt")):
                hint = f"; to go on: --resume {shlex.quote(self.folder)}"
            if state == "interrupted":
                done = f"{self.step:,} of {self.total_timesteps:,} steps"
                with printing():
                    print(f"interrupted {message} after {done}{hint}")
            elif status is not None:
                fail(message + hint, status)

    def _set_handlers(self, cleanup):
        """Handle signals until `cleanup`, where that is possible: in the main thread."""
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                cleanup.callback(signal.signal, signum, signal.signal(signum, self._on_signal))

    def _on_signal(self, signum, frame):
        if signum == signal.SIGINT and self.signal is not None:
            os._exit(128 + signum)  # at once, whatever is under way
        self.signal = signum
        with contextlib.suppress(RuntimeError), printing():  # a print under way may be what the signal has interrupted
            print(f"\n{signal.Signals(signum).name}: the update under way ends first, and a checkpoint is written")

    def _open(self, cleanup):
        """Make or lock the folder, and open all that writes there; `cleanup` closes it."""
        args = self.args
        self.folder = args.resume if self.resumed else self._make_folder()
        self.path = os.path.abspath(self.folder)  # an environment may leave the folder
        self.lock = lock(self.path, timeout=2)
        before = read_status(self.path)
        unlocked = self.lock is not None and not self.lock.is_locked and self.resumed and before["state"] == "running"
        if self.lock is None or (unlocked and process_lives(before)):
            fail(f"--resume {self.folder}: the run {UNDER_WAY}")
        cleanup.callback(self.lock.release)
        if self.resumed and before["state"] in ("finished", "diverged"):  # since its checkpoint was read
            fail(f"--resume {self.folder}: the run is {before['state']}, so there is nothing to go on with")
        if args.track:
            self._start_wandb()
        # if the writer's thread fails on a full disk, the next add_event raises its error and reports it
        cleanup.callback(setattr, threading, "excepthook", threading.excepthook)
        threading.excepthook = lambda e: None if issubclass(e.exc_type, OSError) else threading.__excepthook__(e)
        # readers of the events ignore what was logged after the checkpoint, because it is logged again
        self.writer = SummaryWriter(self.path, purge_step=self.step + 1 if self.resumed else None)
        cleanup.callback(self._close_writer)
        self.status = {
            "state": "running", "message": "", "step": self.step, "total_timesteps": args.total_timesteps,
            "return": None, "start": now(), "updated": None, "end": None, "resumed_at": [],
            "script": script_of(args), "args": asdict(args), "versions": versions(), "commit": commit(),
            "host": socket.gethostname(), "pid": None,
        }  # fmt: skip
        if self.resumed:
            self.status |= {"start": before["start"], "resumed_at": [*before["resumed_at"], self.step]}
        else:
            rows = "\n".join(f"|{field.name}|{getattr(args, field.name)}|" for field in fields(args))
            self.writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
        self.write_status(pid=os.getpid())
        # some terminals have no width, as in containers: there a bar would be invisible
        self.terminal = sys.stdout.isatty() and os.get_terminal_size(sys.stdout.fileno()).columns > 0
        options = dict(unit=" steps", file=sys.stdout, disable=not self.terminal, delay=1e-6)  # until the first update
        self.bar = tqdm(total=self.total_timesteps, initial=self.step, **options)
        with printing():
            agent = f"{args.optimizer} with step size {args.learning_rate:g}"
            print(f"{agent} on {args.env_id}, seed {args.seed}, in {self.folder}")
        self.start_time = self.last_line = time.perf_counter()

    def _make_folder(self):
        try:
            return new_folder(f"runs/{file_name(self.run_name)}")
        except OSError as error:
            fail(f"the run folder can't be made: {error}")

    def _start_wandb(self):
        import wandb

        name = os.path.basename(self.path)  # not of --resume .
        try:
            wandb.init(
                project=self.args.wandb_project_name,
                entity=self.args.wandb_entity,
                sync_tensorboard=True,
                config=vars(self.args),
                name=name,
                id=re.sub("[:;,#?/']", "-", name),
                resume="allow",
                save_code=True,
                settings=wandb.Settings(init_timeout=30),
            )
        except Exception as error:  # no account, no network, no such project
            if self.step == 0:
                self.lock.release()  # Windows removes no file that is open
                shutil.rmtree(self.folder)
            fail(f"--track: W&B can't be used ({error}); log in, set WANDB_MODE=offline, or leave --track out")

    def checkpoint(self, step, get_state):
        """Write a checkpoint if one is due or a signal has come; after a signal, end the program.

        Args:
            step: environment steps so far.
            get_state: function without arguments that returns what the algorithm needs to resume (see get_state).

        Raises:
            SystemExit: a signal has come.
        """
        self.step = step
        interval = self.args.checkpoint_interval
        if self.signal is None and (interval == 0 or step - self.last_checkpoint < interval):
            return
        self.writer.flush()  # a resumed run does not log again what came before its checkpoint
        state = {"format": CHECKPOINT_FORMAT, "args": asdict(self.args), "step": step}
        content = io.BytesIO()
        torch.save(state | {"recent_returns": list(self.recent_returns)} | get_state(), content)
        previous = f"{self.path}/checkpoint_previous.pt"
        write_atomically(f"{self.path}/checkpoint.pt", content.getvalue(), keep=previous)
        self.last_checkpoint = step
        self.write_status()
        if self.signal is not None:
            sys.exit(INTERRUPTED)

    def write_status(self, **changes):
        """Write status.json, with the current step and return and the given changes."""
        self.status |= {"step": self.step, "updated": now()} | changes
        self.status["return"] = self.mean_return()
        write_atomically(f"{self.path}/status.json", json.dumps(self.status, indent=1).encode())

    def save_model(self, agent, envs):
        """Save the agent, and what scripts/evaluate.py needs besides, to {folder}/{exp_name}.pt."""
        content = io.BytesIO()
        torch.save(model_of(self.args, agent.state_dict(), [env.get_state() for env in envs]), content)
        name = f"{file_name(self.args.exp_name)}.pt"
        write_atomically(f"{self.path}/{name}", content.getvalue())
        with printing():
            self.bar.close()
            print(f"model saved to {self.folder}/{name}")

    def log(self, step, scalars):
        """Log `scalars`, {tag: number}, at `step`."""
        self.step = step
        # one event for all scalars, instead of add_scalar's one for each: with short episodes logging is 5% of a run
        values = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in scalars.items()]
        self.writer.file_writer.add_event(Event(summary=Summary(value=values)), step)

    def log_episode(self, step, env):
        """Log the return and length of the episode that has just ended in `env`, a NormalizedEnv."""
        self.recent_returns.append(env.episode_return)
        self.log(step, {"charts/episodic_return": env.episode_return, "charts/episodic_length": env.episode_length})

    def progress(self, step):
        """Move the bar to `step`; if the output is not a terminal, print a line every ten seconds instead."""
        recent = f"return {self.mean_return():.1f}" if self.recent_returns else "no episode has ended"
        if self.terminal:
            with printing():
                self.bar.set_postfix_str(recent, refresh=False)
                self.bar.update(step - self.bar.n)
        elif (time_now := time.perf_counter()) - self.last_line >= 10:
            self.last_line = time_now
            sps = self.sps(step)
            left = (self.total_timesteps - step) / max(sps, 1)
            done = f"{step:,}/{self.total_timesteps:,} steps"
            with printing():
                print(f"{done}, {sps:,.0f} steps/s, {recent}, {left:.0f} s left")

    def mean_return(self):
        """Return the mean return of the last 50 episodes; None before the first."""
        return float(np.mean(self.recent_returns)) if self.recent_returns else None

    def sps(self, step):
        """Return the environment steps per second, an integer, since this process began to train."""
        return int((step - self.start_step) / (time.perf_counter() - self.start_time))

    def _record_end(self, state, message=""):
        """Complete the event file, and write how the run ended to status.json; remove a finished run's checkpoints.

        Raises:
            OSError: something could not be written.
        """
        with printing():
            self.bar.close()
        try:
            if state == "diverged":
                self.writer.add_text("diverged", message, self.step)
            self.writer.close()
        finally:
            self.write_status(state=state, message=message, end=now())
        if state == "finished":
            for name in ("checkpoint.pt", "checkpoint_previous.pt"):
                Path(self.path, name).unlink(missing_ok=True)

    def _close_writer(self):
        with contextlib.suppress(OSError):  # a full disk, which is being reported already
            self.writer.close()


_masks = threading.local()  # of the signals that the forking thread had blocked


def _before_fork():
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _after_fork():
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _after_fork_in_child():
    """Keep a run's signals from a process that its environment forks: there SIGTERM ends it, and the others do nothing.

    Till then they are blocked, because Python forgets a signal that comes as the process begins.
    """
    for signum in SIGNALS:
        if isinstance(getattr(signal.getsignal(signum), "__self__", None), Run):
            signal.signal(signum, signal.SIG_DFL if signum == signal.SIGTERM else signal.SIG_IGN)
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


def now():
    """Return the local time with its offset from UTC, as in 2026-11-25T09:00:00+01:00."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
