"""The agents tested like the mathematics: whole rollouts, updates and runs against a literal agent, in float64.

LiteralAgent is PPO and A2C as the papers write them, in plain torch: autograd, torch.distributions, torch.optim and
gymnasium's own wrappers. None of the package's code is in it. From the same seed and flags, the package's agents must
act, move every parameter and log every figure as it does.
"""

import functools
import itertools
from collections import defaultdict, namedtuple
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
import toy_envs  # noqa: F401, registers the environments
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.autograd import grad
from torch.distributions import Categorical, Independent, Normal

import a2c_hesscale
import ppo_hesscale
from hesscale_core import OPTIMIZERS, make_optimizer
from hesscale_envs import make_envs

AGENTS = {"ppo": ppo_hesscale, "a2c": a2c_hesscale}
CURVATURES = {"adahessian": "Hutchinson", "adahesscalegn": "HesScaleGN"}  # all others: HesScale
SETTINGS = {  # step sizes that move the policy within a few updates, and trust regions that bind in some of them
    "sgd": dict(learning_rate=0.1, delta=3e-5),
    "adam": dict(learning_rate=3e-3, delta=3e-5),
    "adahessian": dict(learning_rate=1e-3, delta=1e-6),
    "adahesscale": dict(learning_rate=3e-4, delta=3e-6),
    "adahesscalegn": dict(learning_rate=3e-4, delta=3e-6),
}
POLICIES = {
    "gaussian": dict(env_id="Walk-v0"),
    "state-dependent gaussian": dict(env_id="Walk-v0", state_std=True),
    "softmax": dict(env_id="Walk-v1"),
}


# ---- the literal agent -------------------------------------------------------------------------------------

Transition = namedtuple("Transition", "obs action log_prob value reward next_obs following terminated truncated")

Passed = namedtuple("Passed", "layer inputs output")


class TimeFeature(gym.Wrapper):
    """Appends the share of the time limit that has passed, minus a half."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (env.observation_space.shape[0] + 1,), np.float64)

    def reset(self, **options):
        self.t = 0
        obs, info = self.env.reset(**options)
        return np.array([*obs, -0.5]), info

    def step(self, action):
        self.t += 1
        obs, *rest = self.env.step(action)
        return np.array([*obs, self.t / self.env.spec.max_episode_steps - 0.5]), *rest


def literal_env(args):
    """CleanRL's stack of wrappers, around the authors' time feature if asked for."""
    env = gym.make(args.env_id)
    env = gym.wrappers.RecordEpisodeStatistics(TimeFeature(env) if args.time_feature else env)
    if isinstance(env.action_space, gym.spaces.Box):
        env = gym.wrappers.ClipAction(env)
    if args.norm_obs:
        env = gym.wrappers.NormalizeObservation(env)
        env = gym.wrappers.TransformObservation(env, lambda obs: np.clip(obs, -10, 10), None)
    if args.norm_reward:
        env = gym.wrappers.NormalizeReward(env, gamma=args.gamma)
        env = gym.wrappers.TransformReward(env, lambda reward: np.clip(reward, -10, 10))
    return env


def orthogonal_layers(*sizes, gain):
    """Linear layers, float64; between them is a tanh."""
    layers = [torch.nn.Linear(m, n) for m, n in itertools.pairwise(sizes)]
    for layer in layers:
        torch.nn.init.orthogonal_(layer.weight, gain if layer is layers[-1] else 2**0.5)
        torch.nn.init.zeros_(layer.bias)
    return [layer.double() for layer in layers]


def hessian_diagonal(loss, x):
    """The diagonal of the Hessian of `loss` in `x` [B, n] or [n], by autograd; samples do not interact."""
    (g,) = grad(loss, x, create_graph=True)
    columns = [grad(g[..., k].sum(), x, retain_graph=True)[0][..., k] for k in range(x.shape[-1])]
    return torch.stack(columns, -1)


class LiteralOptimizer:
    """Algorithm 2, or torch's own SGD or Adam; for the scaled ones, Algorithm 3 around it."""

    def __init__(self, args, params):
        self.params, self.eps, self.delta, self.betas, self.t = params, args.eps, args.delta, args.betas, 0
        self.scaled, base = args.optimizer.startswith("scaled-"), args.optimizer.removeprefix("scaled-")
        self.torch = {
            "sgd": lambda: torch.optim.SGD(params, lr=1.0),
            "adam": lambda: torch.optim.Adam(params, lr=1.0, betas=args.betas, eps=args.eps),
        }.get(base, lambda: None)()
        self.m = self.v = [torch.zeros_like(p) for p in params]

    def reset_step(self):
        self.t = 0
        for state in self.torch.state.values() if self.torch is not None else ():
            if "step" in state:
                state["step"] = torch.zeros_like(state["step"])

    @torch.no_grad()
    def step(self, lr, hess):
        """Move the parameters by their .grad and the diagonals `hess`; return eta, and the h of Algorithm 3."""
        self.t += 1
        beta1, beta2 = self.betas
        self.v = [beta2 * v + (1 - beta2) * h**2 for v, h in zip(self.v, hess, strict=True)]
        self.m = [beta1 * m + (1 - beta1) * p.grad for m, p in zip(self.m, self.params, strict=True)]
        root_v_hat = [(v / (1 - beta2**self.t)).sqrt() for v in self.v]
        m_hat = [m / (1 - beta1**self.t) for m in self.m]
        u = [lr * m / (root_v + self.eps) for m, root_v in zip(m_hat, root_v_hat, strict=True)]
        before = [p.clone() for p in self.params]
        if self.torch is not None:
            self.torch.param_groups[0]["lr"] = lr
            self.torch.step()
            u = [p_before - p for p_before, p in zip(before, self.params, strict=True)]
        h = sum((root_v * part**2).sum() for root_v, part in zip(root_v_hat, u, strict=True)).item()
        eta = (2 * self.delta / h) ** 0.5 if self.scaled and h > 2 * self.delta else 1.0
        for p, p_before, part in zip(self.params, before, u, strict=True):
            p.copy_(p_before - eta * part)
        return eta, h


