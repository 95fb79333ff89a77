"""What a run needs besides its algorithm: environments, command line, logging and progress."""

import atexit
import collections
import contextlib
import io
import math
import os
import sys
import time
import warnings
from dataclasses import fields

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from hesscale_core import OPTIMIZERS


def fail(message):
    """End the program with one line on stderr and exit status 1."""
    sys.exit("error: " + " ".join(str(message).split()))


def parse_args(args_class):
    """Parse the command line into `args_class` with tyro; what it cannot read becomes one line on stderr."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(args_class)
    except SystemExit as exit:
        if exit.code in (0, None):
            raise
        # tyro draws a box; its first line in words says which flag and what is wrong
        lines = [line.strip("│ ") for line in stderr.getvalue().splitlines() if line.startswith("│")]
        fail(f"{lines[0] if lines else 'unreadable command line'} (see {os.path.basename(sys.argv[0])} --help)")


def check_args(args):
    """End the program with one line where a value can't work, before anything is made."""

    def check(condition, wanted, *names):
        for name in names:
            value = getattr(args, name, None)  # None: left out, or a flag that the other script has
            if value is not None and not condition(value):
                fail(f"--{name.replace('_', '-')} {value}: {wanted}")

    check(lambda n: n >= 1, "must be at least 1", "total_timesteps", "num_envs", "num_steps")
    check(lambda n: n >= 1, "must be at least 1", "num_minibatches", "update_epochs")
    check(lambda name: name in OPTIMIZERS, f"choose one of {', '.join(OPTIMIZERS)}", "optimizer")
    above_zero = "learning_rate", "eps", "delta", "clip_coef", "max_grad_norm", "target_kl"
    check(lambda x: 0 < x < math.inf, "must be a number above 0", *above_zero)
    check(lambda x: 0 <= x <= 1, "must be in [0, 1]", "gamma", "gae_lambda")
    check(lambda x: 0 <= x < math.inf, "must be a number >= 0", "ent_coef")
    check(lambda n: 0 <= n < 2**32, "must be in [0, 2^32)", "seed")
    rollout = args.num_envs * args.num_steps
    check(lambda n: n >= rollout, f"is less than one rollout, num_envs * num_steps = {rollout}", "total_timesteps")


def array_functions(device):
    """Return to_net and to_numpy: what turns numpy arrays into what the networks take on `device`, and back.

    On the CPU the networks take numpy arrays, which takes a third off the time of a forward and a backward pass
    (benchmarks/minibatch.py), and parameters become views of themselves. On a GPU they take tensors.
    """

    def to_numpy(array):
        return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array

    return to_numpy if device.type == "cpu" else lambda array: torch.as_tensor(array, device=device), to_numpy


# ---- environments ------------------------------------------------------------------------------------------


class RunningMeanStd:
    """Mean and variance of all that was seen, one observation at a time: gymnasium's, to the last bit."""

    def __init__(self, size=None):
        """Of vectors of that size or, without it, of numbers, which Python does sums with faster than numpy."""
        zero = 0.0 if size is None else np.zeros(size, np.float32)
        self.mean, self.var, self.count = zero, zero + 1, 1e-4

    def update(self, x):
        delta, total = x - self.mean, self.count + 1
        self.mean = self.mean + delta / total
        self.var = (self.var * self.count + delta * delta * self.count / total) / total
        self.count = total


class NormalizedEnv:
    """One environment behind CleanRL's wrappers, at a quarter of their cost (benchmarks/minibatch.py).

    FlattenObservation, RecordEpisodeStatistics, ClipAction, NormalizeObservation and NormalizeReward (each
    followed by a clip to [-10, 10]), with the numbers of gymnasium's. An episode's end is left to the caller,
    who sees its real last observation and calls reset.

    Args:
        env: a gymnasium environment with Box observations and Box or Discrete actions.
        gamma: discount of the return whose variance scales the rewards.
        norm_obs, norm_reward: False leaves observations or rewards as they are, without a clip.

    Attributes:
        discrete: whether actions are choices rather than vectors.
        obs_dim, action_dim: size of a flattened observation; of a flattened action, or the number of choices.
        episode_return, episode_length: of the current episode, in the environment's own rewards.
        statistics: the normalization's, {"obs": RunningMeanStd, "return": RunningMeanStd}.
    """

    def __init__(self, env, gamma, norm_obs=True, norm_reward=True):
        self.env, self.gamma, self.norm_obs, self.norm_reward = env, gamma, norm_obs, norm_reward
        self.obs_dim = math.prod(env.observation_space.shape)
        self.action_space = env.action_space
        self.discrete = isinstance(env.action_space, gym.spaces.Discrete)
        self.action_dim = int(env.action_space.n) if self.discrete else math.prod(env.action_space.shape)
        self.obs_rms, self.return_rms = RunningMeanStd(self.obs_dim), RunningMeanStd()
        self.statistics = {"obs": self.obs_rms, "return": self.return_rms}
        # bounds in the shape of what they bound, because numpy takes twice as long to broadcast a number
        self.obs_low, self.obs_high = np.full((2, self.obs_dim), [[-10], [10]], np.float32)
        self.discounted_return = self.episode_return = 0.0
        self.episode_length = 0

    def reset(self, seed=None):
        """Start an episode and return its first observation, float32 [obs_dim]."""
        self.episode_return, self.episode_length = 0.0, 0
        return self._normalize(self.env.reset(seed=seed)[0])

    def step(self, action):
        """Return observation [obs_dim], reward, terminated, truncated for `action` [action_dim] or a choice."""
        space = self.action_space
        if self.discrete:
            action = space.start + action
        else:
            action = np.minimum(np.maximum(action.reshape(space.shape), space.low), space.high)
            action = action.astype(space.dtype, copy=False)
        obs, reward, terminated, truncated, _ = self.env.step(action)
        reward = float(reward)
        self.episode_return += reward
        self.episode_length += 1
        if self.norm_reward:
            self.discounted_return = self.discounted_return * self.gamma * (1 - terminated) + reward
            self.return_rms.update(self.discounted_return)
            reward = min(max(reward / math.sqrt(self.return_rms.var + 1e-8), -10.0), 10.0)
        return self._normalize(obs), reward, terminated, truncated

    def _normalize(self, obs):
        obs = np.asarray(obs, dtype=np.float64).ravel()
        if not self.norm_obs:
            return obs.astype(np.float32)
        self.obs_rms.update(obs)
        obs = np.float32((obs - self.obs_rms.mean) / np.sqrt(self.obs_rms.var + 1e-8))
        return np.minimum(np.maximum(obs, self.obs_low), self.obs_high)

    def close(self):
        self.env.close()


