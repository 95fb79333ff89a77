"""Environments: making them, normalizing observations and rewards, saving and restoring their state."""

import ast
import contextlib
import copy
import inspect
import itertools
import math
import os
import re
import sys
import warnings

import gymnasium as gym
import numpy as np

import hesscale_state
from hesscale_utils import fail, file_name, from_plain, new_folder, printing, random_states_kept, to_plain, warn

SCRIPTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "scripts")  # the programs there import from it


class EnvironmentFailed(Exception):
    """An environment raised an exception in reset or step, or returned what is no observation, reward or flag."""


class ActionNotFinite(EnvironmentFailed):
    """An environment failed in step, and its action was not finite or beyond 1e19: the agent is the reason."""


class RunningMeanStd:
    """Mean and variance of all samples so far, updated one sample at a time, equal to gymnasium's to the last bit.

    In float64, as gymnasium's of MuJoCo's observations are; of float32 ones it keeps them in float32.

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
    last two followed by a clip to [-10, 10]. All numbers equal those of gymnasium's wrappers, of float32 observations
    but for the last digits (RunningMeanStd). When an episode ends, `step` returns its real last observation, and the
    caller calls `reset`.

    Args:
        env: a gymnasium environment with Box observations and Box or Discrete actions.
        gamma: discount of the return whose variance scales the rewards.
        norm_obs, norm_reward: False leaves observations or rewards as they are, without a clip.
        time_limit: steps of an episode t, of which t / time_limit - 0.5 is appended to the observation before its
            normalization, as in the authors' agents; None appends nothing.

    Attributes:
        discrete: whether an action is a choice (an integer) rather than a vector.
        obs_dim: size of a flattened observation, the time included.
        action_dim: size of a flattened action, or the number of choices.
        episode_return, episode_length: of the current episode, in the environment's own rewards and in steps.
        obs_rms, return_rms: running statistics of the observations and of the discounted return.
        obs: the last observation returned.
        told: whether the user knows that a checkpoint cannot hold the environment (see hesscale_run.tell_unsaved).
    """

    def __init__(self, env, gamma, norm_obs=True, norm_reward=True, time_limit=None):
        self.env, self.gamma, self.norm_obs, self.norm_reward = env, gamma, norm_obs, norm_reward
        self.time_limit = time_limit
        self.obs_dim = math.prod(env.observation_space.shape) + (time_limit is not None)
        self.action_space, self.action_shape = env.action_space, env.action_space.shape
        self.discrete = isinstance(env.action_space, gym.spaces.Discrete)
        self.action_dim = int(env.action_space.n) if self.discrete else math.prod(self.action_shape)
        self.obs_rms, self.return_rms = RunningMeanStd(self.obs_dim), RunningMeanStd()
        # constants as vectors, because numpy takes twice as long to broadcast a number
        self.obs_low, self.obs_high = np.full((2, self.obs_dim), [[-10], [10]], np.float32)
        self.eps = np.full(self.obs_dim, 1e-8)
        self.rounds = not self.discrete and not np.issubdtype(env.action_space.dtype, np.floating)
        # what is larger has a variance that overflows, or without normalization no float32
        self.largest_square = 1e280 if norm_obs else float(np.finfo(np.float32).max) ** 2
        self.largest_reward = 1e30  # so that the return of a long episode is a float32, as event files have it
        self.discounted_return = self.episode_return = 0.0
        self.episode_length = 0
        self.obs, self.told = None, False

    def reset(self, seed=None):
        """Start an episode and return its first observation, float32 [obs_dim].

        A seed is the spaces' too, for an environment may sample from them.

        Raises:
            EnvironmentFailed: the environment raised an exception, or returned something else than an observation.
        """
        self.episode_return, self.episode_length = 0.0, 0
        try:
            if seed is not None:
                # a wrapper may be the first with a space
                for layer, name in itertools.product(_layers(self.env), ("action_space", "observation_space")):
                    if isinstance(space := getattr(layer, name, None), gym.Space):
                        space.seed(seed)
            returned = self.env.reset(seed=seed)
        except (Exception, SystemExit) as error:
            raise EnvironmentFailed(f"the environment raised in reset: {error!r}") from error
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise EnvironmentFailed(f"the environment returned {_brief(returned)} from reset, not (observation, info)")
        return self._normalize(returned[0])

    def step(self, action):
        """Take one step.

        Args:
            action: float32 [action_dim], clipped to the action space's bounds and rounded if its numbers are integers;
                or a choice in [0, action_dim).

        Returns:
            (observation float32 [obs_dim], reward, terminated, truncated)

        Raises:
            EnvironmentFailed: the environment raised an exception, or returned something else than such a tuple with
                finite numbers; ActionNotFinite if the action can be the reason.
        """
        space = self.action_space
        if self.discrete:
            taken = space.start + action
        else:
            taken = np.minimum(np.maximum(action.reshape(self.action_shape), space.low), space.high)
            if self.rounds:
                taken = np.rint(taken)
            taken = np.asarray(taken, space.dtype)  # also in a space of shape (), where numpy makes a number of it
        try:
            returned = self.env.step(taken)
        except (Exception, SystemExit) as error:
            raise _failure(action, f"raised in step: {error!r}") from error
        try:
            obs, reward, terminated, truncated, _ = returned
        except (TypeError, ValueError):
            wanted = "(observation, reward, terminated, truncated, info)"
            raise _failure(action, f"returned {_brief(returned)} from step, not {wanted}") from None
        # these three checks and _normalize's two take 0.6 us of a step's 170
        reward = float(reward) if isinstance(reward, float) else _number(reward)
        if not abs(reward) < self.largest_reward:
            what = f"too large: at most {self.largest_reward:.0e}" if math.isfinite(reward) else "no finite number"
            raise _failure(action, f"returned the reward {_brief(returned[1])} from step, which is {what}")
        if type(terminated) is not bool or type(truncated) is not bool:
            terminated, truncated = _flag(terminated), _flag(truncated)
            if terminated is None or truncated is None:
                flags = f"terminated {_brief(returned[2])} and truncated {_brief(returned[3])}"
                raise _failure(action, f"returned {flags} from step, which must be True or False")
        self.episode_return += reward
        self.episode_length += 1
        if self.norm_reward:
            self.discounted_return = self.discounted_return * self.gamma * (1 - terminated) + reward
            self.return_rms.update(self.discounted_return)
            reward = reward / math.sqrt(self.return_rms.var + 1e-8)
            if not -10.0 <= reward <= 10.0:
                reward = math.copysign(10.0, reward)
        return self._normalize(obs, action), reward, terminated, truncated

    def _normalize(self, returned, action=None):
        try:
            obs = np.asarray(returned).astype(np.float64, "K", "same_kind", True, False).ravel()
        except (TypeError, ValueError, RuntimeError):  # the last of a tensor that autograd follows
            raise _failure(action, f"returned the observation {_brief(returned)}, which is not numbers") from None
        if self.time_limit is not None:
            obs = np.append(obs, self.episode_length / self.time_limit - 0.5)
        if obs.size != self.obs_dim:
            time = self.time_limit is not None
            sizes = f"has {obs.size - time} numbers, its space {self.obs_dim - time}"
            raise _failure(action, f"returned the observation {_brief(returned)}, which {sizes}")
        # the second condition is for a sum that is too large of entries that are not
        if not obs.dot(obs) < self.largest_square and not (np.square(obs) <= self.largest_square).all():
            largest = math.sqrt(self.largest_square)
            what = f"too large: at most {largest:.0e}" if np.isfinite(obs).all() else "not finite"
            raise _failure(action, f"returned the observation {_brief(returned)}, which is {what}")
        if self.norm_obs:
            self.obs_rms.update(obs)
            obs = ((obs - self.obs_rms.mean) / np.sqrt(self.obs_rms.var + self.eps)).astype(np.float32)
            self.obs = np.minimum(np.maximum(obs, self.obs_low), self.obs_high)
        else:
            self.obs = obs.astype(np.float32)
        return self.obs

    def close(self):
        """Free what the environment holds, and complete its videos; warn on stderr if it raises an exception."""
        try:
            self.env.close()
        except (Exception, SystemExit) as error:
            warn(f"the environment raised in close: {error!r}")

    def freeze(self, statistics):
        """Normalize observations by the `statistics` of a saved model, and stop updating them."""
        self.obs_rms.set_state(statistics["obs"])
        self.obs_rms.update = lambda obs: None

    def unsaved(self):
        """Return a phrase that names what a checkpoint cannot hold of the environment, or None if it holds everything.

        What is saved is loaded on trial, for there are objects that can be saved and not loaded.
        """
        try:
            with random_states_kept():  # such an object may draw when it is made
                hesscale_state.save(self._recorded(), on_trial=True)
        except Exception as error:  # the environment's own properties may raise, too
            return str(error)

    def get_state(self):
        """Return everything needed to resume, as plain data and tensors; without the episode if `unsaved`."""
        try:
            layers = hesscale_state.save(self._recorded())
        except Exception:
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

        If the episode could not be saved or restored, start a new one with `seed` and return its first observation.
        Either way the observation is float32 [obs_dim].
        """
        problem = None if state["layers"] is not None else "was not saved"
        if problem is None:
            try:
                hesscale_state.restore(state["layers"], self._recorded())
            except Exception as error:
                problem = f"can't be restored ({error!r})"
        if isinstance(self.env, gym.wrappers.RecordVideo):
            self.env.recorded_frames.clear()  # of the episode that reset began
        self.obs_rms.set_state(state["statistics"]["obs"])
        self.return_rms.set_state(state["statistics"]["return"])
        self.discounted_return = state["discounted_return"]
        if problem is not None:
            with printing():
                print(f"note: the environment's state {problem}, so a new episode begins")
            return self.reset(seed)
        self.episode_return, self.episode_length = state["episode"]
        self.obs = from_plain(state["obs"])
        return self.obs

    def _recorded(self):
        """Return the environment without the wrapper that records videos, which a resumed run may add or leave out."""
        return self.env.env if isinstance(self.env, gym.wrappers.RecordVideo) else self.env


# ---- checking ----------------------------------------------------------------------------------------------


def _layers(env):
    """Yield the environment's wrappers from the outermost to the innermost, then the bare environment."""
    while env is not env.unwrapped:
        yield env
        env = env.env
    yield env


