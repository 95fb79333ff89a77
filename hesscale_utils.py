"""What the agents share besides mathematics: command line, threads, arrays and plain data."""

import contextlib
import decimal
import errno
import importlib.util
import io
import itertools
import math
import os
import random
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from types import UnionType
from typing import Union, get_args, get_origin

import numpy as np
import threadpoolctl
import torch
import tyro

from hesscale_core import OPTIMIZERS


def fail(message, status=1):
    """End the program with one line on stderr and the given exit status.

    Raises:
        SystemExit: always. Its code is the line if `status` is 1, else `status`.
    """
    line = "error: " + " ".join(str(message).split())
    if status == 1:
        sys.exit(line)
    with printing("stderr"):
        print(line, file=sys.stderr)
    sys.exit(status)


def warn(text):
    """Print a line on stderr that begins with "warning: "."""
    with printing("stderr"):
        print(f"warning: {' '.join(text.split())}", file=sys.stderr)


@contextlib.contextmanager
def printing(name="stdout"):
    """A context whose prints to sys.stdout or, by `name`, sys.stderr can't end the program.

    If nobody reads them any more, or a disk is full, they are lost: a Ctrl-C ends `tee` too, and with it what the
    program prints to.
    """
    try:
        yield
        getattr(sys, name).flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
            _print_to_nowhere(name)


def _print_to_nowhere(name):
    os.dup2(os.open(os.devnull, os.O_WRONLY), getattr(sys, name).fileno())


@contextlib.contextmanager
def quiet_end():
    """A context that ends the program without a traceback: with status 130 at Ctrl-C, and 141 where no one reads on."""
    try:
        try:
            yield
        finally:
            print(end="", flush=True)  # what is left fails here, and not in the interpreter's end
    except KeyboardInterrupt:
        sys.exit(130)
    except MemoryError as error:
        fail(f"out of memory: {error}; give smaller numbers, as of --num-steps and --num-envs")
    except BrokenPipeError:  # of `| head`
        _print_to_nowhere("stdout")  # or it fails again
        sys.exit(141)
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO):  # not of the output
            raise
        _print_to_nowhere("stdout")
        fail(f"the output can't be written ({error})")


def make_rng(seed):
    """Return the numpy Generator of an agent's own draws.

    Not default_rng(seed): that is gymnasium's generator of an environment with this seed, and an agent whose noise
    foretells what its environment draws does better than chance in a fair game.
    """
    return np.random.default_rng([1, seed])


def parse_args(args_class):
    """Parse the command line into the dataclass `args_class`; end the program with one line if it can't be read.

    Besides what tyro reads, a flag without a value may have one, and a whole number may be written 1e6; see
    plain_switches and _reading_rule.
    """
    for name in "stdout", "stderr":
        if getattr(sys, name) is None:  # closed, as by >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        if isinstance(getattr(sys, name), io.TextIOWrapper):
            getattr(sys, name).reconfigure(errors="replace")  # ASCII has not all letters of a path
    words = plain_switches(args_class, sys.argv[1:])
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_reading_rule)
    stderr, before = io.StringIO(), dict(os.environ)
    try:
        if not {"-h", "--help"} & {*words}:
            os.environ["COLUMNS"] = "10000"  # or tyro breaks its lines, in the middle of a word if need be
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(args_class, args=words, registry=registry)
    except SystemExit as exit:
        if exit.code in (0, None):
            raise
        fail(f"{_one_line(stderr.getvalue())} (see {os.path.basename(sys.argv[0])} --help)")
    except AssertionError as error:  # of --tyro-print-completion for an unknown shell
        fail(error)
    except BrokenPipeError:  # of --help | head
        os._exit(0)
    finally:
        os.environ.pop("COLUMNS", None)
        os.environ |= before


BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def plain_switches(args_class, words):
    """Return the command line `words` with a bool's --flag=True or --flag True, as in W&B's sweeps, as --flag alone.

    False gives --no-flag. Ends the program with one line if the value after = is neither.
    """
    names = {field.name.replace("_", "-") for field in fields(args_class)}
    switches = {field.name.replace("_", "-") for field in fields(args_class) if field.type is bool}
    words, plain = [*words], []
    while words and words[0] != "--":
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        name = flag.replace("_", "-").removeprefix("--")
        inverted = name not in switches
        name = name.removeprefix("no-") if inverted else name
        if flag.startswith("--") and name in switches:
            if not equals and words and words[0].lower() in BOOLEANS:
                equals, value = "=", words.pop(0)
            if equals and value.lower() not in BOOLEANS:
                fail(f"{word}: must be True or False; or give --{name} or --no-{name} without a value")
            if equals:
                word = f"--{name}" if BOOLEANS[value.lower()] != inverted else f"--no-{name}"
        known = name in names or not word.startswith("--")
        plain += [word] if known else word.split("=", 1)  # tyro finds flags alike only to one without a value
    return plain + words


