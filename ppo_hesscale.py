"""PPO with HesScale, in the order of CleanRL's ppo_continuous_action.py.

    python ppo_hesscale.py --env-id Hopper-v4 --optimizer scaled-adahesscale

A rollout gives observations, actions, rewards [num_steps, num_envs]; the critic and GAE give returns and
advantages; each minibatch gives the exact gradient and Hessian diagonal of its loss at the two networks'
outputs (hesscale_core's losses), which backpropagate to every parameter (TanhMLP.backward); and an optimizer
each for actor and critic makes the update. No step of it runs autograd.
"""

import os

# for layers of 64 units a second thread costs more than it brings; must come before numpy is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import math
import random
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hesscale_core import (
    TanhMLP,
    gaussian_entropy,
    gaussian_log_prob,
    gaussian_ppo_loss,
    hutchinson,
    make_optimizer,
    set_derivatives,
    softmax_entropy,
    softmax_log_prob,
    softmax_ppo_loss,
    value_loss,
)
from hesscale_run import Run, execute, get_random_states, load_checkpoint, set_random_states
from hesscale_utils import array_functions, check_args, check_finite, fail, make_env, parse_args, share_negative

LEARNING_RATES = {
    "sgd": 1e-2,
    "adam": 3e-4,
    "adahessian": 1e-3,
    "adahesscale": 3e-4,
    "adahesscalegn": 3e-4,
    "scaled-sgd": 1e-2,
    "scaled-adam": 1e-3,
    "scaled-adahessian": 1e-3,
    "scaled-adahesscale": 1e-3,
    "scaled-adahesscalegn": 3e-4,
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
    checkpoint_interval: int = 50_000
    """steps between checkpoints, from which --resume goes on; 0 for none but at a signal"""
    resume: str | None = None
    """the folder of a run to go on with; `auto` for the newest unfinished one with these arguments, else a new one"""

    # Algorithm specific arguments
    env_id: str = "Hopper-v4"
    """the id of the environment"""
    total_timesteps: int = 1_000_000
    """total timesteps of the experiment"""
    optimizer: str = "scaled-adahesscale"
    """sgd, adam, adahessian, adahesscale or adahesscalegn, or one of them with step-size scaling: scaled-sgd, ..."""
    learning_rate: float | None = None
    """the step size; left out, the optimizer's measured default"""
    eps: float = 1e-5
    """what is added to the square root of the second moment"""
    delta: float = 1e-8
    """radius of the trust region of the scaled optimizers (Algorithm 3)"""
    num_envs: int = 1
    """the number of parallel game environments"""
    num_steps: int = 2048
    """the number of steps to run in each environment per policy rollout"""
    norm_obs: bool = True
    """toggles the normalization of observations by their running mean and variance"""
    norm_reward: bool = True
    """toggles the normalization of rewards by the running variance of the discounted return"""
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


def check_minibatches(args):
    """End the program with one line where the rollout can't be cut into minibatches."""
    batch_size = args.num_envs * args.num_steps
    if batch_size < args.num_minibatches * (2 if args.norm_adv else 1):
        least = "2 samples, which --norm-adv needs" if args.norm_adv else "1 sample"
        fail(f"--num-minibatches {args.num_minibatches}: a rollout of {batch_size} gives none of them {least}")
    if batch_size % args.num_minibatches:
        fail(f"--num-minibatches {args.num_minibatches}: must divide the batch, num_envs * num_steps = {batch_size}")


class Agent(nn.Module):
    """An actor and a critic; the actor gives a softmax policy's logits or a Gaussian policy's mean [action_dim]."""

    def __init__(self, obs_dim, action_dim, discrete):
        super().__init__()
        self.critic = TanhMLP(obs_dim, (64, 64), 1, output_gain=1.0)
        self.actor = TanhMLP(obs_dim, (64, 64), action_dim, output_gain=0.01)
        self.log_std = None if discrete else nn.Parameter(torch.zeros(action_dim))

    def actor_parameters(self):
        return [*self.actor.parameters(), *([] if self.log_std is None else [self.log_std])]


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
    checkpoint = load_checkpoint(args, LEARNING_RATES)
    check_args(args)
    check_minibatches(args)
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
    videos = f"videos/{run_name}" if args.capture_video else None
    envs = [make_env(args, videos if i == 0 else None) for i in range(args.num_envs)]
    obs_dim, action_dim, discrete = envs[0].obs_dim, envs[0].action_dim, envs[0].discrete

    # agent setup: one optimizer, and so one trust region, for each network
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    agent = Agent(obs_dim, action_dim, discrete).to(device)
    actor, critic = agent.actor, agent.critic
    options = dict(lr=args.learning_rate, eps=args.eps, delta=args.delta)
    actor_optimizer = make_optimizer(args.optimizer, agent.actor_parameters(), **options)
    critic_optimizer = make_optimizer(args.optimizer, critic.parameters(), **options)
    needs_hess, gauss_newton = actor_optimizer.needs_hess, actor_optimizer.gauss_newton
    if checkpoint is not None:
        agent.load_state_dict(checkpoint["agent"])
        actor_optimizer.load_state_dict(checkpoint["actor_optimizer"])
        critic_optimizer.load_state_dict(checkpoint["critic_optimizer"])

    # the networks take numpy arrays on the CPU and tensors on a GPU; AdaHessian's update needs autograd's tensors
    to_net, to_numpy = array_functions(device)
    by_autograd = actor_optimizer.hutchinson
    to_batch = (lambda array: torch.as_tensor(array, device=device)) if by_autograd else to_net

    # policy setup: what the actor's output means, and what besides it the policy consists of
    if discrete:
        log_prob, entropy, ppo_loss, log_std = softmax_log_prob, softmax_entropy, softmax_ppo_loss, ()
    else:
        log_prob, entropy, ppo_loss = gaussian_log_prob, gaussian_entropy, gaussian_ppo_loss
        # the array shares the parameter's memory, and so follows it
        log_std = (agent.log_std if by_autograd else to_net(agent.log_std.detach()),)

    run = Run(args, run_name, checkpoint)
    print(f"{args.optimizer} with step size {args.learning_rate:g} on {args.env_id}, seed {args.seed}, in {run.folder}")

    # ALGO Logic: Storage setup
    obs = np.zeros((args.num_steps, args.num_envs, obs_dim), np.float32)
    outputs = np.zeros((args.num_steps, args.num_envs, action_dim), np.float32)  # the actor's
    actions = np.zeros(outputs.shape[:2], np.int64) if discrete else np.zeros_like(outputs)
    rewards, terminations, dones = (np.zeros((args.num_steps, args.num_envs), np.float32) for _ in range(3))

    def get_state():
        """What a checkpoint holds besides the run's own."""
        return {
            "agent": agent.state_dict(),
            "actor_optimizer": actor_optimizer.state_dict(),
            "critic_optimizer": critic_optimizer.state_dict(),
            "envs": [env.get_state() for env in envs],
            "random_states": get_random_states(rng),
        }

    # start the game, or go on with it
    global_step = run.step
    next_obs = np.stack([env.reset(seed=args.seed + i) for i, env in enumerate(envs)])
    if checkpoint is not None:
        states = enumerate(zip(envs, checkpoint["envs"], strict=True))
        next_obs = np.stack([env.set_state(state, seed=args.seed + global_step + i) for i, (env, state) in states])
        set_random_states(checkpoint["random_states"], rng)
    if unsaved := envs[0].unsaved():
        print(f"note: {unsaved}, which a checkpoint can't hold: --resume will begin a new episode")

    gc.freeze()  # what the imports made stays: the collector need not go through it again and again
    for iteration in range(global_step // batch_size + 1, num_iterations + 1):
        if args.anneal_lr:
            lr = (1 - (iteration - 1) / num_iterations) * args.learning_rate
            actor_optimizer.param_groups[0]["lr"] = critic_optimizer.param_groups[0]["lr"] = lr

        # ALGO LOGIC: rollout. The policy's noise is drawn at once; values and log-probabilities wait for the
        # rollout's end, so that a step costs one forward pass of the actor
        if discrete:  # the largest of logits + Gumbel noise is a sample of the softmax
            noise = rng.gumbel(size=outputs.shape).astype(np.float32)
        else:
            noise = np.exp(to_numpy(*log_std)) * rng.standard_normal(outputs.shape, np.float32)
        truncated_at, final_obs = [], []
        for step in range(args.num_steps):
            global_step += args.num_envs
            obs[step] = next_obs
            outputs[step] = to_numpy(actor(to_net(next_obs)))
            action = outputs[step] + noise[step]
            actions[step] = action.argmax(-1) if discrete else action
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
        check_finite(args, global_step, observations=obs, actions=outputs, rewards=rewards, advantages=advantages)
        returns = advantages + values
        b_actions = actions.reshape(-1, *actions.shape[2:])
        b_log_probs = log_prob(outputs.reshape(-1, action_dim), *map(to_numpy, log_std), b_actions)

        # flatten the batch
        b_obs, b_advantages = obs.reshape(-1, obs_dim), advantages.reshape(-1)
        b_returns, b_values = returns.reshape(-1, 1), values.reshape(-1, 1)

        # Optimizing the policy and value network
        log_ratios, etas, trust_regions = [], [], []
        for _ in range(args.update_epochs):
            # shuffled and normalized as a whole, which is cheaper: each array [num_minibatches, minibatch_size, ...]
            b_inds = rng.permutation(batch_size).reshape(args.num_minibatches, minibatch_size)
            batch = b_obs, b_actions, b_log_probs, b_returns, b_values, b_advantages
            minibatches = [array[b_inds] for array in batch]
            if args.norm_adv:
                minibatches[-1] -= minibatches[-1].mean(1, keepdims=True)
                minibatches[-1] /= minibatches[-1].std(1, ddof=1, keepdims=True) + 1e-8
            for mb_obs, mb_actions, mb_log_probs, mb_returns, mb_values, mb_advantages in zip(
                *map(to_batch, minibatches), strict=True
            ):
                # Policy loss, its derivatives at the actor's output, and from there to every parameter
                output = actor(mb_obs)
                pg = ppo_loss(output, *log_std, mb_actions, mb_log_probs, mb_advantages, args.clip_coef, args.ent_coef)
                log_ratios.append(to_numpy(pg.log_prob - mb_log_probs))

                # Value loss, likewise
                value = critic(mb_obs)
                v = value_loss(value, mb_returns, *([mb_values, args.clip_coef] if args.clip_vloss else []))

                if not math.isfinite(to_numpy(pg.loss + v.loss)):
                    check_finite(args, global_step, policy_loss=pg.loss, value_loss=v.loss)

                if by_autograd:
                    hutchinson(pg.loss + v.loss, agent.parameters())  # no parameter is in both
                else:
                    _, grad_output, hess_output, *of_log_std = pg
                    actor.backward(grad_output, hess_output if needs_hess else None, gauss_newton)
                    if not discrete:
                        set_derivatives(agent.log_std, *of_log_std)
                    critic.backward(v.grad_value, v.hess_value if needs_hess else None, gauss_newton)

                if args.max_grad_norm is not None:
                    nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                actor_optimizer.update()
                critic_optimizer.update()
                etas.append((actor_optimizer.eta, critic_optimizer.eta))
                trust_regions.append((actor_optimizer.trust_region, critic_optimizer.trust_region))

            last_log_ratio = log_ratios[-1]
            approx_kl = (np.exp(last_log_ratio) - 1 - last_log_ratio).mean()
            if args.target_kl is not None and approx_kl > args.target_kl:
                break

        # record for plotting purposes
        var_returns = returns.var()
        run.log(global_step, {
            "charts/learning_rate": actor_optimizer.param_groups[0]["lr"],
            "charts/SPS": run.sps(global_step),
            "losses/value_loss": to_numpy(v.loss),
            "losses/policy_loss": to_numpy(pg.loss),
            "losses/entropy": to_numpy(entropy(output, *log_std)),
            "losses/old_approx_kl": -last_log_ratio.mean(),
            "losses/approx_kl": approx_kl,
            "losses/clipfrac": (np.abs(np.exp(log_ratios) - 1) > args.clip_coef).mean(),
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
        check_finite(args, global_step, parameters=nn.utils.parameters_to_vector(agent.parameters()))
        run.checkpoint(global_step, get_state)

    if args.save_model:
        run.save_model(agent, envs)
    for env in envs:
        env.close()
    run.end("finished")
    print(
        f"{global_step:,} steps at {run.sps(global_step):,} steps/s; "
        f"mean return of the last {len(run.recent_returns)} episodes {run.mean_return():.1f}"
    )


if __name__ == "__main__":
    execute(main, parse_args(Args))
