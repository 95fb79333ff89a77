"""Small environments whose right answers are known; `--env-id toy_envs:Toggle-v0` finds them."""

import collections
import dataclasses
import datetime
import enum
import functools
import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections import OrderedDict, defaultdict, deque
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch


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
        self.engine = threading.Lock()


class Locks(Toggle):
    """Holds an object that cannot be saved from its first step on."""

    def step(self, action):
        self.engine = threading.Lock()
        return super().step(action)


class Bandit(Toggle):
    """Two arms, each of which pays in half of the steps: no policy is better than another."""

    action_space = gym.spaces.Discrete(2)

    def step(self, action):
        return self._obs(), float(self.np_random.random(2)[action] < 0.5), False, False, {}


class Waits(Toggle):
    """Takes long to make, and leaves a file to tell that it has begun."""

    def __init__(self):
        super().__init__()
        open("waiting", "w").close()
        time.sleep(30)


class Closes(Toggle):
    """Raises when it is closed."""

    def close(self):
        raise RuntimeError("it will not close")


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


class Place(gym.Env):
    __slots__ = ("__wind", "position")

    def __init__(self):
        self.__wind = 0.0

    def move(self, force):
        self.__wind = 0.9 * self.__wind + self.np_random.normal()
        self.position += force + self.__wind


class Slots(Place):
    """Has its state in slots, inherited and private ones too, and the rest of it beside them."""

    __slots__ = ("inner", "steps")
    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self):
        super().__init__()
        self.inner, self.steps = [gym.make("CartPole-v1")], 0  # steps of all episodes

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.time = 0.0, 0
        self.inner[0].reset(seed=seed)
        return self._obs(), {}

    def step(self, action):
        self.steps, self.time = self.steps + 1, self.time + 1
        self.move(float(action[0]))
        if self.inner[0].step(self.steps % 2)[2]:
            self.inner[0].reset()
        return self._obs(), -abs(self.position), self.time >= 17, False, {}

    def _obs(self):
        return np.array([self.position, self.steps % 7, self.inner[0].unwrapped.state[0]])


class Sampler(Toggle):
    """Observes and pays what it samples from its own spaces."""

    observation_space = gym.spaces.Dict(a=gym.spaces.Box(-1, 1, (2,)), b=gym.spaces.Discrete(3))

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, float(self.action_space.sample()[0]), *rest

    def _obs(self):
        return self.observation_space.sample()


class Film(Toggle):
    """Can be rendered without a display; a pixel shows the state."""

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 30}  # noqa: RUF012

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode, self.images = render_mode, None

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, self.np_random.normal(), *rest

    def render(self):
        return np.full((16, 16, 3), 200 * self.state, np.uint8)