def _reading_rule(type_info):
    """Tell tyro how to read int, float, bool and str, these or None, and tuples of them: of one or more, or of N.

    A whole number may be written 1e6, and what can't be read is named in few words.
    """
    kind, several = type_info.type, get_origin(type_info.type) is tuple
    if several:
        kind, *more = get_args(kind)
        if more != [...] and {*more} != {kind}:
            return None
    number = "*" if several and more == [...] else 1 + len(more) if several else 1
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    readers = [READERS[kind] for kind in kinds if kind in READERS]
    if len(readers) != 1 or not {*kinds} <= {*READERS, type(None)}:
        return None

    def read(text):
        return None if text == "None" and type(None) in kinds else readers[0](text)

    def read_several(texts):
        if not texts:
            raise ValueError("has no values")
        return tuple(map(read, texts))

    metavar = "|".join("None" if kind is type(None) else kind.__name__.upper() for kind in kinds)
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=number,
        metavar=f"{metavar} ..." if number == "*" else " ".join([metavar] * number),
        instance_from_str=lambda texts: read_several(texts) if several else read(texts[0]),
        is_instance=lambda value: isinstance(value, tuple if several else kinds),
        str_from_instance=lambda value: [*map(str, value)] if several else [str(value)],
    )


def _boolean(text):
    if text.lower() not in BOOLEANS:
        raise ValueError(f"{text or repr(text)}: must be True or False")
    return BOOLEANS[text.lower()]


def _real_number(text):
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text or repr(text)}: must be a number") from None


def _whole_number(text):
    """Return the integer that `text` writes, as 1000000, 1_000_000 or 1e6.

    Raises:
        ValueError: it is not a whole number, or has more than 19 digits.
    """
    try:
        number = decimal.Decimal(text)
    except decimal.InvalidOperation:
        raise ValueError(f"{text or repr(text)}: must be a whole number") from None
    if number.is_finite() and number.adjusted() > 18:  # 1e999999999 would fill the memory
        raise ValueError(f"{text}: is too large")
    if not number.is_finite() or number != number.to_integral_value():
        raise ValueError(f"{text}: must be a whole number")
    return int(number)


READERS = {int: _whole_number, float: _real_number, bool: _boolean, str: str}


def _one_line(box):
    """Return the text of tyro's error as one line: without its frame, its title and help texts.

    The frame is drawn by lines or, if the output is not UTF-8, of "-" below the title and spaces.
    """
    blocks = [[]]
    for line in box.splitlines()[1:]:
        text = line[2:].rstrip(" │")
        if not text.strip("─-╯ "):
            blocks.append([])
        elif not text.startswith(" " * 8):  # a flag's help text
            blocks[-1].append(text.strip())
    texts = [" ".join(lines) for lines in blocks if lines]
    texts = [text for text in texts if not text.startswith(("For full help", "Argument help", "Got errors"))]
    return re.sub(r"^Error parsing (\S+):", r"\1", "; ".join(texts)).rstrip(".") or "unreadable command line"


