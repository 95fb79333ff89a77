"""Minibatches of real agents in training, with the networks' parameters at that time.

ppo_hesscale.py and a2c_hesscale.py run unchanged; `recording` only wraps their losses and TanhMLP.backward. It records
some of the first, the middle and the last SPAN updates: the inputs of the networks and the arguments of their losses.
"""

import contextlib
import io
import itertools
import math
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import diagonals
import numpy as np
import torch

import a2c_hesscale
import ppo_hesscale
from hesscale_core import Gaussian, TanhMLP
from hesscale_envs import make_env
from hesscale_run import DIVERGED, first_sentence
from hesscale_utils import check_args, fail

SPAN = 320  # updates that make a moment, those of one rollout of PPO
SINGLES = 8  # samples of a minibatch that are also compared one by one
AGENTS = {"a2c": a2c_hesscale, "ppo": ppo_hesscale}
POLICY_LOSSES = {"a2c": "policy_gradient_loss", "ppo": "ppo_loss"}
MOMENTS = {"start": 0.0, "middle": 0.5, "end": 1.0}


@dataclass
class RunArgs:
    quick: bool = False
    """whether to do a little of everything, to see that it runs"""
    data: Path | None = None
    """a folder with MNIST's train-images-idx3-ubyte and train-labels-idx1-ubyte, or their .gz; None for the digits"""
    env_ids: tuple[str, ...] = ("Hopper-v4", "HalfCheetah-v4", "Ant-v4")
    """the agents' environments"""
    agents: tuple[str, ...] = ("a2c", "ppo")
    """the agents"""
    seeds: int = 3
    """runs of each agent in each environment, with the seeds 1, 2, ..."""
    total_timesteps: int = 300_000
    """steps of a run"""
    optimizer: str = "adahesscale"
    """the runs' optimizer"""
    step_size: float = 3e-4
    """the runs' step size"""
    minibatches: int = 16
    """the number of minibatches recorded at each moment"""
    cache: Path = Path("minibatches")
    """the folder of the recorded minibatches, which saves repeating runs; delete it when the agents change"""

    def check(self):
        """End the program with one line if a value is invalid; make the numbers small for --quick."""
        for name, value in vars(self).items():
            flag = f"--{name.replace('_', '-')}"
            most = sys.maxsize if name == "total_timesteps" else 10**6
            if type(value) is int and not 1 <= value <= most:
                fail(f"{flag} {value}: must be at least 1" + f", and at most {most:,}" * (value > most))
            if type(value) is float and not 0 < value < math.inf:
                fail(f"{flag} {value}: must be a number above 0")
            if type(value) is tuple and len({*value}) < len(value):
                fail(f"{flag} {' '.join(value)}: names a value twice")
        for agent in {*self.agents} - {*AGENTS}:
            fail(f"--agents {agent}: choose from {', '.join(AGENTS)}")
        if self.optimizer.endswith("adahessian"):
            fail(f"--optimizer {self.optimizer}: never calls TanhMLP.backward, where minibatches are recorded")
        try:
            if self.out.is_dir():
                example = self.out / type(self).out.name
                fail(f"--out {self.out}: is a folder; give how the files' names begin, as {example}")
            for name, path in (("out", self.out), ("cache", self.cache / "file")):
                folder = next(parent for parent in path.absolute().parents if parent.exists())
                if not folder.is_dir() or not os.access(folder, os.W_OK):
                    fail(f"--{name} {getattr(self, name)}: {folder} is not a folder that can be written to")
        except OSError as error:  # a name is too long
            fail(f"--out {self.out} or --cache {self.cache}: {error.strerror}")
        if self.quick:
            if self.out.resolve().is_relative_to(diagonals.ROOT / "results"):
                fail(f"--out {self.out}: holds the figures of whole runs; --quick is to see that all runs, elsewhere")
            self.env_ids, self.seeds, self.total_timesteps, self.minibatches = self.env_ids[:1], 2, 2 * 2048, 2

    def check_runs(self):
        """End the program with one line if one of the runs couldn't begin, before the first does."""
        for name, env_id in itertools.product(self.agents, self.env_ids):
            args = agent_args(name, env_id, 1, self)
            check_args(args)
            env = make_env(args)
            env.close()
            if env.discrete:
                fail(f"--env-ids {env_id}: its actions are choices; only a Gaussian policy's minibatches are recorded")

    def runs(self):
        """Return (agent, env_id, seed) of every run, seed by seed, so that an interruption leaves a whole grid."""
        seeds = range(1, self.seeds + 1)
        return [(agent, env_id, seed) for seed, agent, env_id in itertools.product(seeds, self.agents, self.env_ids)]


