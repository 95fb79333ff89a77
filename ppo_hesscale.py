"""PPO with HesScale, in the order of CleanRL's ppo_continuous_action.py.

    python ppo_hesscale.py --env-id Hopper-v4 --optimizer scaled-adahesscale

A rollout gives observations, actions, rewards [num_steps, num_envs]; the critic and GAE give returns and advantages.
Each minibatch gives the exact gradient and Hessian diagonal of its losses at the outputs of actor and critic
(hesscale_core's losses); backward carries both to every parameter; and actor and critic each have an optimizer, which
makes the update. But for AdaHessian's, no step runs autograd.
"""

import gc
import itertools
import os
import time
from collections import namedtuple
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from hesscale_core import Gaussian, Softmax, TanhMLP, hutchinson, make_optimizer, ppo_loss, value_loss
from hesscale_envs import closed_if_it_fails, make_envs
from hesscale_run import Run, evaluate, get_state, load_checkpoint, seed_everything, start
from hesscale_utils import (
    check_args,
    check_finite,
    curvature_figures,
    fail,
    limit_threads,
    make_to_net,
    parse_args,
    quiet_end,
    stability_figures,
    to_numpy,
)

LEARNING_RATES = {
    "sgd": 1e-2,
    "adam": 3e-4,
    "adahessian": 3e-3,
    "adahesscale": 3e-4,
    "adahesscalegn": 1e-4,
    "scaled-sgd": 1e-1,
    "scaled-adam": 1e-1,
    "scaled-adahessian": 1e-1,
    "scaled-adahesscale": 1e-1,
    "scaled-adahesscalegn": 1e-1,
}


@dataclass
class Args:
    exp_name: str = os.path.basename(__file__)[: -len(".py")]
    """the name of this experiment"""
    seed: int = 1
    """seed of the experiment"""
    torch_deterministic: bool = True
    """if toggled, `torch.backends.cudnn.deterministic=True`"""
    cuda: bool = False
    """if toggled, the networks live on the GPU if there is one; at this size a CPU is faster"""
    track: bool = False
    """if toggled, this experiment will be tracked with Weights and Biases"""
    wandb_project_name: str = "hesscale-rl"
    """the W&B project's name"""
    wandb_entity: str | None = None
    """the entity (team) of the W&B project"""
    capture_video: bool = False
    """whether to capture videos of the agent's performance (in the `videos` folder; W&B gets none)"""
    save_model: bool = True
    """whether a finished run keeps its agent and normalization statistics (50 kB), for scripts/evaluate.py"""
    eval_interval: int = 0
    """steps between evaluations of the most likely actions, from step 0 on, in an environment of its own; 0 for none"""
    eval_episodes: int = 10
    """the number of episodes of an evaluation"""
    stability: bool = False
    """toggles the figures stability/*: units that no longer learn, feature ranks, norms, the KL of each update"""
    checkpoint_interval: int = 50_000
    """steps between checkpoints, from which --resume goes on; 0 for none but at a signal"""
    resume: str | None = None
    """the folder of a run to go on with; `auto` for the newest unfinished one with these arguments, else a new one"""

    # Algorithm specific arguments
    env_id: str = "Hopper-v4"
    """the id of the environment"""
    env_kwargs: str = ""
    """arguments of the environment, as in `map_name=8x8,is_slippery=False`: Python literals or words"""
    total_timesteps: int = 1_000_000
    """total timesteps of the experiment"""
    optimizer: str = "scaled-adahesscale"
    """sgd, adam, adahessian, adahesscale or adahesscalegn, or one of them with step-size scaling: scaled-sgd, ..."""
    learning_rate: float | None = None
    """the step size; left out, the optimizer's measured default"""
    betas: tuple[float, float] = (0.9, 0.999)
    """decay rates of the first and the second moment; equal ones are Dohare et al.'s (2023) remedy for collapse"""
    eps: float = 1e-5
    """term added to the square root of the second moment"""
    delta: float = 1e-7
    """radius of the trust region of the scaled optimizers (Algorithm 3)"""
    critic_ggn: bool = False
    """toggles the exact Gauss-Newton diagonal as the critic's curvature, in place of HesScale's"""
    adam_log_std: bool = True
    """toggles Adam's second moment for a parameter log_std, its squared gradient, in AdaHesScale and its variants"""
    state_std: bool = False
    """toggles a network of its own for the Gaussian policy's standard deviation, obs -> 64 tanh -> action"""
    orthogonal_init: bool = True
    """toggles orthogonal initial weights and zero biases; without, torch's default for linear layers"""
    time_feature: bool = False
    """toggles one more observation, the share of the time limit that has passed minus 0.5, normalized as the others"""
    num_envs: int = 1
    """the number of parallel game environments"""
    num_steps: int = 2048
    """the number of steps to run in each environment per policy rollout"""
    norm_obs: bool = True
    """toggles the normalization of observations by their running mean and variance"""
    norm_reward: bool = True
    """toggles the normalization of rewards by the running variance of the discounted return"""
    anneal_lr: bool = False
    """toggle linear annealing of the updates to zero: of the step size, and of delta with its square"""
    gamma: float = 0.99
    """the discount factor gamma"""
    gae_lambda: float = 0.95
    """the lambda for the general advantage estimation"""
    num_minibatches: int = 32
    """the number of mini-batches"""
    update_epochs: int = 10
    """the K epochs to update the policy"""
    norm_adv: bool = True
    """toggles advantages normalization"""
    clip_coef: float = 0.2
    """the surrogate clipping coefficient"""
    clip_vloss: bool = False
    """toggles whether or not to use a clipped loss for the value function"""
    ent_coef: float = 0.0
    """coefficient of the entropy"""
    max_grad_norm: float | None = None
    """the maximum norm of the gradient of actor and critic together; None for no clipping"""
    target_kl: float | None = None
    """the target KL divergence threshold"""
    desired_kl: float | None = None
    """the KL divergence of an epoch to which the step size adapts: / 1.5 above twice this, * 1.5 below half of it"""
    reset_step: bool = False
    """toggles a step count of the optimizers that begins anew with each rollout, as in Adam-Rel"""