class LiteralAgent:
    """PPO, or A2C if `args` has no update_epochs, from the seed on. `perturb` is called on its first parameters."""

    def __init__(self, args, perturb=lambda params: None):
        self.args, self.lr, self.is_ppo = args, args.learning_rate, hasattr(args, "update_epochs")
        torch.manual_seed(args.seed)
        self.rng = np.random.default_rng([1, args.seed])
        self.envs = [literal_env(args) for _ in range(args.num_envs)]
        obs_dim, space = self.envs[0].observation_space.shape[0], self.envs[0].action_space
        self.discrete = isinstance(space, gym.spaces.Discrete)
        self.action_dim = int(space.n) if self.discrete else space.shape[0]
        self.nets = {"critic": orthogonal_layers(obs_dim, 64, 64, 1, gain=1.0)}
        self.nets["actor"] = orthogonal_layers(obs_dim, 64, 64, self.action_dim, gain=0.01)
        if args.state_std:
            self.nets["actor_std"] = orthogonal_layers(obs_dim, 64, self.action_dim, gain=0.01)
        if not args.orthogonal_init:
            self.nets = {
                net: [torch.nn.Linear(layer.in_features, layer.out_features).double() for layer in layers]
                for net, layers in self.nets.items()
            }
        self.log_std = torch.zeros(self.action_dim, dtype=torch.float64, requires_grad=True)
        perturb([p for net in self.nets for p in self.parameters(net)])
        self.trained = {"critic": ["critic"], "actor": [net for net in self.nets if net != "critic"]}
        self.optimizers = {
            name: LiteralOptimizer(args, [p for net in nets for p in self.parameters(net)])
            for name, nets in self.trained.items()
        }
        self.obs = [env.reset(seed=args.seed + i)[0] for i, env in enumerate(self.envs)]
        self.global_step, self.episodes, self.layers_passed, self.history = 0, [], {}, []

    def parameters(self, net):
        shared = [self.log_std] if net == "actor" and not (self.discrete or self.args.state_std) else []
        return shared + [p for layer in self.nets[net] for p in (layer.weight, layer.bias)]

    def vector(self):
        """All parameters: the critic's, the actor's, the standard deviation's."""
        return torch.cat([p.detach().flatten() for net in self.nets for p in self.parameters(net)])

    def forward(self, net, x):
        """The network's output; each layer's input and pre-activation are kept for the recursion."""
        self.layers_passed[net] = []
        for layer in self.nets[net]:
            inputs = torch.tanh(x) if self.layers_passed[net] else x
            x = layer(inputs)
            self.layers_passed[net].append(Passed(layer, inputs, x))
        return x

    def policy(self, obs):
        output = self.forward("actor", obs)
        if self.discrete:
            return Categorical(logits=output)
        log_std = self.forward("actor_std", obs) if self.args.state_std else self.log_std
        return Independent(Normal(output, log_std.exp()), 1)

    # acting

    @torch.no_grad()
    def rollout(self):
        """Act for num_steps in every environment; return the transitions [num_steps][num_envs]."""
        return [self.act() for _ in range(self.args.num_steps)]

    def act(self):
        self.global_step += len(self.envs)
        obs = torch.tensor(np.array(self.obs, dtype=np.float32)).double()
        policy, shape = self.policy(obs), (len(self.envs), self.action_dim)
        if self.discrete:
            gumbel = torch.tensor(np.float32(self.rng.gumbel(size=shape)))
            actions = (self.forward("actor", obs) + gumbel).argmax(1)
        else:
            actions = policy.mean + policy.stddev * torch.tensor(self.rng.standard_normal(shape, dtype=np.float32))
        values = self.forward("critic", obs)[:, 0]
        before = [obs, actions, policy.log_prob(actions), values]
        after = []
        for i, env in enumerate(self.envs):
            action = env.action_space.start + int(actions[i]) if self.discrete else np.float32(actions[i])
            self.obs[i], reward, terminated, truncated, info = env.step(action)
            next_obs = torch.tensor(np.float32(self.obs[i])).double()
            following = 0.0 if terminated else self.forward("critic", next_obs[None]).item()
            after.append((reward, next_obs, following, terminated, truncated))
            if terminated or truncated:
                self.episodes.append((self.global_step, i, info["episode"]["r"], info["episode"]["l"]))
                self.obs[i], _ = env.reset()
        return [Transition(*b, *a) for *b, a in zip(*before, after, strict=True)]

    def advantages(self, transitions):
        """GAE [num_steps, num_envs], each episode for itself."""
        advantages = torch.zeros(self.args.num_steps, self.args.num_envs, dtype=torch.float64)
        for i in range(self.args.num_envs):
            for t in reversed(range(self.args.num_steps)):
                tr = transitions[t][i]
                advantages[t, i] = tr.reward + self.args.gamma * tr.following - tr.value
                if not (tr.terminated or tr.truncated or t == self.args.num_steps - 1):
                    advantages[t, i] += self.args.gamma * self.args.gae_lambda * advantages[t + 1, i]
        return advantages

    def batch(self, transitions):
        """The rollout's samples, environment by environment within a step: obs, actions, log_probs, values, A."""
        samples = [sample for step in transitions for sample in step]
        obs, actions, log_probs, values = (torch.stack([s[k] for s in samples]) for k in range(4))
        return obs, actions, log_probs, values, self.advantages(transitions).flatten()

    # learning

    def update(self, transitions):
        """Learn from a rollout; return the figures to log of what was learned since they were last asked for."""
        return self.update_ppo(*self.batch(transitions)) if self.is_ppo else self.update_a2c(*self.batch(transitions))

    def update_ppo(self, obs, actions, old_log_probs, old_values, advantages):
        args, returns, size = self.args, advantages + old_values, len(obs) // self.args.num_minibatches
        clipped, steps = [], []
        if args.reset_step:
            for optimizer in self.optimizers.values():
                optimizer.reset_step()
        for _ in range(args.update_epochs):
            kl = 0.0
            for mb in torch.tensor(self.rng.permutation(len(obs))).split(size):
                A, c = advantages[mb], args.clip_coef
                if args.norm_adv:
                    A = (A - A.mean()) / (A.std() + 1e-8)
                policy, value = self.policy(obs[mb]), self.forward("critic", obs[mb])[:, 0]
                log_ratio = policy.log_prob(actions[mb]) - old_log_probs[mb]
                ratio, entropy = log_ratio.exp(), policy.entropy().mean()
                policy_loss = -torch.min(ratio * A, ratio.clamp(1 - c, 1 + c) * A).mean()
                squared = (value - returns[mb]) ** 2
                if args.clip_vloss:
                    close = old_values[mb] + (value - old_values[mb]).clamp(-c, c)
                    squared = torch.max(squared, (close - returns[mb]) ** 2)
                value_loss = 0.5 * squared.mean()
                steps.append(self.step(policy_loss - args.ent_coef * entropy, value_loss))
                kl += ((ratio - 1) - log_ratio).sum().item() / len(obs)
                clipped.append(((ratio - 1).abs() > c).double().mean().item())
            if args.desired_kl is not None:
                if kl > 2 * args.desired_kl:
                    self.lr = max(self.lr / 1.5, 1e-6)
                if kl < 0.5 * args.desired_kl:
                    self.lr = min(self.lr * 1.5, 1e-2)
            approx_kl = ((ratio - 1) - log_ratio).mean().item()
            if args.target_kl is not None and approx_kl > args.target_kl:
                break
        self.epochs = len(steps) // args.num_minibatches
        return self.figures(steps) | {
            "losses/value_loss": value_loss.item(),
            "losses/policy_loss": policy_loss.item(),
            "losses/entropy": entropy.item(),
            "losses/old_approx_kl": -log_ratio.mean().item(),
            "losses/approx_kl": approx_kl,
            "losses/clipfrac": np.mean(clipped),
            "losses/explained_variance": explained_variance(old_values, returns),
        }

    def update_a2c(self, obs, actions, _, values, advantages):
        returns = advantages + values
        if self.args.norm_adv:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        policy, value = self.policy(obs), self.forward("critic", obs)[:, 0]
        entropy = policy.entropy().mean()
        policy_loss = -(policy.log_prob(actions) * advantages).mean()
        value_loss = 0.5 * ((value - returns) ** 2).mean()
        step = self.step(policy_loss - self.args.ent_coef * entropy, value_loss)
        self.history.append((policy_loss.item(), value_loss.item(), values, returns, step))
        policy_losses, value_losses, values, returns, steps = zip(*self.history, strict=True)
        return self.figures(steps) | {
            "losses/value_loss": np.mean(value_losses),
            "losses/policy_loss": np.mean(policy_losses),
            "losses/entropy": entropy.item(),
            "losses/explained_variance": explained_variance(torch.cat(values), torch.cat(returns)),
        }

    def step(self, policy_loss, value_loss):
        """One step of the critic's and of the policy's optimizer: {name: (eta, h, share of negative curvature)}."""
        loss, nets = policy_loss + value_loss, list(self.nets)
        curvature = CURVATURES.get(self.args.optimizer.removeprefix("scaled-"), "HesScale")
        params = {net: self.parameters(net) for net in nets}
        everything = [p for net in nets for p in params[net]]
        if curvature == "Hutchinson":
            grads = grad(loss, everything, create_graph=True)
            z = [torch.randint(0, 2, p.shape).double() * 2 - 1 for p in everything]
            products = grad(sum((g * z).sum() for g, z in zip(grads, z, strict=True)), everything)
            of_parameter = {p: z * product for p, z, product in zip(everything, z, products, strict=True)}
            hess = {net: [of_parameter[p] for p in params[net]] for net in nets}
        else:
            hess = {net: self.hesscale(loss, net, curvature == "HesScaleGN") for net in nets}
            if self.args.critic_ggn:
                hess["critic"] = self.critic_ggn(loss)
            grads = grad(loss, everything)
        for p, g in zip(everything, grads, strict=True):
            p.grad = g.detach()
        if self.args.max_grad_norm is not None:
            norm = torch.cat([p.grad.flatten() for p in everything]).norm()
            for p in everything:
                p.grad *= min(1.0, self.args.max_grad_norm / (norm + 1e-6))
        if self.args.adam_log_std and "adahesscale" in self.args.optimizer and params["actor"][0] is self.log_std:
            hess["actor"][0] = self.log_std.grad.clone()
        result = {}
        for name, optimizer in self.optimizers.items():
            diagonals = [h for net in self.trained[name] for h in hess[net]]
            signs = torch.cat([h.flatten() for h in diagonals]) < 0
            result[name] = *optimizer.step(self.lr, diagonals), signs.double().mean().item()
        return result

    def hesscale(self, loss, net, gauss_newton):
        """HesScale or HesScaleGN of the network's parameters, from the exact diagonal at its output (Eq. 3 and 4)."""
        diagonals, h = [], hessian_diagonal(loss, self.layers_passed[net][-1].output)
        for layer, inputs, _ in reversed(self.layers_passed[net]):
            diagonals = [torch.einsum("bo,bi->oi", h, inputs**2), h.sum(0), *diagonals]
            if inputs.requires_grad:  # it is the tanh of the layer below
                slope, (g,) = 1 - inputs**2, grad(loss, inputs, retain_graph=True)
                h = slope**2 * torch.einsum("bo,oi->bi", h, layer.weight**2)
                h = h if gauss_newton else h - 2 * inputs * slope * g
        if len(self.parameters(net)) > len(diagonals):
            diagonals.insert(0, hessian_diagonal(loss, self.log_std))
        return [d.detach() for d in diagonals]

    def critic_ggn(self, loss):
        """The diagonal of the sum over samples of h (dv/dw) (dv/dw)^T, with h the value loss's exact curvature."""
        value, params = self.layers_passed["critic"][-1].output, self.parameters("critic")
        slopes = [grad(v, params, retain_graph=True) for v in value[:, 0]]
        h = hessian_diagonal(loss, value)[:, 0]
        return [
            sum(h_b * s**2 for h_b, s in zip(h, of_samples, strict=True)) for of_samples in zip(*slopes, strict=True)
        ]

    def figures(self, steps):
        """The figures of the optimizers that made `steps`."""
        figures, scaled = {"charts/learning_rate": self.lr}, self.args.optimizer.startswith("scaled-")
        for name in self.optimizers:
            if scaled or self.args.optimizer not in ("sgd", "adam"):
                figures[f"hesscale/negative_curvature_{name}"] = steps[-1][name][2]
            if scaled:
                figures[f"hesscale/eta_{name}"] = np.mean([step[name][0] for step in steps])
                figures[f"hesscale/trust_region_{name}"] = 0.5 * np.mean([step[name][1] for step in steps])
        return figures

    def train(self):
        """A whole run: yield the global step and the figures wherever it logs them."""
        batch_size = self.args.num_envs * self.args.num_steps
        iterations = self.args.total_timesteps // batch_size
        for iteration in range(iterations):
            if self.args.anneal_lr:
                share = 1 - iteration / iterations  # by which a trust region that binds must shorten its steps, too
                self.lr = self.args.learning_rate * share
                for optimizer in self.optimizers.values():
                    optimizer.delta = self.args.delta * share * share
            figures = self.update(self.rollout())
            enough = self.is_ppo or len(self.history) * batch_size >= 2048
            if enough or iteration == iterations - 1:
                yield self.global_step, figures
                self.history = []


