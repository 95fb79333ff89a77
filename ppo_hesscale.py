"""PPO with HesScale on continuous control, in the order of CleanRL's ppo_continuous_action.py.

    python ppo_hesscale.py --env-id Hopper-v4 --optimizer scaled-adahesscale

A rollout gives observations, actions, rewards [num_steps, num_envs]; the critic and GAE give returns and
advantages; each minibatch gives the exact gradient and Hessian diagonal of its loss at the two networks'
outputs (hesscale_core's losses), which backpropagate to every parameter (TanhMLP.backward); and an optimizer
each for actor and critic makes the update. No step of it runs autograd.
"""

import os

# for layers of 64 units a second thread costs more than it brings; must come before numpy is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import math
import random
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hesscale_core import OPTIMIZERS, TanhMLP, gaussian_log_prob, gaussian_ppo_loss, make_optimizer, value_loss
from hesscale_utils import Run, array_functions, fail, make_env, parse_args, share_negative

LEARNING_RATES = {
    "adam": 3e-4,
    "adahesscale": 1e-3,
    "adahesscalegn": 1e-3,
    "scaled-adam": 1e-3,
    "scaled-adahesscale": 1e-3,
    "scaled-adahesscalegn": 1e-3,
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
    """whether to capture videos of the agent's performance (in the `videos` folder)"""
    save_model: bool = False
    """whether to save the agent and its normalization statistics into the run's folder"""

    # Algorithm specific arguments
    env_id: str = "Hopper-v4"
    """the id of the environment"""
    total_timesteps: int = 1_000_000
    """total timesteps of the experiment"""
    optimizer: str = "scaled-adahesscale"
    """adam, adahesscale or adahesscalegn, or one of them with step-size scaling: scaled-adam, ..."""
    learning_rate: float | None = None
    """the step size; left out, the optimizer's measured default"""
    delta: float = 1e-8
    """radius of the trust region of the scaled optimizers (Algorithm 3)"""
    num_envs: int = 1
    """the number of parallel game environments"""
    num_steps: int = 2048
    """the number of steps to run in each environment per policy rollout"""
    anneal_lr: bool = False
    """toggle linear annealing of the step size to zero"""
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


def check_args(args):
    """End the program with one line where a value can't work, before anything is made."""
    for flag in ("total_timesteps", "num_envs", "num_steps", "num_minibatches", "update_epochs"):
        if getattr(args, flag) < 1:
            fail(f"--{flag.replace('_', '-')} {getattr(args, flag)}: must be at least 1")
    if args.optimizer not in OPTIMIZERS:
        fail(f"--optimizer {args.optimizer}: choose one of {', '.join(OPTIMIZERS)}")
    for flag in ("learning_rate", "delta", "clip_coef", "max_grad_norm", "target_kl"):
        value = getattr(args, flag)
        if value is not None and not 0 < value < math.inf:
            fail(f"--{flag.replace('_', '-')} {value}: must be a number above 0")
    for flag in ("gamma", "gae_lambda"):
        if not 0 <= getattr(args, flag) <= 1:
            fail(f"--{flag.replace('_', '-')} {getattr(args, flag)}: must be in [0, 1]")
    if not 0 <= args.ent_coef < math.inf:
        fail(f"--ent-coef {args.ent_coef}: must be a number >= 0")
    if not 0 <= args.seed < 2**32:
        fail(f"--seed {args.seed}: must be in [0, 2^32)")
    batch_size = args.num_envs * args.num_steps
    if batch_size < args.num_minibatches * (2 if args.norm_adv else 1):
        least = "2 samples, which --norm-adv needs" if args.norm_adv else "1 sample"
        fail(f"--num-minibatches {args.num_minibatches}: a rollout of {batch_size} gives none of them {least}")
    if batch_size % args.num_minibatches:
        fail(f"--num-minibatches {args.num_minibatches}: must divide the batch, num_envs * num_steps = {batch_size}")
    if args.total_timesteps < batch_size:
        fail(f"--total-timesteps {args.total_timesteps}: is less than one rollout, num_envs * num_steps = {batch_size}")


class Agent(nn.Module):
    """A Gaussian policy whose log_std [action_dim] is a parameter, and a critic."""

    def __init__(self, obs_dim, action_dim):
        super().__init__()
        self.critic = TanhMLP(obs_dim, (64, 64), 1, output_gain=1.0)
        self.actor_mean = TanhMLP(obs_dim, (64, 64), action_dim, output_gain=0.01)
        self.actor_log_std = nn.Parameter(torch.zeros(action_dim))

    def actor_parameters(self):
        return [*self.actor_mean.parameters(), self.actor_log_std]


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


def main(args):
    check_args(args)
    np.seterr(all="ignore")  # an overflow is reported by the optimizer whose update it reaches
    args.learning_rate = args.learning_rate or LEARNING_RATES[args.optimizer]
    batch_size = args.num_envs * args.num_steps
    minibatch_size = batch_size // args.num_minibatches
    num_iterations = args.total_timesteps // batch_size
    run_name = f"{args.env_id}__{args.exp_name}__{args.optimizer}__{args.seed}__{int(time.time())}"

    # seeding
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = args.torch_deterministic
    rng = np.random.default_rng(args.seed)

    # env setup
    envs = [
        make_env(args.env_id, args.gamma, f"videos/{run_name}" if args.capture_video and i == 0 else None)
        for i in range(args.num_envs)
    ]
    obs_dim, action_dim = envs[0].obs_dim, envs[0].action_dim

    # agent setup: the networks take numpy arrays on the CPU and tensors on a GPU
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    to_net, to_numpy = array_functions(device)
    agent = Agent(obs_dim, action_dim).to(device)
    actor, critic = agent.actor_mean, agent.critic
    # one optimizer and so one trust region each; eps is CleanRL's
    options = dict(lr=args.learning_rate, eps=1e-5, delta=args.delta)
    actor_optimizer = make_optimizer(args.optimizer, agent.actor_parameters(), **options)
    critic_optimizer = make_optimizer(args.optimizer, critic.parameters(), **options)
    needs_hess, gauss_newton = actor_optimizer.needs_hess, actor_optimizer.gauss_newton
    log_std = to_net(agent.actor_log_std.detach())  # shares the parameter's memory, and so follows it

    run = Run(args, run_name)
    print(f"{args.optimizer} with step size {args.learning_rate:g} on {args.env_id}, seed {args.seed}, in {run.folder}")

    # ALGO Logic: Storage setup
    obs = np.zeros((args.num_steps, args.num_envs, obs_dim), np.float32)
    actions = np.zeros((args.num_steps, args.num_envs, action_dim), np.float32)
    rewards, terminations, dones = (np.zeros((args.num_steps, args.num_envs), np.float32) for _ in range(3))

    # start the game
    global_step = 0
    next_obs = np.stack([env.reset(seed=args.seed + i) for i, env in enumerate(envs)])

    for iteration in range(1, num_iterations + 1):
        if args.anneal_lr:
            lr = (1 - (iteration - 1) / num_iterations) * args.learning_rate
            actor_optimizer.param_groups[0]["lr"] = critic_optimizer.param_groups[0]["lr"] = lr

        # ALGO LOGIC: rollout. The policy's noise is drawn at once; values and log-probabilities wait for the
        # rollout's end, so that a step costs one forward pass of the actor
        noise = rng.standard_normal(actions.shape, np.float32)
        scaled_noise = np.exp(to_numpy(log_std)) * noise
        truncated_at, final_obs = [], []
        for step in range(args.num_steps):
            global_step += args.num_envs
            obs[step] = next_obs
            actions[step] = to_numpy(actor(to_net(next_obs))) + scaled_noise[step]
            for i, env in enumerate(envs):
                next_obs[i], rewards[step, i], terminated, truncated = env.step(actions[step, i])
                terminations[step, i], dones[step, i] = terminated, terminated or truncated
                if terminated or truncated:
                    run.log_episode(global_step, env)
                    if not terminated:
                        truncated_at.append((step, i))
                        final_obs.append(next_obs[i].copy())
                    next_obs[i] = env.reset()

        # values of the rollout, and of what followed each step: the next observation, or where an episode was
        # truncated its own last one
        values = to_numpy(critic(to_net(obs.reshape(-1, obs_dim)))).reshape(rewards.shape)
        next_values = np.concatenate([values[1:], to_numpy(critic(to_net(next_obs))).T])
        if truncated_at:
            next_values[tuple(zip(*truncated_at, strict=True))] = to_numpy(critic(to_net(np.stack(final_obs))))[:, 0]
        advantages = compute_gae(rewards, values, next_values, terminations, dones, args.gamma, args.gae_lambda)
        returns = advantages + values
        log_probs = gaussian_log_prob(0 * noise, to_numpy(log_std), scaled_noise)

        # flatten the batch
        b_obs = to_net(obs.reshape(-1, obs_dim))
        b_actions = to_net(actions.reshape(-1, action_dim))
        b_log_probs = to_net(log_probs.reshape(-1))
        b_advantages = to_net(advantages.reshape(-1))
        b_returns = to_net(returns.reshape(-1, 1))
        b_values = to_net(values.reshape(-1, 1))

        # Optimizing the policy and value network
        log_ratios, etas, trust_regions = [], [], []
        for _ in range(args.update_epochs):
            b_inds = rng.permutation(batch_size)
            for start in range(0, batch_size, minibatch_size):
                mb_inds = b_inds[start : start + minibatch_size]
                mb_obs, mb_actions, mb_log_probs = b_obs[mb_inds], b_actions[mb_inds], b_log_probs[mb_inds]
                mb_advantages = b_advantages[mb_inds]
                if args.norm_adv:
                    mb_advantages = mb_advantages - mb_advantages.mean()
                    std = math.sqrt((mb_advantages * mb_advantages).sum() / (minibatch_size - 1))
                    mb_advantages = mb_advantages / (std + 1e-8)

                # Policy loss, its derivatives at the actor's output, and from there to every parameter
                mean = actor(mb_obs)
                pg = gaussian_ppo_loss(
                    mean, log_std, mb_actions, mb_log_probs, mb_advantages, args.clip_coef, args.ent_coef
                )
                log_ratios.append(gaussian_log_prob(mean, log_std, mb_actions) - mb_log_probs)
                actor.backward(pg.grad_mean, pg.hess_mean if needs_hess else None, gauss_newton)
                agent.actor_log_std.grad = torch.as_tensor(pg.grad_log_std)
                agent.actor_log_std.hess = torch.as_tensor(pg.hess_log_std)

                # Value loss, likewise
                value = critic(mb_obs)
                old = dict(old_value=b_values[mb_inds], clip_coef=args.clip_coef) if args.clip_vloss else {}
                v = value_loss(value, b_returns[mb_inds], **old)
                critic.backward(v.grad_value, v.hess_value if needs_hess else None, gauss_newton)

                if args.max_grad_norm is not None:
                    nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                actor_optimizer.step()
                critic_optimizer.step()
                etas.append((actor_optimizer.eta, critic_optimizer.eta))
                trust_regions.append((actor_optimizer.trust_region, critic_optimizer.trust_region))

            last_log_ratio = to_numpy(log_ratios[-1])
            approx_kl = (np.exp(last_log_ratio) - 1 - last_log_ratio).mean()
            if args.target_kl is not None and approx_kl > args.target_kl:
                break

        # record for plotting purposes
        log_ratio = np.stack([to_numpy(x) for x in log_ratios])
        var_returns = returns.var()
        run.log(global_step, {
            "charts/learning_rate": actor_optimizer.param_groups[0]["lr"],
            "charts/SPS": run.sps(global_step),
            "losses/value_loss": float(v.loss),
            "losses/policy_loss": float(pg.loss),
            "losses/entropy": float(log_std.sum() + 0.5 * action_dim * math.log(2 * math.pi * math.e)),
            "losses/old_approx_kl": -last_log_ratio.mean(),
            "losses/approx_kl": approx_kl,
            "losses/clipfrac": (np.abs(np.exp(log_ratio) - 1) > args.clip_coef).mean(),
            "losses/explained_variance": 1 - (returns - values).var() / var_returns if var_returns > 0 else np.nan,
        })  # fmt: skip
        if needs_hess:
            run.log(global_step, {
                "hesscale/negative_curvature_actor": share_negative(agent.actor_parameters()),
                "hesscale/negative_curvature_critic": share_negative(critic.parameters()),
            })  # fmt: skip
        if actor_optimizer.delta is not None:
            eta_actor, eta_critic = np.mean(etas, axis=0)
            half_uHu_actor, half_uHu_critic = np.mean(trust_regions, axis=0) / 2
            run.log(global_step, {
                "hesscale/eta_actor": eta_actor,
                "hesscale/eta_critic": eta_critic,
                "hesscale/trust_region_actor": half_uHu_actor,
                "hesscale/trust_region_critic": half_uHu_critic,
            })  # fmt: skip
        run.progress(global_step)

    if args.save_model:
        path = f"{run.folder}/{args.exp_name}.pt"
        statistics = [
            {name: {k: torch.as_tensor(v) for k, v in vars(rms).items()} for name, rms in env.statistics.items()}
            for env in envs
        ]
        torch.save({"agent": agent.state_dict(), "statistics": statistics}, path)
        print(f"model saved to {path}")
    for env in envs:
        env.close()
    run.close()
    print(
        f"{global_step:,} steps at {run.sps(global_step):,} steps/s; "
        f"mean return of the last {len(run.recent_returns)} episodes {run.mean_return():.1f}"
    )


if __name__ == "__main__":
    try:
        main(parse_args(Args))
    except FloatingPointError as error:  # of an optimizer: the run diverged
        fail(error)
