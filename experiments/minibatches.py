"""Minibatches of real agents in training, with the parameters that they met.

ppo_hesscale.py and a2c_hesscale.py run as they are, while their losses and TanhMLP.backward are watched. Of the first,
the middle and the last SPAN updates some are kept: what went into the networks and into their losses.
"""

import diagonals  # first, for it sets the number of threads and sys.path

# isort: split

import contextlib
import itertools
import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import a2c_hesscale
import ppo_hesscale
from hesscale_core import TanhMLP
from hesscale_utils import check_args, fail

SPAN = 320  # updates of a moment, those of one rollout of PPO
SINGLES = 8  # samples of a minibatch that are also taken one by one
AGENTS = {"a2c": a2c_hesscale, "ppo": ppo_hesscale}
POLICY_LOSSES = {"a2c": "gaussian_policy_gradient_loss", "ppo": "gaussian_ppo_loss"}
MOMENTS = {"start": 0.0, "middle": 0.5, "end": 1.0}


@dataclass
class RunArgs:
    quick: bool = False
    """whether to do little of everything, to see that it runs"""
    data: Path | None = None
    """a folder with MNIST's train-images-idx3-ubyte and train-labels-idx1-ubyte, also as .gz; None for the digits"""
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
    minibatches: int = 16
    """how many minibatches are kept of each moment"""
    cache: Path = Path("minibatches")
    """where the minibatches are kept, so that no run is made twice; to be deleted when the agents change"""

    def check(self):
        """End the program with one line where a value can't work; make the numbers small for --quick."""
        for name, value in vars(self).items():
            if type(value) is int and value < 1:
                fail(f"--{name.replace('_', '-')} {value}: must be at least 1")
        for agent in {*self.agents} - {*AGENTS}:
            fail(f"--agents {agent}: choose from {', '.join(AGENTS)}")
        if self.optimizer.endswith("adahessian"):
            fail(f"--optimizer {self.optimizer}: works without TanhMLP.backward, which is what is watched")
        if self.quick:
            self.env_ids, self.seeds, self.total_timesteps, self.minibatches = self.env_ids[:1], 2, 2 * 2048, 2

    def runs(self):
        """(agent, env_id, seed) of every run, seed by seed: what is interrupted leaves a whole grid of fewer seeds."""
        seeds = range(1, self.seeds + 1)
        return [(agent, env_id, seed) for seed, agent, env_id in itertools.product(seeds, self.agents, self.env_ids)]


@contextlib.contextmanager
def watched(name, wanted):
    """Keep of the agent's updates, counted from 0, those in `wanted`, as a dictionary for each of the two networks."""
    agent = AGENTS[name]
    originals = {loss: getattr(agent, loss) for loss in (POLICY_LOSSES[name], "value_loss")}
    backward, kept, latest, update = TanhMLP.backward, [], {}, -1

    def watch(network, loss):
        def watched_loss(output, *arguments):
            nonlocal update
            update += network == "actor"
            result = loss(output, *arguments)
            latest[network] = result[1], arguments  # the gradient, by which its backward pass is known
            return result

        return watched_loss

    def watched_backward(net, grad_output, *arguments):
        for network, (gradient, of_loss) in latest.items():
            if update in wanted and gradient is grad_output:
                params, x = [p.detach().clone() for p in net.parameters()], torch.tensor(net._inputs[0])
                of_loss = [torch.tensor(a) for a in of_loss]  # copies: the agents' arrays are used again
                kept.append(dict(update=update, network=network, params=params, x=x, arguments=of_loss))
        return backward(net, grad_output, *arguments)

    for network, (loss, original) in zip(("actor", "critic"), originals.items(), strict=True):
        setattr(agent, loss, watch(network, original))
    TanhMLP.backward = watched_backward
    try:
        yield kept
    finally:
        TanhMLP.backward = backward
        for loss, original in originals.items():
            setattr(agent, loss, original)


def run(name, of_run, wanted):
    """Run the agent, silent, in a folder that is deleted, with its signal handlers taken back; return what was kept."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(watched(name, wanted))
        stack.enter_context(contextlib.chdir(stack.enter_context(tempfile.TemporaryDirectory())))
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        stack.enter_context(np.errstate())
        try:
            AGENTS[name].main(of_run)
        except FloatingPointError as error:
            fail(f"--optimizer {of_run.optimizer}: {name} on {of_run.env_id}, seed {of_run.seed}, diverges: {error}")
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
    return kept


def record(name, env_id, seed, args):
    """{(network, moment): (loss, params, x, targets)} of a run, as diagonals.errors has it: a minibatch is a group."""
    of_run = AGENTS[name].Args(
        env_id=env_id, seed=seed, total_timesteps=args.total_timesteps, optimizer=args.optimizer, checkpoint_interval=0
    )
    check_args(of_run)
    per_rollout = of_run.update_epochs * of_run.num_minibatches if name == "ppo" else 1
    updates = args.total_timesteps // of_run.num_steps * per_rollout
    span = min(SPAN, updates)
    # in the middle of equal parts, so that PPO's come from all its epochs and not only from where the ratio is 1
    within = ((np.arange(args.minibatches) + 0.5) * span / args.minibatches).astype(int)
    wanted = {moment: {int((updates - span) * at) + int(i) for i in within} for moment, at in MOMENTS.items()}
    parts = name, env_id.replace("/", "-"), args.optimizer, seed, args.total_timesteps, args.minibatches
    path = args.cache / ("_".join(map(str, parts)) + ".pt")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = run(name, of_run, set.union(*wanted.values()))
        if not kept:
            fail(f"--env-ids {env_id}: its actions are choices; only a Gaussian policy's losses are watched")
        torch.save(kept, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    kept = torch.load(path, weights_only=True)
    return {
        (network, moment): _groups(name, network, [k for k in kept if k["network"] == network and k["update"] in of])
        for network, (moment, of) in itertools.product(("actor", "critic"), wanted.items())
    }


def _groups(name, network, kept):
    """(loss, params, x, targets) of the minibatches kept of a network, in float64."""
    stack = lambda tensors: torch.stack(tensors).double()  # noqa: E731
    params = tuple(map(stack, zip(*(k["params"] for k in kept), strict=True)))
    x, arguments = stack([k["x"] for k in kept]), [*map(stack, zip(*(k["arguments"] for k in kept), strict=True))]
    if network == "critic":
        return diagonals.VALUE, params, x, tuple(arguments[:1])  # returns
    log_std, actions, *others = arguments
    log_std = log_std[:, None].expand(*actions.shape).contiguous()  # every sample's
    if name == "a2c":
        return diagonals.POLICY_GRADIENT, params, x, (log_std, actions, others[0])  # advantages
    old_log_probs, advantages, clip_coef, *_ = others
    return diagonals.ppo_with(float(clip_coef[0])), params, x, (log_std, actions, old_log_probs, advantages)


def one_by_one(params, x, targets):
    """The first SINGLES samples of every minibatch, each as a group of its own."""
    n = min(SINGLES, x.shape[1])
    alone = lambda t: t[:, :n].flatten(0, 1)[:, None]  # noqa: E731
    return tuple(p.repeat_interleave(n, 0) for p in params), alone(x), tuple(map(alone, targets))