def explained_variance(values, returns):
    return (1 - (returns - values).var() / returns.var()).item()


# ---- ours, beside it ---------------------------------------------------------------------------------------


def perturb(params):
    """Move parameters away from where they begin: there policies differ by little, and log_std is zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in params:
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)


def arguments(agent, policy, optimizer="adahesscale", **flags):
    """Few steps, large ones, and trust regions that bind in some of the updates."""
    args = dict(seed=6, num_envs=2, num_steps=12, norm_obs=False, norm_reward=False)
    if agent == "ppo":
        args |= dict(num_minibatches=3, update_epochs=2)
    args |= POLICIES[policy] | SETTINGS[optimizer.removeprefix("scaled-")] | flags
    return AGENTS[agent].Args(optimizer=optimizer, **args)


class FakeRun:
    """What a rollout needs of a Run; it keeps the episodes that it was told of."""

    def __init__(self, envs):
        self.step, self.envs, self.episodes = 0, envs, []

    def log_episode(self, step, env):
        self.episodes.append((step, self.envs.index(env), env.episode_return, env.episode_length))


class Ours:
    """The package's agent, made as main makes it, but in float64."""

    def __init__(self, agent, args, to_net=None):
        self.module, self.args = AGENTS[agent], args
        torch.manual_seed(args.seed)
        self.rng, self.envs = np.random.default_rng([1, args.seed]), make_envs(args, "")
        env = self.envs[0]
        options = args.state_std, args.orthogonal_init
        self.agent = self.module.Agent(env.obs_dim, env.action_dim, env.discrete, *options).double()
        self.agent.to_net = to_net or self.agent.to_net
        perturb(self.agent.parameters())
        by_autograd = "adahessian" in args.optimizer
        options = dict(lr=args.learning_rate, betas=args.betas, eps=args.eps, delta=args.delta)
        networks = {"critic": [self.agent.critic], "actor": [*self.agent.children()][1:]}
        self.optimizers = {
            name: make_optimizer(
                args.optimizer,
                [p for net in nets for p in (net.parameters() if by_autograd else [net.flat])],
                **options,
            )
            for name, nets in networks.items()
        }
        self.next_obs = np.stack([env.reset(seed=args.seed + i) for i, env in enumerate(self.envs)]).astype(np.float64)
        self.run, self.history = FakeRun(self.envs), defaultdict(list)

    def rollout(self):
        return self.module.rollout(self.args, self.agent, self.envs, self.next_obs, self.rng, self.run)

    def update(self, batch):
        if self.module is ppo_hesscale:
            return self.module.update(self.args, self.agent, self.optimizers, batch, self.rng)
        policy = self.module.update(self.args, self.agent, self.optimizers, batch, self.history, self.run.step)
        return self.module.record(self.optimizers, policy, self.history)

    def vector(self):
        return torch.cat([p.detach().flatten() for p in self.agent.parameters()])