@contextlib.contextmanager
def recording(name, wanted):
    """Record the agent's updates that are in `wanted`, counted from 0, while the context is open.

    Gives a list, to which each of these updates of a Gaussian policy appends a dictionary for each network: `update`,
    `network` ("actor" or "critic"), its parameters `params` without log_std, its input `x`, and `arguments` of the
    loss after the network's output.
    """
    agent = AGENTS[name]
    original_losses = {function: getattr(agent, function) for function in (POLICY_LOSSES[name], "value_loss")}
    policy_loss, value_loss = original_losses.values()
    original_backward, records, latest, update = TanhMLP.backward, [], {}, -1

    def recorded_policy_loss(policy, *arguments):
        nonlocal update
        result = policy_loss(policy, *arguments)
        if isinstance(policy, Gaussian):
            update += 1
            latest["actor"] = result.grad, (policy.log_std, *arguments)
        return result

    def recorded_value_loss(value, *arguments):
        result = value_loss(value, *arguments)
        latest["critic"] = result.grad, arguments
        return result

    def recorded_backward(net, grad_output, *arguments, **options):
        for network, (grad, loss_arguments) in latest.items():
            if update in wanted and grad is grad_output:  # it is this network's loss
                records.append({
                    "update": update,
                    "network": network,
                    "params": [p.detach().clone() for layer in net.layers for p in layer.parameters()],
                    "x": torch.tensor(net._inputs[0]),
                    "arguments": [torch.tensor(argument) for argument in loss_arguments],  # copies
                })  # fmt: skip
        return original_backward(net, grad_output, *arguments, **options)

    for function, recorded in zip(original_losses, (recorded_policy_loss, recorded_value_loss), strict=True):
        setattr(agent, function, recorded)
    TanhMLP.backward = recorded_backward
    try:
        yield records
    finally:
        TanhMLP.backward = original_backward
        for function, original in original_losses.items():
            setattr(agent, function, original)


def run(name, args, wanted):
    """Run the agent with its own `args`, silently, in a folder that is deleted.

    Returns the records of the updates in `wanted`. Ends the program with one line if the run diverges.
    """
    stderr = io.StringIO()
    with contextlib.ExitStack() as stack:
        records = stack.enter_context(recording(name, wanted))
        stack.enter_context(contextlib.chdir(stack.enter_context(tempfile.TemporaryDirectory())))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(stderr))
        stack.enter_context(np.errstate())  # restores numpy's settings, which the agent changes
        try:
            AGENTS[name].main(args)
        except SystemExit as end:
            if end.code != DIVERGED:
                raise
            reason = stderr.getvalue().removeprefix("error: ")
            fail(f"--optimizer {args.optimizer}: {name} on {args.env_id}, seed {args.seed}, diverges: {reason}")
    return records


def agent_args(name, env_id, seed, args):
    """Return the arguments of an agent's run, of an experiment's `args`."""
    return AGENTS[name].Args(
        env_id=env_id, seed=seed, total_timesteps=args.total_timesteps, optimizer=args.optimizer,
        learning_rate=args.step_size, checkpoint_interval=0, adam_log_std=False,  # as in the paper
    )  # fmt: skip


def record(name, env_id, seed, args):
    """Return {(network, moment): (loss, params, x, targets)} of a run, the arguments of diagonals.errors.

    A minibatch is a group.
    """
    run_args = agent_args(name, env_id, seed, args)
    per_rollout = run_args.update_epochs * run_args.num_minibatches if name == "ppo" else 1
    updates = args.total_timesteps // run_args.num_steps * per_rollout
    span = min(SPAN, updates)
    # the middles of equal parts, so that PPO's come from all its epochs, not only from the first, where the ratio is 1
    offsets = ((np.arange(args.minibatches) + 0.5) * span / args.minibatches).astype(int)
    wanted = {moment: {int((updates - span) * at) + int(i) for i in offsets} for moment, at in MOMENTS.items()}
    parts = name, env_id.replace("/", "-"), args.optimizer, args.step_size, seed, args.total_timesteps, args.minibatches
    path = args.cache / ("_".join(map(str, parts)) + ".pt")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        records = run(name, run_args, set.union(*wanted.values()))
        torch.save(records, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    try:
        records = torch.load(path, weights_only=True)
    except Exception as error:  # torch.load raises anything on random bytes
        fail(f"--cache {args.cache}: {path.name} is damaged ({first_sentence(error)}); delete it, to record it anew")
    return {
        (network, moment): _groups(name, [r for r in records if r["network"] == network and r["update"] in chosen])
        for network, (moment, chosen) in itertools.product(("actor", "critic"), wanted.items())
    }


def _groups(name, records):
    """Return (loss, params, x, targets) of the records of one network, in float64."""

    def stack(tensors):
        return torch.stack(tensors).double()

    params = tuple(map(stack, zip(*(r["params"] for r in records), strict=True)))
    x, arguments = stack([r["x"] for r in records]), map(stack, zip(*(r["arguments"] for r in records), strict=True))
    if records[0]["network"] == "critic":
        returns, *_ = arguments
        return diagonals.VALUE, params, x, (returns,)
    log_std, actions, *others = arguments
    log_std = log_std[:, None].expand(*actions.shape).contiguous()  # each sample's
    if name == "a2c":
        advantages, *_ = others
        return diagonals.POLICY_GRADIENT, params, x, (log_std, actions, advantages)
    old_log_probs, advantages, clip_coef, *_ = others
    return diagonals.ppo_with(float(clip_coef[0])), params, x, (log_std, actions, old_log_probs, advantages)


def one_by_one(params, x, targets):
    """Return params, x and targets with the first SINGLES samples of every minibatch, each as a group of its own."""
    n = min(SINGLES, x.shape[1])

    def separate(array):
        return array[:, :n].flatten(0, 1)[:, None]

    return tuple(p.repeat_interleave(n, 0) for p in params), separate(x), tuple(map(separate, targets))
