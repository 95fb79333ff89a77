"""Environments: making them, normalizing observations and rewards, saving and restoring their state."""

import math
import os
import sys
import warnings

import gymnasium as gym
import numpy as np
import torch

from hesscale_utils import fail, file_name, from_plain, to_plain


class EnvironmentFailed(Exception):
    """An environment raised an exception in reset or step."""


class ActionNotFinite(EnvironmentFailed):
    """An environment raised an exception in step, and its action was not finite."""


class RunningMeanStd:
    """Mean and variance of all samples so far, updated one sample at a time, equal to gymnasium's to the last bit.

    Args:
        size: length of the sample vectors; None for samples that are plain Python numbers, which Python adds and
            multiplies faster than numpy does.

    Attributes:
        mean, var, count: the mean, the variance and the number of samples (plus 1e-4), each [size] or a number.
    """

    def __init__(self, size=None):
        if size is None:
            self.mean, self.var, self.count, self.one = 0.0, 1.0, 1e-4, 1.0
        else:
            # gymnasium's first update multiplies var by count in float32, so this var * count is np.float32(1e-4).
            # numpy multiplies two vectors in half the time of a vector and a number, so count is a vector
            initial_var = float(np.float32(1e-4)) / 1e-4
            self.mean, self.var, self.count, self.one = np.full((4, size), [[0.0], [initial_var], [1e-4], [1.0]])

    def update(self, x):
        """Include the sample `x`, float64 [size] or a number."""
        count, total, delta = self.count, self.count + self.one, x - self.mean
        self.mean = self.mean + delta / total
        self.var = (self.var * count + delta * delta * count / total) / total
        self.count = total

    def get_state(self):
        """Return mean, var and count as plain data and tensors."""
        return to_plain({"mean": self.mean, "var": self.var, "count": self.count})

    def set_state(self, state):
        """Restore what get_state returned."""
        vars(self).update(from_plain(state))