class Friction(gym.Env):
    """MuJoCo with a model that changes from episode to episode, and a view of the simulator's own memory."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (5,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self):
        import mujoco

        self.model = mujoco.MjModel.from_xml_string(
            "<mujoco><asset><hfield name='t' nrow='2' ncol='2' size='1 1 1 1'/></asset>"
            "<worldbody><geom type='hfield' hfield='t'/><body pos='0 0 9'>"
            "<joint name='j' type='slide' axis='1 0 0'/><geom size='0.1'/></body></worldbody>"
            "<actuator><motor joint='j'/></actuator></mujoco>"
        )
        self.data = mujoco.MjData(self.model)
        self.position = self.data.qpos

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.model.dof_damping[:] = self.np_random.uniform(0, 5)
        self.model.hfield_data[:], self.model.geom_contype[:] = self.np_random.random(4), self.np_random.integers(9)
        self.model.opt.timestep = self.np_random.uniform(0.01, 0.05)
        self.data.qpos[:], self.data.qvel[:] = self.np_random.normal(size=(2, 1))
        return self._obs(), {}

    def step(self, action):
        import mujoco

        self.data.ctrl[:] = action
        mujoco.mj_step(self.model, self.data)
        return self._obs(), float(self.position[0]), False, bool(self.np_random.random() < 0.05), {}

    def _obs(self):
        model = self.model.hfield_data[0], self.model.geom_contype[0]
        return np.array([*self.position, *self.data.qvel, self.data.time, *model])


class Mode(enum.Enum):
    SLOW, FAST = 1, 2


@dataclasses.dataclass
class Car:
    place: float = 0.0
    trail: list = dataclasses.field(default_factory=list)
    mode: Mode = Mode.SLOW


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    total: float = 0.0
    marks: tuple = ()


class Point(NamedTuple):
    x: float
    y: float


class Gear:
    __slots__ = ("teeth",)


class Engine:
    """Cars that come and go, in an object that refers back to the environment."""

    def __init__(self, env):
        self.env, self.cars, self.random, self.gear = env, [], np.random.RandomState(3), Gear()
        self.gear.teeth = 0

    def step(self, action):
        if self.random.rand() < 0.1:
            self.cars.append(Car(self.random.randn()))
        for car in self.cars:
            car.place += 0.1 * action + 0.01 * self.env.time
            car.trail.append(car.place)
            car.mode = Mode.FAST if car.place > 0 else Mode.SLOW
        del self.cars[:-5]
        self.gear.teeth += 1
        return self.gear.teeth + sum(car.place + len(car.trail) + (car.mode is Mode.FAST) for car in self.cars)


def count_up():
    count = 0

    def up():
        nonlocal count
        count += 1
        return count

    return up


def rise(x):
    return x


def fall(x):
    return -x


ORIGIN, NO_SCORE = np.zeros(2), Score()


class Garage(gym.Env):
    """Has state of every kind that Python programs hold it in, and observes it."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (16,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,))

    def __init__(self):
        self.engine, self.random, self.inner = Engine(self), random.Random(5), gym.make("CartPole-v1")
        self.last, self.seen, self.raw, self.more = deque(maxlen=3), set(), b"ab", bytearray(b"c")
        self.counts, self.by_name, self.tally = defaultdict(lambda: 0), OrderedDict(), collections.Counter()
        self.up = count_up()
        self.add, self.draw, self.turn, self.shape = functools.partial(np.add, 1.0), self.random.random, rise, self._one
        self.table, self.things = np.zeros((4, 2)), np.array([None, {"a": 1}], dtype=object)
        self.row = self.table[1]
        self.torch, self.tensor = torch.Generator(), torch.zeros(2)
        self.when, self.big, self.complex = datetime.timedelta(0), 2**100, 1j

    def _one(self):
        return 1.0

    def _two(self):
        return 2.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.score, self.point, self.time = ORIGIN, NO_SCORE, Point(0.0, 0.0), 0
        self.same = self.position
        self.inner.reset(seed=seed)
        return self._obs(), {}

    def step(self, action):
        self.time += 1
        engine = self.engine.step(float(action[0]))
        if self.time % 5 == 0:
            self.shape = self._two if self.shape == self._one else self._one
            self.turn = fall if self.turn is rise else rise
        self.same = self.position = self.position + action
        self.position[0] += self.draw()
        self.score = Score(self.score.total + 0.1 * engine, (*self.score.marks[-2:], self.time))
        self.point = Point(self.point.x + self.shape(), self.turn(engine))
        self.last.append(self.time), self.seen.add(self.time % 7), self.more.append(self.time)
        self.raw = self.raw[-3:] + bytes([self.time])
        self.table[1, 0] = self.add(engine)
        self.counts[self.time % 3] += 1
        self.by_name[str(self.time % 4)] = engine
        self.tally["steps"] += 1
        self.tensor += torch.rand(2, generator=self.torch)
        self.things[1]["a"] += 1
        self.when += datetime.timedelta(seconds=1)
        self.big, self.complex = self.big + 1, self.complex * 1j
        self.balance, _, fell, _, _ = self.inner.step(self.time % 2)
        if fell:
            self.balance, _ = self.inner.reset()
        return self._obs(), self.up(), self.time >= 17, False, {}

    def _obs(self):
        parts = [*self.position, self.same[0], self.score.total, sum(self.score.marks), *self.point, self.row[0]]
        parts += [sum(self.last), sum(self.seen), sum(self.raw), sum(self.more) % 99, len(self.counts)]
        state = float(self.tensor[0]) + self.things[1]["a"] + self.when.seconds + self.big % 97 + self.complex.real
        parts += [state, sum(self.by_name.values()) + self.tally["steps"], self.inner.unwrapped.state[0]]
        return np.array(parts, np.float64)


class Meddles(Toggle):
    """Changes what is the program's: its generators, folder, numpy's errors; and its thread goes on until close."""

    def __init__(self, fails=False, seeds=True):
        super().__init__()
        self.fails = fails
        if seeds:
            random.seed(0), np.random.seed(0), torch.manual_seed(0)
        os.chdir(os.sep)
        np.seterr(all="raise")
        self.closed = threading.Event()
        threading.Thread(target=self.closed.wait).start()

    def reset(self, *, seed=None, options=None):
        os.chdir(os.sep)
        return super().reset(seed=seed)

    def step(self, action):
        if self.fails:
            raise RuntimeError("it fails")
        return self._obs(), random.random() + np.random.random() + torch.rand(1).item(), False, False, {}

    def close(self):
        self.closed.set()


class Laid(Toggle):
    """Draws what it pays as it is made, from the global generators, and counts how many are closed."""

    closed = 0

    def __init__(self):
        super().__init__()
        self.pays = random.random() + np.random.random() + torch.rand(1).item()

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, self.pays, *rest

    def close(self):
        Laid.closed += 1