def learn(agent):
    """Return the parameters before and after each of some rollouts with their updates, and what each one logs."""
    vectors, figures = [agent.vector()], []
    for _ in range(2 if hasattr(agent.args, "update_epochs") else 6):
        figures.append(agent.update(agent.rollout()))
        vectors.append(agent.vector())
    return vectors, figures


@functools.cache
def literal_learn(agent, policy, optimizer="adahesscale", **flags):
    return learn(LiteralAgent(arguments(agent, policy, optimizer, **flags), perturb=perturb))


def assert_equal(ours, theirs):
    torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), rtol=1e-9, atol=1e-12)


def assert_same_figures(ours, theirs, rtol=1e-8):
    assert set(ours) == set(theirs)
    for tag, expected in theirs.items():
        atol = 1e-3 if "negative_curvature" in tag else 1e-12  # a few diagonal entries are zero but for rounding
        np.testing.assert_allclose(ours[tag], expected, rtol=rtol, atol=atol, err_msg=tag)


def assert_same_parameters(ours, theirs, start):
    """Parameters agree to a small part of the way that they went from `start`."""
    moved = (theirs - start).abs().max().item()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8 * moved + 1e-15)


def assert_same_learning(ours, theirs):
    for our_figures, their_figures in zip(ours[1], theirs[1], strict=True):
        assert_same_figures(our_figures, their_figures)
    for our_vector, their_vector in zip(ours[0], theirs[0], strict=True):
        assert_same_parameters(our_vector, their_vector, theirs[0][0])


