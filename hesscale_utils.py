"""What the agents share besides mathematics: command line, arrays, environments."""

import contextlib
import io
import math
import os
import sys
import warnings

import gymnasium as gym
import numpy as np
import torch
import tyro

from hesscale_core import OPTIMIZERS


class EnvironmentFailed(Exception):
    """An environment raised in reset or step."""


def fail(message, status=1):
    """End the program with one line on stderr and an exit status, 1 unless told."""
    line = "error: " + " ".join(str(message).split())
    if status == 1:
        sys.exit(line)
    print(line, file=sys.stderr)
    sys.exit(status)


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
    check(lambda n: n >= 0, "must be at least 0, which turns checkpoints off", "checkpoint_interval")
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


def check_finite(args, step, **quantities):
    """Raise FloatingPointError naming the first of `quantities`, arrays or numbers, that is not finite."""
    for name, value in quantities.items():
        if not np.isfinite(value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value).all():
            raise FloatingPointError(
                f"{args.optimizer} with step size {args.learning_rate:g}: {name.replace('_', ' ')} not finite "
                f"after {step:,} steps"
            )


def to_plain(value):
    """`value` in types that torch.load(weights_only=True) takes: arrays become tensors.

    Raises:
        TypeError: it is, or holds, something else than numbers, strings, arrays, lists, tuples and dicts.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return torch.tensor(value)  # a copy
    if type(value) in (list, tuple):
        return type(value)(map(to_plain, value))
    if type(value) is dict:
        return {key: to_plain(v) for key, v in value.items()}
    raise TypeError(f"a {type(value).__name__}")


def from_plain(value):
    """What to_plain was given; an array of no dimension becomes a number of its type."""
    if isinstance(value, torch.Tensor):
        return value.numpy().copy()[()]
    if type(value) in (list, tuple):
        return type(value)(map(from_plain, value))
    return {key: from_plain(v) for key, v in value.items()} if type(value) is dict else value


def share_negative(parameters):
    """Share of the entries of the parameters' `.hess` that are below zero, in [0, 1]."""
    hess = torch.cat([p.hess.reshape(-1) for p in parameters])
    return (hess < 0).float().mean().item()


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
        obs: the last observation returned.
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
        self.obs = None

    def reset(self, seed=None):
        """Start an episode and return its first observation, float32 [obs_dim]."""
        self.episode_return, self.episode_length = 0.0, 0
        try:
            obs, _ = self.env.reset(seed=seed)
        except Exception as error:
            raise EnvironmentFailed(f"the environment raised in reset: {error!r}") from error
        return self._normalize(obs)

    def step(self, action):
        """Return observation [obs_dim], reward, terminated, truncated for `action` [action_dim] or a choice."""
        space = self.action_space
        if self.discrete:
            action = space.start + action
        else:
            action = np.minimum(np.maximum(action.reshape(space.shape), space.low), space.high)
            action = action.astype(space.dtype, copy=False)
        try:
            obs, reward, terminated, truncated, _ = self.env.step(action)
        except Exception as error:
            raise EnvironmentFailed(f"the environment raised in step: {error!r}") from error
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
        if self.norm_obs:
            self.obs_rms.update(obs)
            obs = np.float32((obs - self.obs_rms.mean) / np.sqrt(self.obs_rms.var + 1e-8))
            self.obs = np.minimum(np.maximum(obs, self.obs_low), self.obs_high)
        else:
            self.obs = obs.astype(np.float32)
        return self.obs

    def close(self):
        self.env.close()

    def freeze(self, statistics):
        """Normalize observations by the `statistics` of a saved model, and learn from them no more."""
        vars(self.obs_rms).update(from_plain(statistics["obs"]), update=lambda obs: None)

    def unsaved(self):
        """What in the environment get_state can't save, in words; None if it saves all."""
        try:
            self._get_layers()
        except TypeError as error:
            return str(error)

    def get_state(self):
        """All that the rest of its life depends on, as plain data and tensors; without the episode where `unsaved`."""
        try:
            layers = self._get_layers()
        except TypeError:
            layers = None
        return {
            "statistics": {name: to_plain(vars(rms)) for name, rms in self.statistics.items()},
            "discounted_return": self.discounted_return,
            "layers": layers,
            "episode": [self.episode_return, self.episode_length],
            "obs": to_plain(self.obs),
        }

    def set_state(self, state, seed):
        """Go on from a get_state() of an environment made alike; return the observation to go on with.

        Where the episode wasn't saved, that is the first one of a new episode, with that seed.
        """
        for name, rms in self.statistics.items():
            vars(rms).update(from_plain(state["statistics"][name]))
        self.discounted_return = state["discounted_return"]
        if state["layers"] is None:
            return self.reset(seed)
        for layer, values in zip(_layers(self.env), state["layers"], strict=True):
            for name, value in values.items():
                _set(layer, name, value)
        self.episode_return, self.episode_length = state["episode"]
        self.obs = from_plain(state["obs"])
        return self.obs

    def _get_layers(self):
        return [{k: _get(layer, k, v) for k, v in vars(layer).items() if not _stays(v)} for layer in _layers(self.env)]


