"""The time of a PPO minibatch, and of each trick that saves some of it: medians, in turns, on one thread.

    python benchmarks/minibatch.py [--csv results/minibatch.csv]

It times ppo_hesscale.py's `update`, from the shuffle to the last step, for one epoch over a rollout of 2048 samples in
32 minibatches, and divides by 32. The networks are 64-64, with Hopper's 11 observations and 3 actions. The reference
makes an epoch as CleanRL's ppo_continuous_action.py does: both losses by autograd, gradient clipping, one
torch.optim.Adam.
"""

import sys
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from timing import check_table, in_turns, limit_threads, per_call, report
from torch import nn

import ppo_hesscale
from hesscale_core import OPTIMIZERS, TanhMLP, make_optimizer
from hesscale_envs import NormalizedEnv
from hesscale_utils import parse_args

BATCH, MINIBATCHES, OBS, ACT, CLIP = 2048, 32, 11, 3, 0.2


@dataclass
class Args:
    rounds: int = 40
    """number of times that each is timed"""
    csv: str | None = None
    """the file to append the tables to; None for none"""
    quick: bool = False
    """whether to time each only once and keep no table, to see that all of them run"""


def rollout():
    """Return a generator, and observations, actions, old log-probabilities, returns and advantages."""
    rng = np.random.default_rng(0)
    shapes = (BATCH, OBS), (BATCH, ACT), BATCH, (BATCH, 1), BATCH
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    arrays[2] -= 4
    return rng, arrays


def ours(name, tensors=False):
    """Return a function that makes an epoch of ppo_hesscale.py; with `tensors`, as on a GPU but on the CPU."""
    rng, (obs, actions, log_probs, returns, advantages) = rollout()
    batch = ppo_hesscale.Batch(obs, actions, log_probs, returns, returns, advantages)
    args = ppo_hesscale.Args(optimizer=name, num_minibatches=MINIBATCHES, update_epochs=1)
    agent = ppo_hesscale.Agent(OBS, ACT, discrete=False)
    if tensors:
        agent.to_net = torch.as_tensor
    optimizers = {}
    for network, net in agent.named_children():
        params = net.parameters() if "adahessian" in name else [net.flat]
        optimizers[network] = make_optimizer(name, params, 1e-12)  # so small that the networks stay the same
    return lambda: ppo_hesscale.update(args, agent, optimizers, batch, rng)