both = pytest.mark.parametrize("agent", AGENTS)
all_policies = pytest.mark.parametrize("policy", POLICIES)


# ---- rollouts ----------------------------------------------------------------------------------------------


@both
@all_policies
@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_rollout_is_the_literal_agents(agent, policy, num_envs):
    """Several in a row, so that episodes go on from one to the next: every array, and every episode that is logged."""
    args = arguments(agent, policy, num_envs=num_envs, gamma=0.9, gae_lambda=0.8, num_steps=9)
    ours, literal, ends, last_ends = Ours(agent, args), LiteralAgent(args, perturb=perturb), set(), set()
    for _ in range(10):
        batch, transitions = ours.rollout(), literal.rollout()
        obs, actions, log_probs, values, advantages = literal.batch(transitions)
        assert_equal(batch.obs, obs)
        assert_equal(batch.actions, actions)
        if agent == "ppo":
            assert_equal(batch.log_probs, log_probs)
            assert_equal(batch.values, values[:, None])
            assert_equal(batch.advantages, advantages)
            assert_equal(batch.returns, (advantages + values)[:, None])
        else:
            places = [(t, i) for t in range(args.num_steps) for i in range(num_envs)]
            cut = [(t, i) for t, i in places if transitions[t][i].truncated and not transitions[t][i].terminated]
            following = [*np.float32(literal.obs), *(transitions[t][i].next_obs for t, i in cut)]
            assert_equal(batch.rewards, np.array([[tr.reward for tr in step] for step in transitions]))
            assert batch.terminations.tolist() == [[tr.terminated for tr in step] for step in transitions]
            assert batch.dones.tolist() == [[tr.terminated or tr.truncated for tr in step] for step in transitions]
            assert batch.truncated_at == cut
            assert_equal(batch.following_obs, np.array(following, dtype=np.float64))
        assert_equal(ours.next_obs, np.array(literal.obs, dtype=np.float32).astype(np.float64))
        assert ours.run.step == literal.global_step
        ends |= {(tr.terminated, tr.truncated) for step in transitions for tr in step}
        last_ends |= {(tr.terminated, tr.truncated) for tr in transitions[-1]}
    for our_episode, (step, i, total, length) in zip(ours.run.episodes, literal.episodes, strict=True):
        assert our_episode == (step, i, pytest.approx(total, abs=1e-5), length)
    assert {(False, False), (True, False), (False, True)} <= ends
    assert num_envs == 1 or last_ends >= {(False, False), (True, False), (False, True)}