class NormalizedEnv:
    """One environment with the effect of CleanRL's wrappers, at a quarter of their cost (benchmarks/minibatch.py).

    These are FlattenObservation, RecordEpisodeStatistics, ClipAction, NormalizeObservation and NormalizeReward, the
    last two followed by a clip to [-10, 10]. All numbers equal those of gymnasium's wrappers. When an episode ends,
    `step` returns its real last observation, and the caller calls `reset`.

    Args:
        env: a gymnasium environment with Box observations and Box or Discrete actions.
        gamma: discount of the return whose variance scales the rewards.
        norm_obs, norm_reward: False leaves observations or rewards as they are, without a clip.

    Attributes:
        discrete: whether an action is a choice (an integer) rather than a vector.
        obs_dim: size of a flattened observation.
        action_dim: size of a flattened action, or the number of choices.
        episode_return, episode_length: of the current episode, in the environment's own rewards and in steps.
        obs_rms, return_rms: running statistics of the observations and of the discounted return.
        obs: the last observation returned.
    """

    def __init__(self, env, gamma, norm_obs=True, norm_reward=True):
        self.env, self.gamma, self.norm_obs, self.norm_reward = env, gamma, norm_obs, norm_reward
        self.obs_dim = math.prod(env.observation_space.shape)
        self.action_space, self.action_shape = env.action_space, env.action_space.shape
        self.discrete = isinstance(env.action_space, gym.spaces.Discrete)
        self.action_dim = int(env.action_space.n) if self.discrete else math.prod(self.action_shape)
        self.obs_rms, self.return_rms = RunningMeanStd(self.obs_dim), RunningMeanStd()
        # constants as vectors, because numpy takes twice as long to broadcast a number
        self.obs_low, self.obs_high = np.full((2, self.obs_dim), [[-10], [10]], np.float32)
        self.eps = np.full(self.obs_dim, 1e-8)
        self.discounted_return = self.episode_return = 0.0
        self.episode_length = 0
        self.obs = None

    def reset(self, seed=None):
        """Start an episode and return its first observation, float32 [obs_dim].

        Raises:
            EnvironmentFailed: the environment raised an exception.
        """
        self.episode_return, self.episode_length = 0.0, 0
        try:
            obs, _ = self.env.reset(seed=seed)
        except Exception as error:
            raise EnvironmentFailed(f"the environment raised in reset: {error!r}") from error
        return self._normalize(obs)

    def step(self, action):
        """Take one step.

        Args:
            action: float32 [action_dim], clipped to the action space's bounds; or a choice in [0, action_dim).

        Returns:
            (observation float32 [obs_dim], reward, terminated, truncated)

        Raises:
            EnvironmentFailed: the environment raised an exception; ActionNotFinite if the action can be the reason.
        """
        space = self.action_space
        if self.discrete:
            action = space.start + action
        else:
            action = np.minimum(np.maximum(action.reshape(self.action_shape), space.low), space.high)
            action = action.astype(space.dtype, copy=False)
        try:
            obs, reward, terminated, truncated, _ = self.env.step(action)
        except Exception as error:
            kind = EnvironmentFailed if np.isfinite(action).all() else ActionNotFinite
            raise kind(f"the environment raised in step: {error!r}") from error
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
            obs = ((obs - self.obs_rms.mean) / np.sqrt(self.obs_rms.var + self.eps)).astype(np.float32)
            self.obs = np.minimum(np.maximum(obs, self.obs_low), self.obs_high)
        else:
            self.obs = obs.astype(np.float32)
        return self.obs

    def close(self):
        """Free what the environment holds, and complete its videos."""
        self.env.close()

    def freeze(self, statistics):
        """Normalize observations by the `statistics` of a saved model, and stop updating them."""
        self.obs_rms.set_state(statistics["obs"])
        self.obs_rms.update = lambda obs: None

    def unsaved(self):
        """Return a phrase that names what get_state cannot save in the environment, or None if it saves everything."""
        try:
            self._get_layers()
        except TypeError as error:
            return str(error)

    def get_state(self):
        """Return everything needed to resume, as plain data and tensors; without the episode if `unsaved`."""
        try:
            layers = self._get_layers()
        except TypeError:
            layers = None
        return {
            "statistics": {"obs": self.obs_rms.get_state(), "return": self.return_rms.get_state()},
            "discounted_return": self.discounted_return,
            "layers": layers,
            "episode": [self.episode_return, self.episode_length],
            "obs": to_plain(self.obs),
        }

    def set_state(self, state, seed):
        """Restore what get_state returned for an equally made environment, and return the observation to continue from.

        If the episode could not be saved, start a new one with `seed` and return its first observation. Either way
        the observation is float32 [obs_dim].
        """
        self.obs_rms.set_state(state["statistics"]["obs"])
        self.return_rms.set_state(state["statistics"]["return"])
        self.discounted_return = state["discounted_return"]
        if state["layers"] is None:
            return self.reset(seed)
        for layer, attributes in zip(_layers(self.env), state["layers"], strict=True):
            for name, saved in attributes.items():
                _restore_attribute(layer, name, saved)
        self.episode_return, self.episode_length = state["episode"]
        self.obs = from_plain(state["obs"])
        return self.obs

    def _get_layers(self):
        """Return {attribute: saved value} for each of the environment's layers."""
        return [
            {name: _save_attribute(layer, name, value) for name, value in vars(layer).items() if not _is_fixed(value)}
            for layer in _layers(self.env)
        ]


# ---- saving and restoring ----------------------------------------------------------------------------------


def _layers(env):
    """Yield the environment's wrappers from the outermost to the innermost, then the bare environment."""
    while env is not env.unwrapped:
        yield env
        env = env.env
    yield env


def _is_fixed(value):
    """Return whether an attribute's value is of a kind that steps never change, or never read."""
    known = gym.Env, gym.Space, gym.envs.registration.EnvSpec, gym.wrappers.RecordVideo
    return isinstance(value, known) or type(value).__name__ in ("MjModel", "MujocoRenderer")


def _mujoco_arrays(data):
    """Return {name: array} of what MuJoCo computed from its state, since an observation may read it.

    Humanoid, for example, observes centers of mass. The arrays share memory with `data`.
    """
    names = [name for name in dir(data) if name[0] != "_" and not name.startswith("efc_")]
    return {k: a for k in names if isinstance(a := getattr(data, k), np.ndarray) and a.size and a.dtype == np.float64}


def _save_attribute(layer, name, value):
    """Return `value`, the attribute `name` of an environment's layer, as plain data and tensors.

    Raises:
        TypeError: the value is of a kind that cannot be saved. The message names it.
    """
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