def cleanrls():
    """Return a function that makes an epoch as CleanRL's ppo_continuous_action.py does."""
    rng, arrays = rollout()
    b_obs, b_actions, b_log_probs, b_returns, b_advantages = map(torch.as_tensor, arrays)
    actor, critic = (
        nn.Sequential(nn.Linear(OBS, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, out))
        for out in (ACT, 1)
    )
    log_std = nn.Parameter(torch.zeros(1, ACT))
    params = [*actor.parameters(), *critic.parameters(), log_std]
    optimizer = torch.optim.Adam(params, lr=1e-12, eps=1e-5)
    b_inds = np.arange(BATCH)

    def epoch():
        rng.shuffle(b_inds)
        for start in range(0, BATCH, BATCH // MINIBATCHES):
            mb_inds = b_inds[start : start + BATCH // MINIBATCHES]
            mean = actor(b_obs[mb_inds])
            policy = torch.distributions.Normal(mean, log_std.expand_as(mean).exp())
            log_ratio = policy.log_prob(b_actions[mb_inds]).sum(1) - b_log_probs[mb_inds]
            ratio = log_ratio.exp()
            with torch.no_grad():
                (-log_ratio).mean(), ((ratio - 1) - log_ratio).mean()
                ((ratio - 1.0).abs() > CLIP).float().mean().item()
            advantages = b_advantages[mb_inds]
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            pg = torch.max(-advantages * ratio, -advantages * torch.clamp(ratio, 1 - CLIP, 1 + CLIP)).mean()
            v = 0.5 * ((critic(b_obs[mb_inds]).view(-1) - b_returns[mb_inds].view(-1)) ** 2).mean()
            loss = pg - 0.0 * policy.entropy().sum(1).mean() + v * 0.5
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(params, 0.5)
            optimizer.step()

    return epoch


def network_pass(tensors):
    """Return a function that makes a forward pass and a HesScale backward pass, on tensors or on numpy arrays."""
    net = TanhMLP(OBS, (64, 64), ACT)
    obs, grad, hess = (np.ones((64, n), np.float32) for n in (OBS, ACT, ACT))
    if tensors:
        obs, grad, hess = map(torch.as_tensor, (obs, grad, hess))

    @torch.no_grad()
    def run():
        net(obs)
        net.backward(grad, hess)

    return run


def optimizer_step(flat):
    """Return a scaled AdaHesScale step on a 64-64 network, on its one flat vector or on a tensor for each layer."""
    net = TanhMLP(OBS, (64, 64), ACT)
    params = [net.flat] if flat else list(net.parameters())
    for p in params:
        p.grad = torch.rand_like(p)
    hess, optimizer = [torch.rand_like(p) for p in params], make_optimizer("scaled-adahesscale", params, 1e-12)

    def step():
        for p, diagonal in zip(params, hess, strict=True):
            p.hess = diagonal
        optimizer.update()

    return step


def env_step(wrap):
    """Return a function that makes a step of wrap(Hopper-v4), and a reset if an episode ends."""
    env = wrap(gym.make("Hopper-v4"))
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    actions = rng.normal(0, 0.1, (1000, ACT)).astype(np.float32)
    steps = iter(range(10**9))

    def step():
        result = env.step(actions[next(steps) % 1000])
        if result[2] or result[3]:
            env.reset()

    return step


def gymnasiums(env):
    """Wrap an environment as CleanRL does."""
    env = gym.wrappers.NormalizeObservation(gym.wrappers.ClipAction(gym.wrappers.RecordEpisodeStatistics(env)))
    env = gym.wrappers.TransformObservation(env, lambda obs: np.clip(obs, -10, 10), None)
    return gym.wrappers.TransformReward(gym.wrappers.NormalizeReward(env), lambda r: np.clip(r, -10, 10))


def main(args):
    if args.rounds < 1:
        sys.exit(f"error: --rounds {args.rounds}: must be at least 1")
    check_table(args)
    limit_threads()

    def table(title, functions, base, calls, share=1):
        """Time `calls` calls of each function together; report the time of a call divided by `share`."""
        rounds, calls = (1, 1) if args.quick else (args.rounds, calls)
        timed = {name: per_call(function, calls) for name, function in functions.items()}
        times = in_turns(timed, rounds, warmup=0 if args.quick else 2)
        return report(title, {name: t / share for name, t in times.items()}, base, path=args.csv)

    reference = "CleanRL's way: autograd, Adam"
    updates = {reference: cleanrls()} | {name: ours(name) for name in OPTIMIZERS}
    updates["scaled-adahesscale on tensors"] = ours("scaled-adahesscale", tensors=True)
    table("PPO minibatch, actor and critic", updates, reference, 1, MINIBATCHES)
    chosen = ["adam", "adahesscalegn", "adahesscale", "adahessian"]
    table("PPO minibatch, over our own Adam", {name: updates[name] for name in chosen}, "adam", 1, MINIBATCHES)
    passes = {"tensors": network_pass(True), "numpy": network_pass(False)}
    table("forward, gradient and HesScale of a 64-64 network", passes, "tensors", 50)
    steps = {"a tensor for each layer": optimizer_step(False), "one flat vector": optimizer_step(True)}
    table("scaled-adahesscale step of a 64-64 network", steps, "a tensor for each layer", 50)
    wraps = {"bare": lambda e: e, "gymnasium's wrappers": gymnasiums, "NormalizedEnv": lambda e: NormalizedEnv(e, 0.99)}
    table("Hopper-v4 step, resets included", {k: env_step(w) for k, w in wraps.items()}, "bare", 200)


if __name__ == "__main__":
    main(parse_args(Args))