def make_env(args, video_folder=None):
    """Make a NormalizedEnv of args.env_id, or end the program with a line that says why that can't be."""
    env_id = args.env_id
    try:
        with warnings.catch_warnings():  # gymnasium calls every -v4 out of date, and they are the paper's
            warnings.simplefilter("ignore", DeprecationWarning)
            env = gym.make(env_id, **({"render_mode": "rgb_array"} if video_folder else {}))
    except Exception as error:  # a gym.error.Error, or whatever the environment's own constructor raises
        fail(f"--env-id {env_id}: {error}")
    if not isinstance(env.action_space, (gym.spaces.Box, gym.spaces.Discrete)):
        fail(f"--env-id {env_id} has the action space {env.action_space}; supported: Box and Discrete")
    try:
        if not isinstance(env.observation_space, gym.spaces.Box):
            env = gym.wrappers.FlattenObservation(env)
    except Exception as error:
        fail(f"--env-id {env_id}: observations {env.observation_space} can't be made a vector: {error}")
    if video_folder:
        try:
            env.reset()
            env.render()
            env = gym.wrappers.RecordVideo(env, video_folder)
        except Exception as error:
            fail(
                f"--capture-video: {env_id} can't be rendered ({error}); without a display, set MUJOCO_GL=egl or osmesa"
            )
    return NormalizedEnv(env, args.gamma, args.norm_obs, args.norm_reward)


# ---- logging -----------------------------------------------------------------------------------------------


class Run:
    """A run's folder with its event file, its W&B twin if asked for, and its progress.

    Args:
        args: the script's arguments.
        name: what the run is called; its folder is runs/{name}, or runs/{name}_1 where that exists already.
    """

    def __init__(self, args, name):
        self.total_timesteps = args.total_timesteps
        self.recent_returns = collections.deque(maxlen=50)
        candidates = (name if n == 0 else f"{name}_{n}" for n in range(1000))
        for self.name in candidates:
            try:
                os.makedirs(f"runs/{self.name}")
                break
            except FileExistsError:
                continue
            except OSError as error:
                fail(f"the run folder can't be made: {error}")
        self.folder = f"runs/{self.name}"
        if args.track:
            import wandb

            wandb.init(
                project=args.wandb_project_name,
                entity=args.wandb_entity,
                sync_tensorboard=True,
                config=vars(args),
                name=self.name,
                monitor_gym=args.capture_video,
                save_code=True,
            )
        self.writer = SummaryWriter(self.folder)
        rows = "\n".join(f"|{field.name}|{getattr(args, field.name)}|" for field in fields(args))
        self.writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{rows}")
        self.terminal = sys.stdout.isatty()
        self.bar = tqdm(total=self.total_timesteps, unit=" steps", file=sys.stdout, disable=not self.terminal)
        self.start_time = self.last_line = time.perf_counter()
        atexit.register(self.close)  # whatever ends the run, its event file is whole

    def log(self, step, scalars):
        for tag, value in scalars.items():
            self.writer.add_scalar(tag, value, step)

    def log_episode(self, step, env):
        """Log the episode that `env` has just ended."""
        self.recent_returns.append(env.episode_return)
        self.writer.add_scalar("charts/episodic_return", env.episode_return, step)
        self.writer.add_scalar("charts/episodic_length", env.episode_length, step)

    def progress(self, step):
        """Move the bar to `step`; where the output is no terminal, print a line every ten seconds."""
        recent = f"return {self.mean_return():.1f}"
        if self.terminal:
            self.bar.set_postfix_str(recent, refresh=False)
            self.bar.update(step - self.bar.n)
        elif (now := time.perf_counter()) - self.last_line >= 10:
            self.last_line = now
            sps = step / (now - self.start_time)
            left = (self.total_timesteps - step) / sps
            done = f"{step:,}/{self.total_timesteps:,} steps"
            print(f"{done}, {sps:,.0f} steps/s, {recent}, {left:.0f} s left", flush=True)

    def mean_return(self):
        """Mean return of the last 50 episodes."""
        return float(np.mean(self.recent_returns)) if self.recent_returns else float("nan")

    def sps(self, step):
        """Steps per second since the start."""
        return int(step / (time.perf_counter() - self.start_time))

    def close(self):
        self.bar.close()
        self.writer.close()


def share_negative(parameters):
    """Share of the entries of the parameters' `.hess` that are below zero, in [0, 1]."""
    hess = torch.cat([p.hess.reshape(-1) for p in parameters])
    return (hess < 0).float().mean().item()