def _restore_attribute(layer, name, saved):
    """Give the attribute `name` of an environment's layer the value that _save_attribute returned."""
    value = getattr(layer, name, None)
    if isinstance(value, np.random.Generator):
        value.bit_generator.state = from_plain(saved)
    elif type(value).__name__ == "MjData":
        import mujoco

        mujoco.mj_setState(layer.model, value, saved["state"].numpy(), mujoco.mjtState.mjSTATE_INTEGRATION)
        arrays = _mujoco_arrays(value)
        for key, array in from_plain(saved["arrays"]).items():
            if key in arrays and arrays[key].shape == array.shape:  # the contacts vary, but every step recomputes them
                arrays[key][...] = array
    else:
        setattr(layer, name, from_plain(saved))


# ---- playing -----------------------------------------------------------------------------------------------


def play_episode(agent, env, seed=None, rng=None, max_steps=100_000):
    """Play an episode in a NormalizedEnv, which then has its return and length; return whether it came to an end.

    Args:
        agent: of ppo_hesscale.py or a2c_hesscale.py.
        env: reset with `seed`, or going on with its own random numbers.
        rng: numpy Generator that draws the actions; None for the most likely ones.
        max_steps: steps after which an endless episode is left.
    """
    obs = env.reset(seed)
    for _ in range(max_steps):
        obs, _, terminated, truncated = env.step(agent.act(obs[None], agent.noise(rng, 1) if rng else 0.0)[0])
        if terminated or truncated:
            return True
    return False


# ---- making ------------------------------------------------------------------------------------------------


def make_env(args, video_folder=None, video_trigger=None):
    """Make a NormalizedEnv of args.env_id, or end the program with one line that says why it cannot be made.

    Args:
        args: has env_id, gamma, norm_obs and norm_reward.
        video_folder: where to record videos; None records none.
        video_trigger: function from an episode's number to whether to record it; None for gymnasium's choice.
    """
    env_id = args.env_id
    try:
        with warnings.catch_warnings():  # gymnasium calls every -v4 out of date, and the paper uses them
            warnings.simplefilter("ignore", DeprecationWarning)
            env = gym.make(env_id, **({"render_mode": "rgb_array"} if video_folder else {}))
    except Exception as error:  # a gym.error.Error, or whatever the environment's own constructor raises
        backend = os.environ.get("MUJOCO_GL", "")
        if backend != "disable" and (backend or video_folder):
            # mujoco's import loads the library that MUJOCO_GL names, whether anything will be rendered or not
            before, os.environ["MUJOCO_GL"] = dict(os.environ), "disable"
            try:
                env = make_env(args)  # ends the program if the error has other reasons
            finally:
                del os.environ["MUJOCO_GL"]
                os.environ |= before
            return env if video_folder is None else fail_to_render(env_id, error)
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
            with warnings.catch_warnings():  # GLFW's, of which the error says as much
                warnings.simplefilter("ignore")
                env.render()
            env = gym.wrappers.RecordVideo(env, video_folder, video_trigger)
        except Exception as error:
            fail_to_render(env_id, error)
    return NormalizedEnv(env, args.gamma, args.norm_obs, args.norm_reward)


def fail_to_render(env_id, error):
    """End the program with one line that says why an environment can't be rendered, and what to install or set."""
    needs = {"osmesa": "the package libosmesa6", "egl": "the packages libegl1 and libgl1"}
    backend = os.environ.get("MUJOCO_GL", "")
    if "mujoco" not in sys.modules:
        advice = "leave the flag out"
    elif backend in needs:
        advice = f"MUJOCO_GL={backend} needs {needs[backend]}"
    elif backend in ("", "glfw"):
        advice = "; or ".join(f"MUJOCO_GL={name}, which needs {packages}" for name, packages in needs.items())
        advice = f"without a display, set {advice}"
    else:
        advice = f"MUJOCO_GL={backend} must be egl, osmesa or glfw"
    fail(f"--capture-video: {env_id} can't be rendered ({error}); {advice}")


def make_envs(args, run_name):
    """Make args.num_envs environments; with args.capture_video, record the first one's videos in videos/{run_name}."""
    videos = f"videos/{file_name(run_name)}" if args.capture_video else None
    return [make_env(args, videos if i == 0 else None) for i in range(args.num_envs)]