def _failure(action, message):
    """Return the exception that an environment's failure after `action` is; None stands for a reset."""
    finite = action is None or (np.abs(action) < 1e19).all()  # where float32 can't hold the square
    return (EnvironmentFailed if finite else ActionNotFinite)(f"the environment {message}")


def _brief(value):
    """Return a value as a short text on one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _number(value):
    """Return a number, also a numpy scalar or an array with one entry, as a float; NaN if it is anything else."""
    try:
        array = np.asarray(value)
        return float(value if isinstance(value, int) else array.item()) if array.dtype.kind in "biufO" else math.nan
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last of a tensor that autograd follows
        return math.nan


def _flag(value):
    """Return True or False where `value` means that; None if it is anything else."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    return {0.0: False, 1.0: True}.get(_number(value))


def warnings_of(args, env):
    """Return a line for each reason why an agent may not learn in `env`, a NormalizedEnv.

    Args:
        args: has env_id, gamma and norm_reward.
    """
    lines = []
    if not env.discrete:
        low, high = (np.asarray(bound, np.float64).ravel() for bound in (env.action_space.low, env.action_space.high))
        share = np.array([_normal_cdf(b) - _normal_cdf(a) for a, b in zip(low, high, strict=True)])
        far, wide = share < 0.1, (high - low > 100) & (np.maximum(-low, high) < 1e15)  # larger bounds mean none
        if (far | wide).any():
            i = int(np.argmax(far | wide))
            policy = "the policy starts at mean 0 and deviation 1"
            what = f"{share[i]:.1%} of its actions are in these bounds" if far[i] else "it tries little of this range"
            lines.append(
                f"--env-id {args.env_id}: action {i} is in [{low[i]:g}, {high[i]:g}], but {policy}, so {what} and it "
                "may not learn; register the environment with gymnasium.wrappers.RescaleAction to [-1, 1]"
            )
    if args.norm_reward and args.gamma > 0.9999:
        lines.append(
            f"--gamma {args.gamma:g}: the discounted return, whose deviation divides the rewards, grows through all "
            "truncated episodes, and the rewards shrink to nothing; give a smaller one, or --no-norm-reward"
        )
    return lines


