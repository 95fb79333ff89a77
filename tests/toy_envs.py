"""Small environments whose right answers are known; `--env-id toy_envs:Toggle-v0` finds them."""

import random
import time

import gymnasium as gym
import numpy as np


class Toggle(gym.Env):
    """The state is 0, 1, 0, 1, ... whatever the action, and a step out of state 1 pays 1.

    With a time limit of 3 an episode is 0 -> 1 -> 0 -> 1 (truncated). With gamma = 1/2 the true values are
    V(1) = 4/3 and V(0) = 2/3: their ratio is 2. If truncation counted as termination it would be 4, and if the
    next episode's first observation stood in for the last one's it would be 3.
    """

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, terminates=False):
        self.terminates = terminates

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state, self.steps = 0, 0
        return self._obs(), {}

    def step(self, action):
        reward = float(self.state == 1)
        self.state = 1 - self.state
        self.steps += 1
        return self._obs(), reward, self.terminates and self.steps == 3, False, {}

    def _obs(self):
        return np.array([2.0 * self.state - 1], np.float32)


class Shapes(gym.Env):
    """Observations and actions are matrices, actions are bounded on one side only, and outliers occur."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2, 3), np.float64)
    action_space = gym.spaces.Box(np.zeros((2, 2), np.float32), np.full((2, 2), np.inf, np.float32))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(size=(2, 3)), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        outlier = 1000.0 if self.np_random.random() < 0.02 else 1.0
        obs, reward = outlier * self.np_random.normal(size=(2, 3)), -outlier * float(action.sum())
        return obs, reward, bool(self.np_random.random() < 0.05), False, {}


class Broken(Toggle):
    """Returns observations that are not numbers from the 101st on."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def _obs(self):
        self.count += 1
        return super()._obs() * (np.nan if self.count > 100 else 1)


class Counter(Toggle):
    """Pays the action itself, one of 5, 6, 7."""

    action_space = gym.spaces.Discrete(3, start=5)

    def step(self, action):
        assert self.action_space.contains(action), action
        obs, _, *rest = super().step(action)
        return obs, float(action), *rest


class Many(Toggle):
    action_space = gym.spaces.MultiDiscrete([2, 3])


class Raises(Toggle):
    """Raises in its 300th step."""

    def step(self, action):
        self.total = getattr(self, "total", 0) + 1
        if self.total == 300:
            raise RuntimeError("the simulator is\ngone")
        return super().step(action)


class Slow(Toggle):
    """A step takes a hundredth of a second."""

    def step(self, action):
        time.sleep(0.01)
        return super().step(action)


class Opaque(Toggle):
    """Holds an object that cannot be saved."""

    def __init__(self):
        super().__init__()
        self.engine = object()


class Drift(gym.Env):
    """Has state of every kind that can be saved: numbers, arrays, a nested container, a generator of its own.

    It also draws from the global generators of Python and numpy.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.own = np.random.default_rng(7) if seed is not None else self.own
        self.position, self.speed, self.past = np.zeros(2), np.float32(0), {"speeds": [0.0], "kind": ("a", None)}
        return self.position.copy(), {}

    def step(self, action):
        noise = self.own.normal() + np.random.normal() + random.gauss(0, 1)
        self.speed = np.float32(self.speed + action[0] + 0.1 * noise)
        self.past["speeds"].append(float(self.speed))
        self.position += self.speed, np.mean(self.past["speeds"]) + self.np_random.normal()
        return self.position.copy(), -float(abs(self.position[0])), bool(abs(self.position[0]) > 20), False, {}


class Walk(gym.Env):
    """A noisy walk in the plane, driven by a force, or by one of three choices; leaving the circle ends an episode."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def __init__(self, choices=False):
        self.action_space = gym.spaces.Discrete(3, start=1) if choices else gym.spaces.Box(-1, 1, (2,), np.float32)
        self.forces = np.array([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]) if choices else None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.wind = self.np_random.normal(0, 0.5, 2), self.np_random.normal()
        return self._obs(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        force = action if self.forces is None else self.forces[action - 1]
        self.position = self.position + 0.5 * force + self.np_random.normal(0, 0.5, 2) + [0.1 * self.wind, 0.0]
        distance = float(np.linalg.norm(self.position))
        return self._obs(), 1.0 - distance, distance > 1.8, False, {}

    def _obs(self):
        return np.array([*self.position, self.wind])


gym.register("Toggle-v0", Toggle, max_episode_steps=3)
gym.register("Toggle-v1", Toggle, kwargs={"terminates": True})
gym.register("Shapes-v0", Shapes, max_episode_steps=50)
gym.register("Broken-v0", Broken, max_episode_steps=10)
gym.register("Counter-v0", Counter, max_episode_steps=10)
gym.register("Many-v0", Many, max_episode_steps=10)
gym.register("Raises-v0", Raises)
gym.register("Slow-v0", Slow, max_episode_steps=3)
gym.register("Opaque-v0", Opaque, max_episode_steps=3)
gym.register("Drift-v0", Drift, max_episode_steps=60)
gym.register("Walk-v0", Walk, max_episode_steps=5)
gym.register("Walk-v1", Walk, kwargs={"choices": True}, max_episode_steps=5)