def check_minibatches(args):
    """End the program with one line if the rollout can't be cut into minibatches."""
    batch_size = args.num_envs * args.num_steps
    if batch_size < args.num_minibatches * (2 if args.norm_adv else 1):
        least = "2 samples, which --norm-adv needs" if args.norm_adv else "1 sample"
        fail(f"--num-minibatches {args.num_minibatches}: a rollout of {batch_size} gives none of them {least}")
    if batch_size % args.num_minibatches:
        fail(f"--num-minibatches {args.num_minibatches}: must divide the batch, num_envs * num_steps = {batch_size}")


class Agent(nn.Module):
    """A critic, and an actor whose output is a Softmax policy's logits or a Gaussian policy's mean [action_dim].

    The Gaussian's log_std [action_dim] is a parameter of the actor or, with state_std, the output of a third network.
    """

    def __init__(self, obs_dim, action_dim, discrete, state_std=False, orthogonal_init=True):
        super().__init__()
        self.discrete, self.state_std, self.to_net = discrete, state_std, to_numpy
        self.critic = TanhMLP(obs_dim, (64, 64), 1, output_gain=1.0)
        self.actor = TanhMLP(obs_dim, (64, 64), action_dim, output_gain=0.01, log_std=not (discrete or state_std))
        if state_std:
            self.actor_std = TanhMLP(obs_dim, (64,), action_dim, output_gain=0.01)
        if not orthogonal_init:
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()

    def policy(self, obs):
        """Return the distribution of the actions, given observations [B, obs_dim]."""
        if self.discrete:
            return Softmax(self.actor(obs))
        return Gaussian(self.actor(obs), self.actor_std(obs) if self.state_std else self.actor.log_std_like(obs))

    def noise(self, rng, *batch):
        """Draw the noise [*batch, action_dim] that makes actions: a rollout's at once, because that is cheaper."""
        shape = *batch, self.actor.layers[-1].out_features
        if self.discrete:
            return rng.gumbel(size=shape).astype(np.float32)
        noise = rng.standard_normal(shape, np.float32)
        return noise if self.state_std else noise * np.exp(to_numpy(self.actor.log_std))

    def act(self, obs, noise):
        """Return the actions [B, action_dim], or integers [B], that `noise` draws; 0.0 draws the most likely ones."""
        obs = self.to_net(obs)
        output = to_numpy(self.actor(obs))
        if self.discrete:
            return (output + noise).argmax(-1)  # the largest of logits + Gumbel noise is a sample of the softmax
        return output + (noise * np.exp(to_numpy(self.actor_std(obs))) if self.state_std else noise)

    def backward(self, pg, v, needs_hess, gauss_newton, critic_ggn=False):
        """Carry the derivatives of policy loss and value loss from the networks' outputs to every parameter."""
        if not needs_hess:
            pg, v = pg._replace(hess=None, hess_log_std=None), v._replace(hess=None)
        if self.state_std:
            self.actor.backward(pg.grad, pg.hess, gauss_newton)
            self.actor_std.backward(pg.grad_log_std, pg.hess_log_std, gauss_newton)
        else:
            self.actor.backward(pg.grad, pg.hess, gauss_newton, pg.grad_log_std, pg.hess_log_std)
        self.critic.backward(v.grad, v.hess, "exact" if critic_ggn else gauss_newton)