def _normal_cdf(x):
    return (1 + math.erf(x / math.sqrt(2))) / 2


# ---- playing -----------------------------------------------------------------------------------------------


def play_episode(agent, env, seed=None, rng=None, max_steps=100_000, on_step=lambda: None):
    """Play an episode in a NormalizedEnv, which then has its return and length; return whether it came to an end.

    Args:
        agent: of ppo_hesscale.py or a2c_hesscale.py.
        env: reset with `seed`, or going on with its own random numbers.
        rng: numpy Generator that draws the actions; None for the most likely ones.
        max_steps: steps after which an endless episode is left.
        on_step: called after each step that does not end the episode.
    """
    obs = env.reset(seed)
    for _ in range(max_steps):
        obs, _, terminated, truncated = env.step(agent.act(obs[None], agent.noise(rng, 1) if rng else 0.0)[0])
        if terminated or truncated:
            return True
        on_step()
    return False


# ---- making ------------------------------------------------------------------------------------------------


def read_env_kwargs(text):
    """Return the arguments that `text`, as in "map_name=8x8,is_slippery=False", gives an environment, as a dict.

    A value is a Python literal or, without brackets and quotes, a word. Ends the program with one line if it can't be
    read.
    """
    kwargs = {}
    for part in re.split(r",(?=\s*\w+\s*=(?!=))", text) if text.strip() else ():
        name, equals, value = (word.strip() for word in part.partition("="))
        if not name.isidentifier() or not equals:
            fail(f"--env-kwargs {text}: {part!r} is not name=value")
        if name in kwargs:
            fail(f"--env-kwargs {text}: gives {name} twice")
        if value.endswith(","):  # which makes a tuple, and that is true even if it is (False,)
            fail(f"--env-kwargs {text}: {part!r} ends with a comma; leave it out, or write a tuple in brackets")
        try:
            kwargs[name] = (
                {"true": True, "false": False}[value] if value in ("true", "false") else ast.literal_eval(value)
            )
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            if not value or re.search(r"[\[\](){}'\",=]", value):
                fail(f"--env-kwargs {text}: the value of {name} is neither a Python literal nor a word")
            kwargs[name] = float(value) if value in ("inf", "-inf") else value
    return kwargs