# ---- updates -----------------------------------------------------------------------------------------------

FLAGS = {
    "ppo": [
        dict(seed=2),
        dict(num_envs=1),
        dict(num_envs=3),
        dict(num_steps=9),
        dict(gamma=0.8),
        dict(gae_lambda=0.5),
        dict(num_minibatches=6),
        dict(update_epochs=3),
        dict(norm_adv=False),
        dict(clip_coef=0.05),
        dict(clip_vloss=True),
        dict(ent_coef=0.05),
        dict(max_grad_norm=0.3),
        dict(target_kl=0.005),
        dict(eps=1e-2),
        dict(betas=(0.8, 0.8)),
        dict(reset_step=True),
        dict(desired_kl=1e-6),
        dict(desired_kl=1e-6, target_kl=0.005),
        dict(desired_kl=1.0),
        dict(orthogonal_init=False),
        dict(time_feature=True),
        dict(critic_ggn=True),
    ],
    "a2c": [
        dict(seed=2),
        dict(num_envs=1),
        dict(num_envs=3),
        dict(num_steps=5),
        dict(gamma=0.8),
        dict(gae_lambda=0.5),
        dict(norm_adv=True),
        dict(ent_coef=0.05),
        dict(max_grad_norm=0.3),
        dict(eps=1e-2),
        dict(betas=(0.8, 0.8)),
        dict(critic_ggn=True),
        dict(orthogonal_init=False),
        dict(time_feature=True),
    ],
}
TOGETHER = dict(seed=2, num_envs=3, num_steps=8, gamma=0.8, ent_coef=0.05, max_grad_norm=0.3, eps=1e-3)
ALL_FLAGS = {
    "ppo": TOGETHER | dict(num_minibatches=4, gae_lambda=0.5, clip_coef=0.1, clip_vloss=True),
    "a2c": TOGETHER | dict(gae_lambda=0.5, norm_adv=True),
}


@both
@all_policies
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizers_updates_are_the_literal_agents(agent, policy, name):
    ours = learn(Ours(agent, arguments(agent, policy, name)))
    assert_same_learning(ours, literal_learn(agent, policy, name))


@all_policies
@pytest.mark.parametrize(
    "agent, flag", [(agent, flag) for agent in AGENTS for flag in FLAGS[agent]], ids=lambda value: str(value)
)
def test_an_update_heeds_each_flag_as_the_literal_agent_does(agent, policy, flag):
    theirs = literal_learn(agent, policy, **flag)
    assert_same_learning(learn(Ours(agent, arguments(agent, policy, **flag))), theirs)
    assert not theirs[0][-1].equal(literal_learn(agent, policy)[0][-1])  # the flag matters


@both
@pytest.mark.parametrize("policy", ["gaussian", "softmax"])
def test_gradients_that_are_short_enough_stay(agent, policy):
    theirs = literal_learn(agent, policy, max_grad_norm=1e6)
    assert_same_learning(learn(Ours(agent, arguments(agent, policy, max_grad_norm=1e6))), theirs)
    assert theirs[0][-1].equal(literal_learn(agent, policy)[0][-1])


@both
@all_policies
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_with_all_flags_at_once_are_the_literal_agents(agent, policy, name):
    ours = learn(Ours(agent, arguments(agent, policy, name, **ALL_FLAGS[agent])))
    assert_same_learning(ours, literal_learn(agent, policy, name, **ALL_FLAGS[agent]))


CURVED = [name for name in OPTIMIZERS if name not in ("sgd", "adam") and "adahessian" not in name]


@both
@pytest.mark.parametrize("name", CURVED)
def test_updates_by_the_critics_exact_gauss_newton_diagonal_are_the_literal_agents(agent, name):
    flags = dict(critic_ggn=True, clip_vloss=True) if agent == "ppo" else dict(critic_ggn=True)
    ours = learn(Ours(agent, arguments(agent, "gaussian", name, **flags)))
    assert_same_learning(ours, literal_learn(agent, "gaussian", name, **flags))