def check_args(args):
    """End the program with one line if an argument's value is invalid; call this before making anything."""

    def check(condition, wanted, *names):
        for name in names:
            value = getattr(args, name, None)  # None: an optional flag left out, or a flag of the other script
            if value is not None and not condition(value):
                shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
                fail(f"--{name.replace('_', '-')} {repr(value) if value == '' else shown}: {wanted}")

    check_extras(args)
    check(lambda n: n >= 1, "must be at least 1", "total_timesteps", "num_envs", "num_steps")
    check(lambda n: n >= 1, "must be at least 1", "num_minibatches", "update_epochs", "eval_episodes")
    check(lambda n: n >= 0, "must be at least 0, which turns evaluations off", "eval_interval")
    check(lambda name: name in OPTIMIZERS, f"choose one of {', '.join(OPTIMIZERS)}", "optimizer")
    above_zero = "learning_rate", "eps", "delta", "clip_coef", "max_grad_norm", "target_kl", "desired_kl"
    check(lambda x: 0 < x < math.inf, "must be a number above 0", *above_zero)
    check(lambda x: 0 <= x <= 1, "must be in [0, 1]", "gamma", "gae_lambda")
    check(lambda x: 0 <= x < math.inf, "must be a number >= 0", "ent_coef")
    check(lambda betas: all(0 <= beta < 1 for beta in betas), "both must be in [0, 1)", "betas")
    check(lambda _: not args.anneal_lr, "--anneal-lr sets the step size, too; leave one of them out", "desired_kl")
    if args.optimizer.startswith("scaled-"):
        check(lambda _: False, f"{args.optimizer}'s trust region cancels the step size; leave one out", "desired_kl")
        if getattr(args, "reset_step", False):
            fail(f"--reset-step: {args.optimizer}'s trust region would shrink by its bias correction; leave one out")
    check(lambda n: 0 <= n < 2**32, "must be in [0, 2^32)", "seed")
    check(lambda n: n >= 0, "must be at least 0, which turns checkpoints off", "checkpoint_interval")
    texts = "env_id", "exp_name", "wandb_project_name", "wandb_entity"
    check(lambda name: name.isprintable(), "has characters that can't be printed", *texts)
    check(bool, "must not be empty", "env_id")
    if args.critic_ggn and (args.optimizer in ("sgd", "adam") or "adahessian" in args.optimizer):
        fail(f"--critic-ggn: {args.optimizer} does not use HesScale's diagonal, which this replaces; leave it out")
    for_file = "it names the model's file, so it must not"
    check(lambda name: name and name[0] != ".", f"{for_file} be empty or begin with a dot", "exp_name")
    check(lambda name: not set(name) & {*"/\\*?[]"}, f"{for_file} have any of / \\ * ? [ ]", "exp_name")
    check(lambda name: not name.startswith("checkpoint"), f"{for_file} begin as a checkpoint's does", "exp_name")
    check(lambda name: "tfevents" not in name, "TensorBoard would take the run's folder for a file", "exp_name")
    longest = max("env_id", "exp_name", key=lambda name: len(getattr(args, name)))
    length = len(f"{args.env_id}__{args.exp_name}__{args.optimizer}__{args.seed}__".encode())
    # of 255; the time comes after it, and W&B puts the time and more before it
    most = 217 if args.track else 235
    check(lambda name: length <= most, f"is too long: it names a folder, whose name is {length} bytes long", longest)
    rollout, larger = args.num_envs * args.num_steps, max("num_steps", "num_envs", key=lambda name: getattr(args, name))
    check(lambda n: rollout <= 1e8, f"num_envs * num_steps = {rollout:,} steps don't fit in memory", larger)
    check(lambda n: n >= rollout, f"is less than one rollout, num_envs * num_steps = {rollout}", "total_timesteps")


def file_name(text, instead="-"):
    """Return `text` as a name for a file or folder: what Windows or another system forbids there becomes `instead`."""
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]', instead, text)


def new_folder(path):
    """Make a new folder `path`, path_1, path_2, ..., and return which; no other process can have made the same.

    Raises OSError if it can't be made.
    """
    for n in itertools.count():
        folder = path + f"_{n}" * (n > 0)
        try:
            os.makedirs(folder)
            return folder
        except FileExistsError:
            continue


def check_installed(package, user, requirements):
    """End the program with one line if `package` is missing, which `user` needs and the file `requirements` has."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:  # without an origin, it is but a folder of that name, as W&B makes one
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), requirements)
        quote = subprocess.list2cmdline if os.name == "nt" else shlex.join
        command = quote([sys.executable, "-m", "pip", "install", "-r", path])
        fail(f"{user}: the package {package} is missing; install it by {command}")


def check_extras(args):
    """End the program with one line if a flag needs a package that is missing; call this before any work.

    Args:
        args: may have track and capture_video.
    """
    for flag, package in ("track", "wandb"), ("capture_video", "moviepy"):
        if getattr(args, flag, False):
            check_installed(package, f"--{flag.replace('_', '-')}", "requirements-extras.txt")


def limit_threads():
    """Let numpy and torch use one thread each, unless the environment variable OMP_NUM_THREADS is set.

    For layers of 64 units a second thread costs more than it brings. Set OMP_NUM_THREADS for wide layers.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        threadpoolctl.threadpool_limits(1)
        torch.set_num_threads(1)


def to_numpy(array):
    """Return a tensor as a numpy array, which on the CPU shares its memory; return anything else unchanged."""
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array


def make_to_net(device):
    """Return the function that converts a numpy array to what the networks take on `device`.

    On the CPU they take numpy arrays, which takes three fifths off the time of a forward and a backward pass
    (benchmarks/minibatch.py), and the function changes nothing but a tensor into an array that shares its memory.
    On a GPU they take tensors.
    """
    return to_numpy if device.type == "cpu" else lambda array: torch.as_tensor(array, device=device)


def check_finite(args, step, **quantities):
    """Check that all of `quantities`, each an array, a tensor or a number, are finite.

    Raises:
        FloatingPointError: one is not. The message names the first such quantity, the optimizer, its step size
            and `step`, the number of environment steps so far.
    """
    for name, value in quantities.items():
        if not np.isfinite(to_numpy(value)).all():
            raise FloatingPointError(
                f"{args.optimizer} with step size {args.learning_rate:g}: {name.replace('_', ' ')} not finite "
                f"after {step:,} steps"
            )