def compute_gae(rewards, values, next_values, terminations, dones, gamma, gae_lambda):
    """Generalized advantage estimation; every array is [num_steps, num_envs].

    next_values holds the value of each step's real successor: at an episode's end that of its last
    observation, not of the next episode's first. A termination has no successor, a truncation has one.
    """
    deltas = rewards + gamma * next_values * (1 - terminations) - values
    decay = gamma * gae_lambda * (1 - dones)
    advantages = np.empty_like(deltas)
    last = np.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        advantages[t] = last = deltas[t] + decay[t] * last
    return advantages


# a rollout, flattened: arrays [num_steps * num_envs, ...]; returns and values are columns, as the critic's output is
Batch = namedtuple("Batch", "obs actions log_probs returns values advantages")


def rollout(args, agent, envs, next_obs, rng, run):
    """Act for num_steps in every environment, from observations [num_envs, obs_dim], which become those after it."""
    # ALGO Logic: Storage setup
    noise, to_net, num_envs = agent.noise(rng, args.num_steps, args.num_envs), agent.to_net, args.num_envs
    obs = np.zeros((args.num_steps, *next_obs.shape), next_obs.dtype)
    actions = np.zeros(noise.shape[:2], np.int64) if agent.discrete else np.zeros(noise.shape, next_obs.dtype)
    rewards, terminations, dones = np.zeros((3, *noise.shape[:2]), next_obs.dtype)
    truncated_at, final_obs = [], []

    for step in range(args.num_steps):
        run.step += num_envs
        obs[step] = next_obs
        actions[step] = agent.act(next_obs, noise[step])
        for i, env in enumerate(envs):
            next_obs[i], rewards[step, i], terminated, truncated = env.step(actions[step, i])
            if terminated or truncated:
                terminations[step, i], dones[step, i] = terminated, True
                run.log_episode(run.step, env)
                if not terminated:
                    truncated_at.append((step, i))
                    final_obs.append(next_obs[i].copy())
                next_obs[i] = env.reset()

    # log-probabilities and values at once, because one forward pass costs less than one for each step
    b_obs = obs.reshape(-1, obs.shape[-1])
    b_actions = actions.reshape(len(b_obs), *actions.shape[2:])
    b_log_probs = to_numpy(agent.policy(to_net(b_obs)).log_prob(to_net(b_actions)))
    values = to_numpy(agent.critic(to_net(b_obs))).reshape(rewards.shape)

    # values of what followed each step: the next observation or, if the episode was truncated, its own last one
    next_values = np.concatenate([values[1:], to_numpy(agent.critic(to_net(next_obs))).T])
    if truncated_at:
        next_values[tuple(zip(*truncated_at, strict=True))] = to_numpy(agent.critic(to_net(np.stack(final_obs))))[:, 0]
    advantages = compute_gae(rewards, values, next_values, terminations, dones, args.gamma, args.gae_lambda)
    check_finite(args, run.step, actions=b_log_probs, advantages=advantages)
    returns, values = (advantages + values).reshape(-1, 1), values.reshape(-1, 1)
    return Batch(b_obs, b_actions, b_log_probs, returns, values, advantages.reshape(-1))