@both
@pytest.mark.parametrize(
    "policy, name",
    [
        *(("gaussian", name) for name in OPTIMIZERS),
        *((policy, "adahesscale") for policy in POLICIES if policy != "gaussian"),
    ],
)
def test_updates_with_the_other_second_moment_of_log_std_are_the_literal_agents(agent, policy, name):
    flags = dict(adam_log_std=not AGENTS[agent].Args.adam_log_std)
    theirs = literal_learn(agent, policy, name, **flags)
    assert_same_learning(learn(Ours(agent, arguments(agent, policy, name, **flags))), theirs)
    same = theirs[0][-1].equal(literal_learn(agent, policy, name)[0][-1])
    assert same == (policy != "gaussian" or "adahesscale" not in name)


@both
@all_policies
@pytest.mark.parametrize("name", ["scaled-adam", "scaled-adahesscalegn"])
def test_updates_of_tensors_as_on_a_gpu_are_the_literal_agents(agent, policy, name):
    ours = learn(Ours(agent, arguments(agent, policy, name, **ALL_FLAGS[agent]), to_net=torch.as_tensor))
    assert_same_learning(ours, literal_learn(agent, policy, name, **ALL_FLAGS[agent]))


@both
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_heeds_betas_and_a_step_count_that_begins_anew(agent, name):
    flags = dict(betas=(0.7, 0.9)) | (dict(reset_step=True) if agent == "ppo" else {})
    ours = learn(Ours(agent, arguments(agent, "gaussian", name, **flags)))
    assert_same_learning(ours, literal_learn(agent, "gaussian", name, **flags))


@pytest.mark.parametrize("name", ["adam", "scaled-adahesscale"])
def test_the_step_size_adapts_to_the_desired_kl_in_both_directions(name):
    args = arguments("ppo", "gaussian", name, update_epochs=4, desired_kl=0.01, delta=1e-4, learning_rate=3e-3)
    ours, literal, rates = Ours("ppo", args), LiteralAgent(args, perturb=perturb), []
    start = literal.vector()
    for _ in range(8):
        assert_same_figures(ours.update(ours.rollout()), literal.update(literal.rollout()))
        assert_same_parameters(ours.vector(), literal.vector(), start)
        rates.append(literal.lr)
        assert {o.param_groups[0]["lr"] for o in ours.optimizers.values()} == {literal.lr}
    changes = np.diff(rates)
    assert changes.max() > 0 > changes.min()


def test_the_step_size_that_adapts_stays_within_its_bounds():
    """An epoch of half the desired KL to twice of it changes nothing; bounds are those of rl_games."""
    optimizers = {net: make_optimizer("sgd", [torch.nn.Parameter(torch.ones(1))], lr=1e-3) for net in "ac"}

    def adapt(lr, kl):
        log_ratio = (2 * kl) ** 0.5  # e^x - 1 - x is x^2 / 2 for a small x
        for o in optimizers.values():
            o.param_groups[0]["lr"] = lr
        ppo_hesscale.adapt_step_size(optimizers, [np.full(3, log_ratio), np.full(3, -log_ratio)], 1e-4)
        (rate,) = {o.param_groups[0]["lr"] for o in optimizers.values()}
        return rate

    assert adapt(1e-3, 1.9e-4) == adapt(1e-3, 0.6e-4) == 1e-3
    assert adapt(1e-3, 2.1e-4) == pytest.approx(1e-3 / 1.5) and adapt(1e-3, 0.4e-4) == pytest.approx(1.5e-3)
    assert adapt(1.2e-6, 1e-3) == 1e-6 and adapt(9e-3, 1e-6) == 1e-2
    # from outside it comes back, and goes no further
    assert adapt(0.1, 1e-6) == 0.1 and adapt(0.1, 1e-3) == pytest.approx(0.1 / 1.5)
    assert adapt(1e-7, 1e-3) == 1e-7 and adapt(1e-7, 1e-6) == pytest.approx(1.5e-7)


@all_policies
def test_target_kl_stops_after_the_epoch_that_exceeds_it(policy):
    """In some rollouts, and not in all; in the others every epoch is made."""
    args = arguments("ppo", policy, update_epochs=4, target_kl=0.01)
    ours, literal, epochs = Ours("ppo", args), LiteralAgent(args, perturb=perturb), []
    start = literal.vector()
    for _ in range(6):
        assert_same_figures(ours.update(ours.rollout()), literal.update(literal.rollout()))
        assert_same_parameters(ours.vector(), literal.vector(), start)
        epochs.append(literal.epochs)
    assert min(epochs) < 4 and max(epochs) == 4


@both
@all_policies
def test_the_cases_above_hold_every_branch(agent, policy):
    """Trust regions bind, curvature has both signs, and some of PPO's ratios are clipped."""
    figures = {name: literal_learn(agent, policy, name)[1] for name in OPTIMIZERS}
    for name in OPTIMIZERS:
        for net in ("actor", "critic"):
            etas = [f.get(f"hesscale/eta_{net}", 0.5) for f in figures[name]]
            assert 0.05 < min(etas) < 0.99
    for name in ("adahessian", "adahesscale", "adahesscalegn"):
        assert 0 < figures[name][-1]["hesscale/negative_curvature_actor"] < 1
    if agent == "ppo":
        assert 0.1 < figures["adam"][-1]["losses/clipfrac"] < 0.5


# ---- runs --------------------------------------------------------------------------------------------------