def _layers(env):
    """The environment's wrappers, from the outside in, and the bare environment."""
    while env is not env.unwrapped:
        yield env
        env = env.env
    yield env


def _stays(value):
    """Whether it is a part of an environment that no step changes, or that no step reads."""
    known = gym.Env, gym.Space, gym.envs.registration.EnvSpec, gym.wrappers.RecordVideo
    return isinstance(value, known) or type(value).__name__ in ("MjModel", "MujocoRenderer")


def _mujoco_arrays(data):
    """What MuJoCo has computed from its state, and an observation may read: Humanoid's centre of mass, say."""
    names = [name for name in dir(data) if name[0] != "_" and not name.startswith("efc_")]
    return {k: a for k in names if isinstance(a := getattr(data, k), np.ndarray) and a.size and a.dtype == np.float64}


def _get(layer, name, value):
    """The attribute `name` of an environment's layer, as plain data and tensors."""
    if isinstance(value, np.random.Generator):
        return to_plain(value.bit_generator.state)
    if type(value).__name__ == "MjData":
        import mujoco

        everything = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(layer.model, everything))
        mujoco.mj_getState(layer.model, value, state, everything)
        return {"state": torch.from_numpy(state), "arrays": to_plain(_mujoco_arrays(value))}
    try:
        return to_plain(value)
    except TypeError as error:
        raise TypeError(f"{type(layer).__name__}.{name} is {error}") from None


def _set(layer, name, saved):
    value = getattr(layer, name, None)
    if isinstance(value, np.random.Generator):
        value.bit_generator.state = from_plain(saved)
    elif type(value).__name__ == "MjData":
        import mujoco

        mujoco.mj_setState(layer.model, value, saved["state"].numpy(), mujoco.mjtState.mjSTATE_INTEGRATION)
        arrays = _mujoco_arrays(value)
        for key, array in from_plain(saved["arrays"]).items():
            if key in arrays and arrays[key].shape == array.shape:  # the contacts' are made anew by every step
                arrays[key][...] = array
    else:
        setattr(layer, name, from_plain(saved))


def make_env(args, video_folder=None, video_trigger=None):
    """Make a NormalizedEnv of args.env_id, or end the program with a line that says why that can't be.

    Args:
        args: with env_id, gamma, norm_obs and norm_reward.
        video_folder: where to record videos; None for none.
        video_trigger: which episodes to record, a function of their number; None for gymnasium's choice.
    """
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
            env = gym.wrappers.RecordVideo(env, video_folder, video_trigger)
        except Exception as error:
            fail(
                f"--capture-video: {env_id} can't be rendered ({error}); without a display, set MUJOCO_GL=egl or osmesa"
            )
    return NormalizedEnv(env, args.gamma, args.norm_obs, args.norm_reward)
