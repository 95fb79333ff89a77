"""What a PPO minibatch costs, and what each trick buys: medians in microseconds, in turns, on one thread.

    python benchmarks/minibatch.py

64 samples, 64-64 networks, Hopper's sizes (11 observations, 3 actions), as in ppo_hesscale.py's defaults. The
reference is CleanRL's way: the same networks and losses by autograd, one torch.optim.Adam.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from hesscale_core import OPTIMIZERS, TanhMLP, gaussian_ppo_loss, make_optimizer, value_loss
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


def batch(dtype=np.float32):
    rng = np.random.default_rng(0)
    obs, actions = rng.normal(size=(B, OBS)), rng.normal(size=(B, ACT))
    return [
        x.astype(dtype) for x in (obs, actions, rng.normal(size=B) - 4, rng.normal(size=B), rng.normal(size=(B, 1)))
    ]


def ours(name, tensors=False):
    """One update of actor and critic; with `tensors`, on torch instead of numpy."""
    arrays = [torch.as_tensor(x) if tensors else x for x in batch()]
    obs, actions, old_log_probs, advantages, returns = arrays
    actor, critic, log_std = (
        TanhMLP(OBS, (64, 64), ACT, 0.01),
        TanhMLP(OBS, (64, 64), 1),
        nn.Parameter(torch.zeros(ACT)),
    )
    # a step size so small that the networks stay the same
    actor_optimizer = make_optimizer(name, [*actor.parameters(), log_std], 1e-12)
    critic_optimizer = make_optimizer(name, critic.parameters(), 1e-12)
    log_std_array = log_std.detach() if tensors else log_std.detach().numpy()
    needs_hess, gauss_newton = actor_optimizer.needs_hess, actor_optimizer.gauss_newton

    @torch.no_grad()
    def update():
        pg = gaussian_ppo_loss(actor(obs), log_std_array, actions, old_log_probs, advantages, CLIP)
        actor.backward(pg.grad_mean, pg.hess_mean if needs_hess else None, gauss_newton)
        log_std.grad, log_std.hess = torch.as_tensor(pg.grad_log_std), torch.as_tensor(pg.hess_log_std)
        v = value_loss(critic(obs), returns)
        critic.backward(v.grad_value, v.hess_value if needs_hess else None, gauss_newton)
        actor_optimizer.step()
        critic_optimizer.step()

    return update


def cleanrls():
    obs, actions, old_log_probs, advantages, returns = map(torch.as_tensor, batch())
    make = lambda out: nn.Sequential(nn.Linear(OBS, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, out))  # noqa: E731
    actor, critic, log_std = make(ACT), make(1), nn.Parameter(torch.zeros(1, ACT))
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters(), log_std], lr=1e-12, eps=1e-5)

    def update():
        mean = actor(obs)
        policy = torch.distributions.Normal(mean, log_std.expand_as(mean).exp())
        ratio = (policy.log_prob(actions).sum(1) - old_log_probs).exp()
        pg = torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
        loss = pg - 0.0 * policy.entropy().sum(1).mean() + 0.5 * 0.5 * ((critic(obs) - returns) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
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