class Handle:
    """A connection that a copy of it closes when it goes, as pybullet's client."""

    closed = False

    def __del__(self):
        Handle.closed = True


class Handles(Toggle):
    """Needs in each step what is not its own alone: a connection, the end of a pipe, or a temporary folder."""

    def __init__(self, kind="handle"):
        super().__init__()
        if kind == "handle":
            self.handle, Handle.closed = Handle(), False
        elif kind == "pipe":
            self.pipe = multiprocessing.Pipe()
        else:
            self.folder = tempfile.TemporaryDirectory()

    def step(self, action):
        if hasattr(self, "handle") and Handle.closed:
            raise ConnectionError
        if hasattr(self, "pipe"):
            self.pipe[0].send(0)
            self.pipe[1].recv()
        if hasattr(self, "folder"):
            open(f"{self.folder.name}/file", "w").close()
        return super().step(action)


class Counted(Film):
    """Knows of all that are open; counts its resets and pays their number."""

    opened = []  # noqa: RUF012

    def __init__(self, kind="plain", **kwargs):
        super().__init__(**kwargs)
        self.kind, self.resets = kind, 0
        if kind == "many":
            self.action_space = gym.spaces.MultiDiscrete([2, 2])
        elif kind == "discrete":
            self.action_space = gym.spaces.Discrete(2)
        elif kind == "grows":
            self.observation_space = gym.spaces.Box(-1, 1, (1 + len(self.opened),), np.float32)
        elif kind == "once" and self.opened:
            raise OSError("the port is in use")
        self.opened.append(self)

    def reset(self, **kwargs):
        self.resets += 1
        return super().reset(**kwargs)

    def step(self, action):
        if self.kind == "raises":
            raise RuntimeError("gone")
        obs, _, *rest = super().step(action)
        return obs, float(self.resets), *rest

    def render(self):
        if self.kind == "changing":
            return np.zeros((16 + 2 * self.steps, 16, 3), np.uint8)
        return np.zeros((16, 16), np.uint8) if self.kind == "grey" else super().render()

    def close(self):
        self.opened.remove(self)


class Goals(Toggle):
    """Samples from a space of its own by another name than the one that everybody knows."""

    def __init__(self):
        super().__init__()
        self.goals = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = gym.spaces.Dict(goal=self.goals)

    def _obs(self):
        return {"goal": self.goals.sample()}


class Spaceless(Toggle):
    """Leaves it to a wrapper to say what is observed."""

    observation_space = None


class SaysWhat(gym.ObservationWrapper):
    def __init__(self):
        super().__init__(Spaceless())
        self.observation_space = Toggle.observation_space

    def observation(self, obs):
        return obs


class MjModel:
    """Called as one of MuJoCo's, as dm_control's is."""


class Wraps(Toggle):
    def __init__(self):
        super().__init__()
        self.model = MjModel()


gym.register("Handles-v0", Handles, max_episode_steps=3)
gym.register("Counted-v0", Counted, max_episode_steps=3)
gym.register("Goals-v0", Goals, max_episode_steps=3)
gym.register("SaysWhat-v0", SaysWhat, max_episode_steps=3)
gym.register("Wraps-v0", Wraps, max_episode_steps=3)
gym.register("Laid-v0", Laid, max_episode_steps=3)
gym.register("Meddles-v0", Meddles, max_episode_steps=3)
gym.register("Toggle-v0", Toggle, max_episode_steps=3)
gym.register("Toggle-v1", Toggle, kwargs={"terminates": True})
gym.register("Shapes-v0", Shapes, max_episode_steps=50)
gym.register("Broken-v0", Broken, max_episode_steps=10)
gym.register("Counter-v0", Counter, max_episode_steps=10)
gym.register("Many-v0", Many, max_episode_steps=10)
gym.register("Raises-v0", Raises)
gym.register("Slow-v0", Slow, max_episode_steps=3)
gym.register("Opaque-v0", Opaque, max_episode_steps=3)
gym.register("Locks-v0", Locks, max_episode_steps=3)
gym.register("Closes-v0", Closes, max_episode_steps=3)
gym.register("Bandit-v0", Bandit, max_episode_steps=50)
gym.register("Waits-v0", Waits)
gym.register("Endless-v0", Toggle)
gym.register("Endless-v1", Toggle, max_episode_steps=12_000)
gym.register("Drift-v0", Drift, max_episode_steps=60)
gym.register("Walk-v0", Walk, max_episode_steps=5)
gym.register("Walk-v1", Walk, kwargs={"choices": True}, max_episode_steps=5)
gym.register("Slots-v0", Slots)
gym.register("Sampler-v0", Sampler, max_episode_steps=10)
gym.register("Film-v0", Film, max_episode_steps=10)
gym.register("Friction-v0", Friction)
gym.register("Garage-v0", Garage)