def _made(env_id, kwargs):
    """Return gymnasium's environment; what its constructor changes of the process is put back."""
    with warnings.catch_warnings(), contextlib.chdir("."), np.errstate():
        warnings.simplefilter("ignore", DeprecationWarning)  # gymnasium calls each -v4 out of date; the paper uses it
        return gym.make(env_id, **kwargs)


def make_env(args, video_folder=None, video_trigger=None):
    """Make a NormalizedEnv of args.env_id, or end the program with one line that says why it cannot be made.

    Args:
        args: has env_id, gamma, norm_obs and norm_reward, and may have env_kwargs and time_feature.
        video_folder: where to record videos; None records none.
        video_trigger: function from an episode's number to whether to record it; None for gymnasium's choice.
    """
    env_id, text = args.env_id, getattr(args, "env_kwargs", "")
    kwargs, flags = read_env_kwargs(text), f"--env-id {env_id}" + f" --env-kwargs {text}" * bool(text)
    if video_folder and kwargs.setdefault("render_mode", "rgb_array") != "rgb_array":
        mode = kwargs["render_mode"]
        fail(f"--env-kwargs {text}: --capture-video needs render_mode=rgb_array, not {mode}; leave one of them out")
    try:
        env = _made(env_id, kwargs)
    except (Exception, SystemExit) as error:  # a gym.error.Error, or whatever the environment's own constructor raises
        backend = os.environ.get("MUJOCO_GL", "")
        if backend != "disable" and (backend or video_folder):
            # mujoco's import loads the library that MUJOCO_GL names, whether anything will be rendered or not
            before, os.environ["MUJOCO_GL"] = dict(os.environ), "disable"
            try:
                env = make_env(args)  # ends the program if the error has other reasons
            finally:
                del os.environ["MUJOCO_GL"]
                os.environ |= before
            with closed_if_it_fails([env]):
                return env if video_folder is None else fail_to_render(env_id, error)
        cause = error.__cause__ or error  # gymnasium's text tells little more than Python's
        if isinstance(cause, ModuleNotFoundError) and re.split("[.:]", env_id)[0] == cause.name:
            fail(f"{flags}: {cause}; its folder must be in PYTHONPATH, as in PYTHONPATH=. python ...")
        module = sys.modules.get(env_id.partition(":")[0])
        if ":" in env_id and os.path.dirname(getattr(module, "__file__", None) or "") == SCRIPTS:
            fail(f"{flags}: scripts/ has a module of this name, too; give yours another name")
        # the text of a KeyError is the key alone, and that of a SystemExit its status
        plain = not isinstance(error, (KeyError, SystemExit))
        fail(f"{flags}: {(plain and str(error)) or repr(error)}")
    with closed_if_it_fails([env]):
        return _normalized(env, args, flags, kwargs, video_folder, video_trigger)