def adapt_step_size(optimizers, log_ratios, desired_kl):
    """Adapt the step size to the KL divergence that an epoch's log-ratios estimate, as rl_games does.

    It stays within its bounds, 1e-6 and 1e-2; from outside it only moves back in.
    """
    kl = (np.exp(log_ratios) - 1 - log_ratios).mean()
    for optimizer in optimizers.values():
        group = optimizer.param_groups[0]
        if kl > 2 * desired_kl:
            group["lr"] = min(group["lr"], max(group["lr"] / 1.5, 1e-6))
        elif kl < desired_kl / 2:
            group["lr"] = max(group["lr"], min(group["lr"] * 1.5, 1e-2))


def update(args, agent, optimizers, batch, rng):
    """Optimize the policy and value networks for update_epochs, on minibatches; return the figures to log, by tag."""
    optimizer = optimizers["actor"]
    by_autograd, gauss_newton = optimizer.curvature == "Hutchinson", optimizer.curvature == "HesScaleGN"
    adam_log_std = args.adam_log_std and optimizer.second_moment == "hess" and not by_autograd
    adam_log_std = adam_log_std and agent.actor.log_std is not None
    parameters = [p for o in optimizers.values() for p in o.param_groups[0]["params"]]
    to_batch = partial(torch.as_tensor, device=parameters[0].device) if by_autograd else agent.to_net
    if args.reset_step:  # each rollout is a new objective; the moments stay (Ellis et al. 2024)
        for state in itertools.chain(*(o.state.values() for o in optimizers.values())):
            state["step"] = 0
    log_ratios, scales = [], []
    for _ in range(args.update_epochs):
        # shuffled and normalized as a whole, which is cheaper: each array [num_minibatches, minibatch_size, ...]
        b_inds = rng.permutation(len(batch.obs)).reshape(args.num_minibatches, -1)
        *minibatches, advantages = (array[b_inds] for array in batch)
        if args.norm_adv:
            advantages -= advantages.mean(1, keepdims=True)
            advantages /= advantages.std(1, ddof=1, keepdims=True) + 1e-8
        for mb_obs, mb_actions, mb_log_probs, mb_returns, mb_values, mb_advantages in zip(
            *map(to_batch, (*minibatches, advantages)), strict=True
        ):
            # Policy loss and value loss
            policy, value = agent.policy(mb_obs), agent.critic(mb_obs)
            pg = ppo_loss(policy, mb_actions, mb_log_probs, mb_advantages, args.clip_coef, args.ent_coef)
            v = value_loss(value, mb_returns, *((mb_values, args.clip_coef) if args.clip_vloss else ()))
            log_ratios.append(to_numpy(pg.log_prob - mb_log_probs))

            # their derivatives with respect to every parameter, and a step of each optimizer
            if by_autograd:
                hutchinson(pg.loss + v.loss, agent.parameters())  # no parameter is in both
            else:
                agent.backward(pg, v, optimizer.needs_hess, gauss_newton, args.critic_ggn)
            if args.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
            if adam_log_std:
                agent.actor.log_std_hess_from_grad()
            for o in optimizers.values():
                o.update()
            scales.append([(o.eta, o.trust_region) for o in optimizers.values()])

        last_log_ratio = log_ratios[-1]
        approx_kl = (np.exp(last_log_ratio) - 1 - last_log_ratio).mean()
        if args.desired_kl is not None:
            adapt_step_size(optimizers, log_ratios[-args.num_minibatches :], args.desired_kl)
        if args.target_kl is not None and approx_kl > args.target_kl:
            break

    figures = {
        "charts/learning_rate": optimizer.param_groups[0]["lr"],
        "losses/value_loss": to_numpy(v.loss),
        "losses/policy_loss": to_numpy(pg.loss + args.ent_coef * policy.entropy()),  # CleanRL's is without the bonus
        "losses/entropy": to_numpy(policy.entropy()),
        "losses/old_approx_kl": -last_log_ratio.mean(),
        "losses/approx_kl": approx_kl,
        "losses/clipfrac": (np.abs(np.exp(log_ratios) - 1) > args.clip_coef).mean(),
        "losses/explained_variance": 1 - (batch.returns - batch.values).var() / (batch.returns.var() or np.nan),
    }
    return figures | curvature_figures(optimizers, scales)


