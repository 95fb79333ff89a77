"""What a PPO minibatch costs, and what each trick buys: medians in microseconds, in turns, on one thread.

    python benchmarks/minibatch.py

A minibatch of 64 samples out of a rollout of 2048, 64-64 networks, Hopper's sizes (11 observations, 3 actions): what
ppo_hesscale.py does for it, from picking the samples to the update. The reference does what CleanRL's
ppo_continuous_action.py does: both losses by autograd, gradient clipping, one torch.optim.Adam.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import math
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from hesscale_core import (
    OPTIMIZERS,
    TanhMLP,
    gaussian_log_prob,
    gaussian_ppo_loss,
    hutchinson,
    make_optimizer,
    value_loss,
)
from hesscale_utils import NormalizedEnv

B, OBS, ACT, CLIP = 64, 11, 3, 0.2


def medians(functions, rounds=30, calls=50):
    """Median time of a call in us, the functions taking turns so that a drifting machine hits all alike."""
    times = {name: [] for name in functions}
    for i in range(rounds + 3):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(calls):
                function()
            if i >= 3:  # the first rounds warm up
                times[name].append((time.perf_counter() - start) / calls * 1e6)
    return {name: float(np.median(t)) for name, t in times.items()}


def table(title, functions, base):
    result = medians(functions)
    print(f"\n{title}")
    for name, us in result.items():
        print(f"  {name:<52}{us:8.1f} us   {us / result[base]:5.2f} x")


def rollout():
    """Observations, actions, old log-probabilities, advantages and returns of 2048 steps; and a minibatch's indices."""
    rng = np.random.default_rng(0)
    shapes = (2048, OBS), (2048, ACT), 2048, 2048, (2048, 1)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    arrays[2] -= 4
    return arrays, rng.permutation(2048)[:B]


def ours(name, tensors=False):
    """One minibatch of ppo_hesscale.py; with `tensors`, as on a GPU but on the CPU."""
    arrays, mb_inds = rollout()
    actor, critic, log_std = (
        TanhMLP(OBS, (64, 64), ACT, 0.01),
        TanhMLP(OBS, (64, 64), 1),
        nn.Parameter(torch.zeros(ACT)),
    )
    # a step size so small that the networks stay the same
    actor_optimizer = make_optimizer(name, [*actor.parameters(), log_std], 1e-12)
    critic_optimizer = make_optimizer(name, critic.parameters(), 1e-12)
    needs_hess, gauss_newton = actor_optimizer.needs_hess, actor_optimizer.gauss_newton
    by_autograd = actor_optimizer.hutchinson
    if by_autograd or tensors:
        arrays = [torch.as_tensor(array) for array in arrays]
    log_std_array = log_std if by_autograd else log_std.detach() if tensors else log_std.detach().numpy()

    def update():
        obs, actions, old_log_probs, advantages, returns = (array[mb_inds] for array in arrays)
        advantages = advantages - advantages.mean()
        advantages = advantages / (math.sqrt((advantages * advantages).sum() / (B - 1)) + 1e-8)
        mean, value = actor(obs), critic(obs)
        pg = gaussian_ppo_loss(mean, log_std_array, actions, old_log_probs, advantages, CLIP)
        gaussian_log_prob(mean, log_std_array, actions) - old_log_probs  # for approx_kl and clipfrac
        v = value_loss(value, returns)
        if by_autograd:
            hutchinson(pg.loss, [*actor.parameters(), log_std])
            hutchinson(v.loss, critic.parameters())
        else:
            actor.backward(pg.grad_mean, pg.hess_mean if needs_hess else None, gauss_newton)
            log_std.grad, log_std.hess = torch.as_tensor(pg.grad_log_std), torch.as_tensor(pg.hess_log_std)
            critic.backward(v.grad_value, v.hess_value if needs_hess else None, gauss_newton)
        actor_optimizer.step()
        critic_optimizer.step()

    return update if by_autograd else torch.no_grad()(update)


def cleanrls():
    arrays, mb_inds = rollout()
    arrays = [torch.as_tensor(array) for array in arrays]
    make = lambda out: nn.Sequential(nn.Linear(OBS, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, out))  # noqa: E731
    actor, critic, log_std = make(ACT), make(1), nn.Parameter(torch.zeros(1, ACT))
    params = [*actor.parameters(), *critic.parameters(), log_std]
    optimizer = torch.optim.Adam(params, lr=1e-12, eps=1e-5)

    def update():
        obs, actions, old_log_probs, advantages, returns = (array[mb_inds] for array in arrays)
        mean = actor(obs)
        policy = torch.distributions.Normal(mean, log_std.expand_as(mean).exp())
        log_ratio = policy.log_prob(actions).sum(1) - old_log_probs
        ratio = log_ratio.exp()
        with torch.no_grad():
            (-log_ratio).mean(), ((ratio - 1) - log_ratio).mean()
            ((ratio - 1.0).abs() > CLIP).float().mean().item()
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        pg = torch.max(-advantages * ratio, -advantages * torch.clamp(ratio, 1 - CLIP, 1 + CLIP)).mean()
        v = 0.5 * ((critic(obs).view(-1) - returns.view(-1)) ** 2).mean()
        loss = pg - 0.0 * policy.entropy().sum(1).mean() + v * 0.5
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(params, 0.5)
        optimizer.step()

    return update


def network_pass(tensors):
    net = TanhMLP(OBS, (64, 64), ACT)
    obs, grad, hess = np.ones((B, OBS), np.float32), np.ones((B, ACT), np.float32), np.ones((B, ACT), np.float32)
    if tensors:
        obs, grad, hess = map(torch.as_tensor, (obs, grad, hess))

    @torch.no_grad()
    def run():
        net(obs)
        net.backward(grad, hess)

    return run


def optimizer_step(groups):
    """An AdaHesScale step on a 64-64 network, its parameters in one flat vector or each in a group of its own."""
    params = list(TanhMLP(OBS, (64, 64), ACT).parameters())
    for p in params:
        p.grad, p.hess = torch.rand_like(p), torch.rand_like(p)
    return make_optimizer("scaled-adahesscale", [{"params": [p]} for p in params] if groups else params, 1e-12).step


def env_step(wrap):
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
    env = gym.wrappers.NormalizeObservation(gym.wrappers.ClipAction(gym.wrappers.RecordEpisodeStatistics(env)))
    env = gym.wrappers.TransformObservation(env, lambda obs: np.clip(obs, -10, 10), None)
    return gym.wrappers.TransformReward(gym.wrappers.NormalizeReward(env), lambda r: np.clip(r, -10, 10))


def main():
    torch.set_num_threads(1)
    reference = "CleanRL's way: autograd, Adam"
    updates = {reference: cleanrls()} | {f"ours: {name}": ours(name) for name in OPTIMIZERS}
    updates["ours: scaled-adahesscale on tensors"] = ours("scaled-adahesscale", tensors=True)
    table("minibatch update of actor and critic", updates, reference)
    passes = {"tensors": network_pass(True), "numpy": network_pass(False)}
    table("forward, gradient and HesScale of a 64-64 network", passes, "tensors")
    steps = {"a group for each tensor": optimizer_step(True), "one flat vector": optimizer_step(False)}
    table("scaled-adahesscale step of a 64-64 network", steps, "a group for each tensor")
    wraps = {"bare": lambda e: e, "gymnasium's wrappers": gymnasiums, "NormalizedEnv": lambda e: NormalizedEnv(e, 0.99)}
    table("Hopper-v4 step, resets included", {k: env_step(w) for k, w in wraps.items()}, "bare")


if __name__ == "__main__":
    main()