SPACES = {}  # by id, those of all environments so far


def _normalized(env, args, flags, kwargs, video_folder, video_trigger):
    """Return the NormalizedEnv of an environment that `kwargs` have made, or end the program, as make_env does."""
    env_id = args.env_id
    for layer, name in itertools.product(_layers(env), ("action_space", "observation_space")):
        if isinstance(space := inspect.getattr_static(layer, name, None), gym.Space):
            # or its seed would be that of all its class; but its own may have a second name, by which it samples
            if name not in getattr(layer, "__dict__", {}) or id(space) in SPACES:
                setattr(layer, name, copy.deepcopy(space))
            else:
                SPACES[id(space)] = space
    actions, observations = getattr(env, "action_space", None), getattr(env, "observation_space", None)
    if not isinstance(actions, (gym.spaces.Box, gym.spaces.Discrete)):
        fail(f"--env-id {env_id} has the action space {actions}; supported: Box and Discrete")
    try:
        if not isinstance(observations, gym.spaces.Box):
            env = gym.wrappers.FlattenObservation(env)
        if not isinstance(env.observation_space, gym.spaces.Box):
            raise ValueError("their size varies")
    except Exception as error:
        fail(f"--env-id {env_id}: observations {observations} can't be made a vector: {error}")
    for name, space in ("actions", actions), ("observations", env.observation_space):
        if isinstance(space, gym.spaces.Box) and math.prod(space.shape) == 0:
            fail(f"--env-id {env_id}: {name} {space} have no entries; an agent needs at least one")
    if getattr(args, "time_feature", False) and env.spec.max_episode_steps is None:
        fail(f"--time-feature: {env_id} has no time limit (max_episode_steps); leave it out")
    if video_folder:
        video_folder = os.path.abspath(video_folder)
        with contextlib.chdir("."), random_states_kept():  # a run with videos is the same as one without
            try_to_render(env, kwargs, flags, env_id)
        follow_body(getattr(env.unwrapped, "mujoco_renderer", None))
        try:
            env = Film(env, video_folder, video_trigger)
        except Exception as error:
            fail_to_render(env_id, error)
    time_limit = env.spec.max_episode_steps if getattr(args, "time_feature", False) else None
    return NormalizedEnv(env, args.gamma, args.norm_obs, args.norm_reward, time_limit)


class Film(gym.wrappers.RecordVideo):
    """gymnasium's recorder of videos; but an episode that can't be filmed is a warning, and ends no run."""

    def _capture_frame(self):
        self._or_warn(super()._capture_frame)

    def stop_recording(self):
        self._or_warn(super().stop_recording)

    def _or_warn(self, do):
        try:
            do()
        except Exception as error:
            self.recording, self.recorded_frames = False, []
            warn(f"--capture-video: {self._video_name}.mp4 can't be made: {' '.join(repr(error).split())}")