LONG = dict(num_envs=2, num_steps=35, total_timesteps=2460)  # A2C logs its updates 1 to 30, and then 31 to 35
SHORT = dict(num_envs=1, num_steps=35, total_timesteps=200)
RUNS = [
    ("ppo", "gaussian", dict(optimizer="scaled-adahesscale", delta=1e-6, eps=1e-3, seed=3, anneal_lr=True)),
    ("ppo", "state-dependent gaussian", dict(optimizer="scaled-adam", learning_rate=0.02, anneal_lr=True)),
    ("ppo", "softmax", dict(optimizer="adahessian", num_envs=1, num_minibatches=2)),
    ("ppo", "softmax", dict(optimizer="sgd", max_grad_norm=0.2, norm_obs=False, norm_reward=False)),
    ("a2c", "gaussian", dict(optimizer="scaled-adahesscale", delta=1e-6, eps=1e-3, seed=3, anneal_lr=True) | LONG),
    ("a2c", "state-dependent gaussian", dict(optimizer="scaled-adam", learning_rate=0.01) | LONG),
    ("a2c", "softmax", dict(optimizer="adahessian", anneal_lr=True) | LONG),
    ("ppo", "gaussian", dict(optimizer="adahesscale", time_feature=True, critic_ggn=True, desired_kl=1e-3)),
    ("ppo", "gaussian", dict(optimizer="adam", reset_step=True, betas=(0.9, 0.9))),
    ("a2c", "state-dependent gaussian", dict(optimizer="sgd", orthogonal_init=False, time_feature=True) | SHORT),
    ("a2c", "softmax", dict(optimizer="sgd", max_grad_norm=0.2, norm_obs=False, norm_reward=False) | SHORT),
    ("a2c", "gaussian", dict(optimizer="scaled-adam", betas=(0.8, 0.95), critic_ggn=True) | SHORT),
    ("a2c", "gaussian", dict(optimizer="scaled-adahesscale", delta=1e-6) | SHORT),
    ("ppo", "softmax", dict(optimizer="scaled-adam", delta=1e-6)),
]


def events(folder):
    """All logged scalars of a run by step: {step: {tag: value}}, and the episodes, [(step, return, length)]."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    logged, episodes = defaultdict(dict), {}
    for tag in accumulator.Tags()["scalars"]:
        scalars = accumulator.Scalars(tag)
        if tag.startswith("charts/episodic"):
            episodes[tag] = [(e.step, e.value) for e in scalars]
        else:
            for e in scalars:
                logged[e.step][tag] = e.value
    returns, lengths = episodes["charts/episodic_return"], episodes["charts/episodic_length"]
    return logged, [(step, r, length) for (step, r), (_, length) in zip(returns, lengths, strict=True)]


@pytest.mark.parametrize(
    "agent, policy, flags", RUNS, ids=lambda value: value.get("optimizer") if isinstance(value, dict) else value
)
def test_a_run_is_the_literal_agents(agent, policy, flags, tmp_path, monkeypatch):
    """main from the seed to the saved model: its figures, its episodes and its parameters, but in float64."""
    module, (make_agent, start) = AGENTS[agent], (AGENTS[agent].Agent, AGENTS[agent].start)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "Agent", type("Agent", (make_agent,), {"to": lambda self, *args: self.double()}))
    monkeypatch.setattr(module, "start", lambda *args: start(*args).astype(np.float64))
    defaults = dict(num_envs=2, num_steps=30, total_timesteps=200, num_minibatches=4, update_epochs=2)
    args = module.Args(**((defaults if agent == "ppo" else {}) | POLICIES[policy] | flags), save_model=True)
    step_size = args.learning_rate or module.LEARNING_RATES[args.optimizer]
    literal = LiteralAgent(replace(args, learning_rate=step_size))
    before = literal.vector()
    expected = dict(literal.train())

    module.main(args)
    (folder,) = (tmp_path / "runs").iterdir()
    logged, episodes = events(folder)
    assert list(logged) == list(expected)
    for step, figures in logged.items():
        assert figures.pop("charts/SPS") >= 0
        assert_same_figures(figures, expected[step], rtol=1e-6)  # events are in float32
    assert [step for step, *_ in episodes] == [step for step, *_ in literal.episodes]
    np.testing.assert_allclose([e[1:] for e in episodes], [e[2:] for e in literal.episodes], rtol=1e-5)
    (model,) = folder.glob("*.pt")
    parameters = torch.load(model, weights_only=True)["agent"].values()
    assert_same_parameters(torch.cat([p.flatten() for p in parameters]), literal.vector(), before)


@both
def test_returns_that_are_all_equal_have_no_variance_to_explain(agent):
    ours = Ours(agent, arguments(agent, "gaussian"))
    batch = ours.rollout()
    if agent == "ppo":
        figures = ours.update(batch._replace(returns=np.ones_like(batch.returns)))
    else:
        ours.update(batch)
        ours.history["returns"] = [np.ones_like(a) for a in ours.history["returns"]]
        figures = ours.module.record(ours.optimizers, ours.agent.policy(batch.obs), ours.history)
    assert np.isnan(figures["losses/explained_variance"])