def main(args):
    checkpoint = load_checkpoint(args, LEARNING_RATES)
    check_args(args)
    check_minibatches(args)
    limit_threads()
    np.seterr(all="ignore")  # an optimizer reports an overflow that reaches its update
    args.learning_rate = args.learning_rate or LEARNING_RATES[args.optimizer]
    batch_size = args.num_envs * args.num_steps
    num_iterations = args.total_timesteps // batch_size
    run_name = f"{args.env_id}__{args.exp_name}__{args.optimizer}__{args.seed}__{int(time.time())}"

    # seeding and env setup; seeded again, because an environment may draw numbers, or seed, as it is made
    seed_everything(args.seed, args.torch_deterministic)
    envs = make_envs(args, run_name)
    rng = seed_everything(args.seed, args.torch_deterministic)

    # agent setup: one optimizer, and so one trust region, for the critic and one for all networks of the policy
    # (Algorithm 3); AdaHessian's derivatives are autograd's, of the parameters one by one
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    sizes = envs[0].obs_dim, envs[0].action_dim, envs[0].discrete
    agent = Agent(*sizes, args.state_std, args.orthogonal_init).to(device, torch.float32)
    agent.to_net = make_to_net(device)
    options = dict(lr=args.learning_rate, betas=args.betas, eps=args.eps, delta=args.delta)
    by_autograd = "adahessian" in args.optimizer
    networks = {"critic": [agent.critic], "actor": [agent.actor, agent.actor_std] if args.state_std else [agent.actor]}
    optimizers = {}
    for name, nets in networks.items():
        params = [p for net in nets for p in (net.parameters() if by_autograd else [net.flat])]
        optimizers[name] = make_optimizer(args.optimizer, params, **options)

    with closed_if_it_fails(envs), Run(args, run_name, checkpoint) as run:
        next_obs = start(args, envs, checkpoint, agent, optimizers, rng)
        if args.eval_interval and not run.step:
            run.log(0, evaluate(args, agent, envs))  # untrained, which the others are held against
        gc.freeze()  # the collector need not go through what the imports made, again and again
        for iteration in range(run.step // batch_size + 1, num_iterations + 1):
            if args.anneal_lr:
                frac = 1 - (iteration - 1) / num_iterations
                for optimizer in optimizers.values():
                    group = optimizer.param_groups[0]
                    # the radius as well, because a trust region that binds cancels the step size
                    group["lr"], group["delta"] = frac * args.learning_rate, frac**2 * args.delta
            batch = rollout(args, agent, envs, next_obs, rng, run)
            policy_before = agent.policy(agent.to_net(batch.obs)) if args.stability else None
            figures = update(args, agent, optimizers, batch, rng)

            # record for plotting purposes
            run.log(run.step, figures | {"charts/SPS": run.sps(run.step)})
            run.progress(run.step)
            check_finite(args, run.step, parameters=nn.utils.parameters_to_vector(agent.parameters()))
            if args.stability:
                run.log(run.step, stability_figures(agent, policy_before, agent.to_net(batch.obs)))
            if args.eval_interval and (run.step % args.eval_interval < batch_size or iteration == num_iterations):
                run.log(run.step, evaluate(args, agent, envs))
            run.checkpoint(run.step, lambda: get_state(agent, optimizers, envs, rng))

        if args.save_model:
            run.save_model(agent, envs)
        for env in envs:
            env.close()


if __name__ == "__main__":
    with quiet_end():
        main(parse_args(Args))
