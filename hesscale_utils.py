"""What the agents share besides mathematics: command line, threads, arrays and plain data."""

import contextlib
import importlib.util
import io
import math
import os
import re
import shlex
import subprocess
import sys

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
    print(line, file=sys.stderr)
    sys.exit(status)


def parse_args(args_class):
    """Parse the command line into `args_class` with tyro; end the program with one line if tyro cannot read it."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(args_class)
    except SystemExit as exit:
        if exit.code in (0, None):
            raise
        # tyro draws a box, or lines of "-" if the output is not UTF-8; the line below its title says what is wrong
        lines = [line.strip("╭╮╰╯├┤│─ ") for line in stderr.getvalue().splitlines()]
        lines = [line for line in lines if line.strip("-")]
        fail(f"{lines[1] if lines[1:] else 'unreadable command line'} (see {os.path.basename(sys.argv[0])} --help)")


def check_args(args):
    """End the program with one line if an argument's value is invalid; call this before making anything."""

    def check(condition, wanted, *names):
        for name in names:
            value = getattr(args, name, None)  # None: an optional flag left out, or a flag of the other script
            if value is not None and not condition(value):
                fail(f"--{name.replace('_', '-')} {value}: {wanted}")

    check_extras(args)
    check(lambda n: n >= 1, "must be at least 1", "total_timesteps", "num_envs", "num_steps")
    check(lambda n: n >= 1, "must be at least 1", "num_minibatches", "update_epochs", "eval_episodes")
    check(lambda n: n >= 0, "must be at least 0, which turns evaluations off", "eval_interval")
    check(lambda name: name in OPTIMIZERS, f"choose one of {', '.join(OPTIMIZERS)}", "optimizer")
    above_zero = "learning_rate", "eps", "delta", "clip_coef", "max_grad_norm", "target_kl"
    check(lambda x: 0 < x < math.inf, "must be a number above 0", *above_zero)
    check(lambda x: 0 <= x <= 1, "must be in [0, 1]", "gamma", "gae_lambda")
    check(lambda x: 0 <= x < math.inf, "must be a number >= 0", "ent_coef")
    check(lambda n: 0 <= n < 2**32, "must be in [0, 2^32)", "seed")
    check(lambda n: n >= 0, "must be at least 0, which turns checkpoints off", "checkpoint_interval")
    rollout = args.num_envs * args.num_steps
    check(lambda n: n >= rollout, f"is less than one rollout, num_envs * num_steps = {rollout}", "total_timesteps")


def file_name(text, instead="-"):
    """Return `text` as a name for a file or folder: what Windows or another system forbids there becomes `instead`."""
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]', instead, text)


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

    On the CPU they take numpy arrays, which takes a third off the time of a forward and a backward pass
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
        optimizers: dict of ScaledOptimizers, {network: optimizer}.
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