def try_to_render(env, kwargs, flags, env_id):
    """Render an environment that is made as `env`, or end the program with one line that says why it can't be."""
    trial = env  # where no second one can be made
    with contextlib.suppress(Exception, SystemExit), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they have been told
        trial = _made(env_id, kwargs)
    try:
        try:
            trial.reset()
        except Exception as error:
            fail(f"{flags}: the environment raised in reset: {error!r}")
        try:
            with warnings.catch_warnings():  # GLFW's, of which the error says as much
                warnings.simplefilter("ignore")
                frame = trial.render()
            if isinstance(frame, np.ndarray) and frame.ndim != 3:
                raise ValueError(f"its frames have the shape {list(frame.shape)}, not [height, width, 3]")
        except Exception as error:
            fail_to_render(env_id, error)
    finally:
        if trial.unwrapped is not env.unwrapped:
            with contextlib.suppress(Exception, SystemExit):
                trial.close()


def follow_body(renderer):
    """Look through the camera that goes with the agent, where a MuJoCo environment has one.

    gymnasium 1.4 does so only if asked for it by `camera_name=track`; else agents run out of the picture.
    """
    if getattr(renderer, "camera_id", None) == -1:  # no camera was asked for
        import mujoco

        renderer.camera_id = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")  # or -1 again


def fail_to_render(env_id, error):
    """End the program with one line that says why an environment can't be rendered, and what to install or set."""
    if isinstance(error, OSError) and error.filename and not isinstance(error, FileNotFoundError):
        fail(f"--capture-video: the videos can't be written ({error}); run in another folder, or leave it out")
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
    fail(f"--capture-video: {env_id} can't be rendered ({str(error) or repr(error)}); {advice}")


def is_one_object(args, env):
    """Return whether another environment that is made by `args` would be the object that `env` is made of."""
    with random_states_kept():
        other = make_env(args)
    if other.env.unwrapped is env.env.unwrapped:
        return True
    other.close()
    return False


@contextlib.contextmanager
def closed_if_it_fails(envs):
    """Close environments if the block raises, for a thread of one could keep the program from ending."""
    try:
        yield
    except BaseException:
        for env in envs:
            with contextlib.suppress(Exception, SystemExit):  # there is an error to tell already
                env.close()
        raise


def make_envs(args, run_name):
    """Make args.num_envs environments; with args.capture_video, record the first one's videos in videos/{run_name}.

    That folder has _1, _2, ... at its end if there is one already, of a run that began in the same second.
    """
    try:
        videos = new_folder(f"videos/{file_name(run_name)}") if args.capture_video else None
    except OSError as error:
        fail(f"--capture-video: the videos can't be written ({error}); run in another folder, or leave it out")
    envs = []
    try:
        with closed_if_it_fails(envs):
            with warnings.catch_warnings():  # the folder exists, but is empty
                warnings.filterwarnings("ignore", ".*Overwriting existing videos")
                for i in range(args.num_envs):
                    envs.append(make_env(args, videos if i == 0 else None))
            if len({id(env.env.unwrapped) for env in envs}) < len(envs):
                fail(f"--num-envs {args.num_envs}: {args.env_id} is one object, however often it is made; leave it out")
            if len({(env.obs_dim, env.action_dim, env.discrete) for env in envs}) > 1:
                fail(f"--num-envs {args.num_envs}: {args.env_id} has other sizes each time it is made; leave it out")
            if args.state_std and envs[0].discrete:
                fail(f"--state-std: {args.env_id} has discrete actions, which have no standard deviation; leave it out")
            if args.eval_interval and is_one_object(args, envs[0]):
                fail(f"--eval-interval: {args.env_id} is one object, however often it is made; leave it out")
    except SystemExit:
        if videos:
            os.removedirs(videos)  # and videos/ if that is empty, too
        raise
    return envs