def curvature_figures(optimizers, scales):
    """Return the figures to log of what curvature does in an update, by tag.

    Args:
        optimizers: dict of ScaledOptimizers, {actor or critic: optimizer}.
        scales: (eta, trust_region) of each optimizer in each update since the last record, [updates][optimizers].
    """
    figures = {}
    for name, optimizer, steps in zip(optimizers, optimizers.values(), zip(*scales, strict=True), strict=True):
        if optimizer.needs_hess:
            figures[f"hesscale/negative_curvature_{name}"] = optimizer.negative_curvature
        if optimizer.scaled:
            eta, uHu = np.mean(steps, axis=0)
            figures |= {f"hesscale/eta_{name}": eta, f"hesscale/trust_region_{name}": uHu / 2}
    return figures


def feature_rank(features, delta=0.01):
    """Return how many singular values of `features` [B, n], from the largest on, make 1 - delta of their sum.

    This is the effective rank srank of Kumar et al. 2021, "Implicit Under-Parameterization Inhibits Data-Efficient Deep
    Reinforcement Learning", with their delta. NaN if a feature is not finite.
    """
    if not np.isfinite(features).all():
        return math.nan
    sums = np.cumsum(np.linalg.svd(features, compute_uv=False))
    return int((sums < (1 - delta) * sums[-1]).sum()) + 1


def stability_figures(agent, policy_before, obs):
    """Return the figures to log of what precedes a collapse, by tag: of the policy, and of each network.

    A tanh unit is saturated if its activation is beyond 0.99 in size for more than 95% of the observations: it passes
    on less than 2% of their gradients, 1 - 0.99^2 (Glorot and Bengio 2010, "Understanding the difficulty of training
    deep feedforward neural networks"). It is dead if its activation's standard deviation is below 1e-3: the next layer
    gets a constant, a second bias (Sokar et al. 2023's dormant neuron, "The Dormant Neuron Phenomenon in Deep
    Reinforcement Learning", is one for ReLU, whose constant is 0). A unit can be both.

    Args:
        agent: an Agent, whose parameters are those after the update.
        policy_before: its policy for `obs` before the update.
        obs: the rollout's observations [B, obs_dim], as the networks take them.
    """
    policy = agent.policy(obs)
    figures = {"stability/kl": to_numpy(policy_before.kl(policy))}
    if not agent.discrete:
        log_std = to_numpy(policy.log_std)
        figures |= {"stability/min_log_std": log_std.min(), "stability/max_log_std": log_std.max()}
    for name, net in agent.named_children():
        layers = [to_numpy(activations) for activations in net.hidden(obs)]
        units = np.concatenate(layers, axis=1)
        figures |= {
            f"stability/saturated_{name}": ((np.abs(units) > 0.99).mean(0) > 0.95).mean(),
            f"stability/dead_{name}": (units.std(0) < 1e-3).mean(),
            f"stability/rank_{name}": feature_rank(layers[-1]),
            f"stability/norm_{name}": math.sqrt(sum(float((p.detach() ** 2).sum()) for p in net.parameters())),
        }
    return figures


def to_plain(value):
    """Convert `value` to types that torch.load(weights_only=True) accepts: arrays become tensors.

    Raises:
        TypeError: the value is, or contains, something other than numbers, strings, arrays, lists, tuples and dicts.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return torch.tensor(value)  # a copy
    if type(value) in (list, tuple):
        return type(value)(map(to_plain, value))
    if type(value) is dict:
        return {key: to_plain(v) for key, v in value.items()}
    raise TypeError(f"a {type(value).__name__}")


def from_plain(value):
    """Convert the result of to_plain back; an array without dimensions becomes a number of its type."""
    if isinstance(value, torch.Tensor):
        return value.numpy().copy()[()]
    if type(value) in (list, tuple):
        return type(value)(map(from_plain, value))
    return {key: from_plain(v) for key, v in value.items()} if type(value) is dict else value


def get_random_states():
    """Return the states of Python's, numpy's and torch's global generators, as plain data and tensors."""
    states = {"random": random.getstate(), "numpy": to_plain(np.random.get_state(legacy=False))}
    cuda = {"cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else {}
    return states | {"torch": torch.get_rng_state()} | cuda


def set_random_states(states):
    """Restore what get_random_states returned."""
    random.setstate(states["random"])
    np.random.set_state(from_plain(states["numpy"]))
    torch.set_rng_state(states["torch"])
    for device, state in zip(range(torch.cuda.device_count()), states.get("cuda", []), strict=False):
        torch.cuda.set_rng_state(state, device)  # a machine with fewer GPUs, or none, passes over the rest


@contextlib.contextmanager
def random_states_kept():
    """Leave Python's, numpy's and torch's global generators as they were before."""
    states = get_random_states()
    try:
        yield
    finally:
        set_random_states(states)
