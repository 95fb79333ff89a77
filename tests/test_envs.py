"""NormalizedEnv against gymnasium's own wrappers, to the last bit."""

import ctypes
import io
import json
import os
import random
import shutil
import sys
import threading
import time
import types
from types import SimpleNamespace
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import ROOT
from gymnasium import spaces
from gymnasium.utils import EzPickle
from test_agents import AGENTS
from test_messages import error_of
from test_runs import args_of as command_line
from test_runs import evaluate, line, only_run, outcome, play, run, status
from toy_envs import Counted, Film, Slots, Toggle

import hesscale_envs
import hesscale_run
import hesscale_state
from hesscale_envs import (
    ActionNotFinite,
    EnvironmentFailed,
    NormalizedEnv,
    make_env,
    make_envs,
    read_env_kwargs,
    warnings_of,
)


def args_of(env_id, **flags):
    defaults = dict(gamma=0.99, norm_obs=True, norm_reward=True, state_std=False, eval_interval=0)
    return SimpleNamespace(env_id=env_id, **defaults | flags)


def cleanrl_env(env_id, gamma):
    env = gym.wrappers.FlattenObservation(gym.make(env_id))
    env = gym.wrappers.RecordEpisodeStatistics(env)
    env = gym.wrappers.ClipAction(env)
    env = gym.wrappers.NormalizeObservation(env)
    env = gym.wrappers.TransformObservation(env, lambda obs: np.clip(obs, -10, 10), None)
    env = gym.wrappers.NormalizeReward(env, gamma=gamma)
    return gym.wrappers.TransformReward(env, lambda reward: np.clip(reward, -10, 10))


@pytest.mark.parametrize("env_id", ["Hopper-v4", "Hopper-v5", "Reacher-v4", "toy_envs:Shapes-v0"])
def test_normalization_is_gymnasiums_to_the_last_bit(env_id):
    """Over episodes that end both ways, with actions on both sides of their bounds."""
    ours, theirs = NormalizedEnv(gym.make(env_id), 0.9), cleanrl_env(env_id, 0.9)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(ours.reset(seed=3), theirs.reset(seed=3)[0])
    ends, largest = 0, 0.0
    for _ in range(1000):
        action = rng.normal(0, 1.5, ours.action_dim).astype(np.float32)
        obs, reward, terminated, truncated = ours.step(action)
        expected_obs, expected_reward, *expected_ends, info = theirs.step(action.reshape(ours.action_space.shape))
        np.testing.assert_array_equal(obs, expected_obs)
        assert obs.dtype == np.float32
        assert reward == expected_reward
        largest = max(largest, abs(obs).max(), abs(reward))
        assert [terminated, truncated] == expected_ends
        if terminated or truncated:
            ends += 1
            assert ours.episode_return == pytest.approx(info["episode"]["r"], abs=1e-3)  # theirs is rounded
            assert ours.episode_length == info["episode"]["l"]
            np.testing.assert_array_equal(ours.reset(), theirs.reset()[0])
    assert ends > 10
    assert largest <= 10 and (largest == 10 or "Shapes" not in env_id)  # its outliers are clipped


def test_dict_observations_are_flattened():
    gym.register("DictObs-v0", lambda: gym.wrappers.TransformObservation(
        gym.make("toy_envs:Toggle-v0"), lambda obs: {"a": obs, "b": obs},
        gym.spaces.Dict({k: gym.spaces.Box(-1, 1, (1,), np.float32) for k in "ab"}),
    ))  # fmt: skip
    env = make_env(SimpleNamespace(env_id="DictObs-v0", gamma=0.99, norm_obs=True, norm_reward=True))
    assert env.obs_dim == 2
    assert env.reset(seed=0).shape == (2,)


def test_without_normalization_nothing_is_touched():
    ours, theirs = NormalizedEnv(gym.make("toy_envs:Shapes-v0"), 0.9, False, False), gym.make("toy_envs:Shapes-v0")
    ours.reset(seed=0), theirs.reset(seed=0)
    for _ in range(100):
        obs, reward, terminated, truncated = ours.step(np.full(4, 0.5, np.float32))
        expected, expected_reward, *ends, _ = theirs.step(np.full((2, 2), 0.5, np.float32))
        np.testing.assert_array_equal(obs, expected.reshape(-1).astype(np.float32))
        assert [reward, terminated, truncated] == [expected_reward, *ends]
        if terminated or truncated:
            ours.reset(), theirs.reset()


def test_discrete_actions_start_where_the_space_starts():
    env = NormalizedEnv(gym.make("toy_envs:Counter-v0"), 0.9, norm_obs=False, norm_reward=False)
    env.reset(seed=0)
    assert env.discrete and env.action_dim == 3
    assert [env.step(np.int64(choice))[1] for choice in range(3)] == [5.0, 6.0, 7.0]


@pytest.mark.parametrize("capture_video, recorded", [(True, ["videos/a_run", None, None]), (False, [None] * 3)])
def test_the_first_of_several_environments_records_videos(monkeypatch, tmp_path, capture_video, recorded):
    monkeypatch.chdir(tmp_path)
    folders = []

    def toggle(args, video_folder):
        folders.append(video_folder)
        return NormalizedEnv(gym.make("toy_envs:Toggle-v0"), 0.9)

    monkeypatch.setattr(hesscale_envs, "make_env", toggle)
    assert len(make_envs(args_of("Toggle-v0", num_envs=3, capture_video=capture_video), "a_run")) == 3
    assert folders == recorded


@pytest.mark.parametrize("method", ["reset", "step"])
def test_an_exception_in_an_environment_is_an_environment_failure(monkeypatch, method):
    env = NormalizedEnv(gym.make("toy_envs:Toggle-v0"), 0.9)
    env.reset(seed=0)

    def raise_error(*args, **kwargs):
        raise OSError("no simulator")

    monkeypatch.setattr(type(env.env.unwrapped), method, raise_error)
    with pytest.raises(EnvironmentFailed, match=rf"raised in {method}: OSError\('no simulator'\)"):
        env.reset() if method == "reset" else env.step(np.zeros(1, np.float32))


def test_frozen_statistics_normalize_and_do_not_move():
    env = NormalizedEnv(gym.make("toy_envs:Shapes-v0"), 0.9)
    env.reset(seed=0)
    statistics = env.get_state()["statistics"]
    other = NormalizedEnv(gym.make("toy_envs:Shapes-v0"), 0.9)
    other.freeze(statistics)
    first = other.reset(seed=1)
    raw = other.env.unwrapped.reset(seed=1)[0].ravel()
    expected = np.float32((raw - env.obs_rms.mean) / np.sqrt(env.obs_rms.var + 1e-8))
    np.testing.assert_array_equal(first, np.clip(expected, -10, 10))
    np.testing.assert_array_equal(other.obs_rms.mean, env.obs_rms.mean)


# ---- what an environment returns ---------------------------------------------------------------------------


def returning(reset=None, **step):
    """A Toggle whose reset or step returns something else than it should: `reset` or the named parts of a step."""

    class Returning(Toggle):
        def reset(self, *, seed=None, options=None):
            obs, info = super().reset(seed=seed)
            return reset(obs, info) if reset else (obs, info)

        def step(self, action):
            names = ("obs", "reward", "terminated", "truncated", "info")
            parts = dict(zip(names, super().step(action), strict=True)) | step
            return parts["whole"] if "whole" in parts else tuple(parts.values())

    return NormalizedEnv(Returning(), 0.9, norm_obs=False, norm_reward=False)


@pytest.mark.parametrize("kind", [float, np.float32, np.float16, int, np.int8, bool, np.bool_, np.array, torch.tensor,
                                  lambda x: np.array([x]), lambda x: np.array([[x]], np.float32)])  # fmt: skip
def test_what_means_a_number_or_a_flag_is_one(kind):
    env = returning(reward=kind(1), terminated=kind(0), truncated=kind(1))
    env.reset(seed=0)
    _, reward, terminated, truncated = env.step(np.zeros(1, np.float32))
    assert (type(reward), reward) == (float, 1.0) and (terminated, truncated) == (False, True)
    assert type(terminated) is type(truncated) is bool and env.episode_return == 1.0


@pytest.mark.parametrize("obs", [[0.5], (np.float32(0.5),), 0.5, np.array([[0.5]]), torch.tensor([0.5])])
def test_what_means_an_observation_is_one(obs):
    env = returning(lambda _, info: (obs, info), obs=obs)
    for seen in (env.reset(seed=0), env.step(np.zeros(1, np.float32))[0]):
        np.testing.assert_array_equal(seen, np.float32([0.5]))
    whole = np.iinfo(np.int64).max
    assert returning(lambda _, info: ([whole], info)).reset() == np.float32(whole)


NOT_OBSERVATIONS = [
    (np.zeros(2), "which has 2 numbers, its space 1"),
    (np.zeros(0), "which has 0 numbers, its space 1"),
    (np.array([np.nan]), "[nan]), which is not finite"),
    ([-np.inf], "[-inf], which is not finite"),
    ([1e39], "which is too large: at most 3e+38"),  # for a network's float32
    (torch.ones(1, requires_grad=True), "which is not numbers"),
    (None, "the observation None, which is not numbers"),
    ("0.5", "which is not numbers"),
    (["0.5"], "which is not numbers"),
    (np.array([1j]), "which is not numbers"),
    ({"a": 1.0}, "which is not numbers"),
    ([[1.0], [1.0, 2.0]], "which is not numbers"),
    (np.array([None]), "which is not numbers"),
]
GROWING = torch.tensor(1.0, requires_grad=True)
NOT_STEPS = [
    *({"obs": obs} | {"message": message} for obs, message in NOT_OBSERVATIONS),
    *({"reward": r, "message": f"returned the reward {r!r} from step, which is no finite number"}
      for r in (None, float("nan"), -float("inf"), "1.0", 1j, [1.0, 2.0], np.float32("nan"), GROWING)),
    *({"reward": r, "message": f"returned the reward {r!r} from step, which is too large: at most 1e+30"}
      for r in (1e31, -1e200, 10**60)),  # for the events' float32, in which a return is a sum of many
    *({flag: value, "message": f"{flag} {value!r}"}
      for flag in ("terminated", "truncated") for value in (None, np.nan, 2, "False", np.array([True, False]), [])),
    {"whole": (np.zeros(1), 0.0, False, {}), "message": "not (observation, reward, terminated, truncated, info)"},
    {"reward": 10**400, "message": "returned the reward 1000"},
    {"whole": None, "message": "returned None from step, not"},
]  # fmt: skip


@pytest.mark.parametrize("obs, message", NOT_OBSERVATIONS)
def test_what_is_no_observation_is_the_environments_failure_in_reset(obs, message):
    with pytest.raises(EnvironmentFailed) as caught:
        returning(lambda _, info: (obs, info)).reset(seed=0)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("returned", [None, np.zeros(1), np.zeros(2), (np.zeros(1),), [np.zeros(1), {}]])
def test_a_reset_that_returns_no_pair_is_the_environments_failure(returned):
    with pytest.raises(EnvironmentFailed, match=r"from reset, not \(observation, info\)"):
        returning(lambda obs, info: returned).reset(seed=0)


@pytest.mark.parametrize("step", NOT_STEPS)
def test_what_is_no_step_is_the_environments_failure_unless_the_action_was_not_finite(step):
    step = dict(step)
    message = step.pop("message")
    env = returning(**step)
    for action, kind in ((0.0, EnvironmentFailed), (np.nan, ActionNotFinite), (np.inf, ActionNotFinite)):
        env.reset(seed=0)
        with pytest.raises(EnvironmentFailed) as caught:
            env.step(np.full(1, action, np.float32))
        assert type(caught.value) is kind and message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
def test_normalization_lets_nothing_pass_that_it_could_not_undo(value):
    """The running variance would stay infinite, or not a number, to the run's end."""
    env = NormalizedEnv(gym.make("toy_envs:Shapes-v0"), 0.9)
    env.reset(seed=0)
    obs = np.zeros((2, 3))
    obs[1, 2] = value
    with pytest.raises(EnvironmentFailed, match="is too large: at most 1e.140" if value == 1e200 else "is not finite"):
        env._normalize(obs)
    assert np.isfinite(env._normalize(np.full((2, 3), 1e130))).all()


@pytest.mark.parametrize("method", ["reset", "step"])
def test_an_environment_that_ends_the_program_has_failed(method):
    env = returning()
    env.reset(seed=0)
    setattr(env.env, method, lambda *args, **kwargs: sys.exit("bye"))
    with pytest.raises(EnvironmentFailed, match=f"raised in {method}: SystemExit"):
        env.reset() if method == "reset" else env.step(np.zeros(1, np.float32))


def test_an_environment_that_raises_in_close_is_a_warning(capsys):
    env = returning()
    for error in (RuntimeError("no\nconnection"), SystemExit(3)):
        env.env.close = mock.Mock(side_effect=error)
        env.close()
        assert capsys.readouterr().err == f"warning: the environment raised in close: {error!r}\n"


# ---- spaces ------------------------------------------------------------------------------------------------


def with_spaces(monkeypatch, observations=None, actions=None, **flags):
    """Make an environment with these spaces through make_env."""
    toggle = Toggle()
    toggle.observation_space = toggle.observation_space if observations is None else observations
    toggle.action_space = toggle.action_space if actions is None else actions
    monkeypatch.setattr(gym, "make", lambda *args, **kwargs: toggle)
    return make_env(args_of("Toggle-v0", **flags))


VECTOR = spaces.Box(-1, 1, (2,))


@pytest.mark.parametrize(
    "space, size",
    [
        (spaces.Discrete(4), 4),
        (spaces.MultiBinary([2, 2]), 4),
        (spaces.MultiDiscrete([2, 3]), 5),
        (spaces.Text(3), 3),
        (spaces.Tuple([VECTOR, spaces.Discrete(3)]), 5),
        (spaces.OneOf([VECTOR, spaces.Discrete(3)]), 4),
        (spaces.Dict(a=VECTOR, b=spaces.Dict(c=VECTOR)), 4),
        (spaces.Box(-1, 1, ()), 1),
        (spaces.Box(0, 255, (2, 2, 3), np.uint8), 12),
    ],
)
def test_observations_of_every_kind_with_a_size_become_a_vector(monkeypatch, space, size):
    env = with_spaces(monkeypatch, space)
    space.seed(0)
    env.env.unwrapped._obs = space.sample
    assert env.obs_dim == size and env.reset().shape == (size,)


@pytest.mark.parametrize(
    "space", [spaces.Sequence(VECTOR), spaces.Graph(VECTOR, None), spaces.Dict(a=spaces.Sequence(VECTOR)),
              spaces.Dict(), spaces.Box(0, 1, (0,)), spaces.Box(0, 1, (3, 0))])  # fmt: skip
def test_observations_without_a_size_are_one_line(monkeypatch, space):
    with pytest.raises(SystemExit, match=r"^error: --env-id Toggle-v0.*(can't be made a vector|have no entries)"):
        with_spaces(monkeypatch, space)


@pytest.mark.parametrize("space", [spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2), spaces.Tuple([VECTOR]),
                                   spaces.Dict(a=VECTOR), spaces.Text(3), spaces.Box(0, 1, (0,))])  # fmt: skip
def test_actions_of_other_kinds_are_one_line(monkeypatch, space):
    with pytest.raises(SystemExit, match=r"^error: --env-id Toggle-v0.*(supported: Box and Discrete|have no entries)"):
        with_spaces(monkeypatch, actions=space)


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (2,), (2, 1)])
def test_actions_have_the_spaces_shape_and_type_and_are_rounded_to_integers(monkeypatch, dtype, shape):
    env = with_spaces(monkeypatch, actions=spaces.Box(0, 3, shape, dtype))
    env.reset()
    taken = []
    env.env.step = lambda action: taken.append(action) or (np.zeros(1), 0.0, False, False, {})
    for action in (-7.0, 0.6, 1.7, 99.0):
        env.step(np.full(env.action_dim, action, np.float32))
    expected = [0, 1, 2, 3] if np.issubdtype(dtype, np.integer) else [0, 0.6, 1.7, 3]
    assert [np.unique(action).item() for action in taken] == pytest.approx(expected)
    assert all(type(action) is np.ndarray and action.shape == shape and action.dtype == dtype for action in taken)


def test_an_environment_without_spaces_is_one_line(monkeypatch):
    class Bare(Toggle):
        action_space = None

    del Bare.action_space
    monkeypatch.delattr(Toggle, "action_space")
    monkeypatch.setattr(gym, "make", lambda *args, **kwargs: Bare())
    with pytest.raises(SystemExit, match=r"^error: --env-id Bare-v0 has the action space None; supported: Box and"):
        make_env(args_of("Bare-v0"))


def test_what_an_environment_changes_as_it_is_made_is_put_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = np.geterr()
    make_env(args_of("toy_envs:Meddles-v0")).close()  # or its thread would not let this process end
    assert os.getcwd() == str(tmp_path) and np.geterr() == before


def test_whatever_fails_leaves_no_environment_open(tmp_path, monkeypatch):
    """Or a thread of one would keep the program from ending."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Counted, "opened", [])
    made = dict(num_envs=1, capture_video=False)
    for kind, flags, message in (
        ("many", {}, "--env-id toy_envs:Counted-v0 has the action space MultiDiscrete([2 2])"),
        ("discrete", dict(state_std=True), "--state-std: toy_envs:Counted-v0 has discrete actions"),
        ("once", dict(num_envs=2), "--env-id toy_envs:Counted-v0 --env-kwargs kind=once: the port is in use"),
        ("grows", dict(num_envs=2), "--num-envs 2: toy_envs:Counted-v0 has other sizes each time it is made; leave"),
        (
            "grey",
            dict(capture_video=True),
            "--capture-video: toy_envs:Counted-v0 can't be rendered (its frames have the",
        ),
    ):
        args = args_of("toy_envs:Counted-v0", env_kwargs=f"kind={kind}", **made | flags)
        assert error_of(make_envs, args, "a_run").startswith(message) and not Counted.opened
    args = args_of("toy_envs:Counted-v0", env_kwargs="kind=raises", seed=1, eval_episodes=1)
    frozen = SimpleNamespace(obs_rms=SimpleNamespace(get_state=hesscale_envs.RunningMeanStd(1).get_state))
    agent = SimpleNamespace(act=lambda obs, noise: np.zeros((1, 1), np.float32))
    with pytest.raises(EnvironmentFailed, match="gone"):
        hesscale_run.evaluate(args, agent, [frozen])
    assert not Counted.opened and not list(tmp_path.iterdir())


def test_an_environment_that_fails_as_it_is_played_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(Counted, "opened", [])
    flags = "--env-id toy_envs:Counted-v0 --num-steps 64 --total-timesteps 64 --optimizer adam --save-model".split()
    assert run(tmp_path, "a2c", *flags)[0] == 0 and not Counted.opened
    folder = only_run(tmp_path)
    for more, message in (
        (["--env-kwargs", "kind=raises"], "the environment raised in step: RuntimeError('gone')"),
        (["--env-kwargs", "kind=discrete"], "--env-id toy_envs:Counted-v0 has "),
    ):
        code, _, err = evaluate(tmp_path, folder, *more)
        assert code == 1 and line(err).startswith(f"error: {message}") and not Counted.opened


@pytest.mark.parametrize("kind", ["plain", "once"])
def test_videos_do_not_change_what_is_filmed(tmp_path, monkeypatch, kind):
    """Rendering is tried with another environment: a reset more would be one that this one counts."""
    monkeypatch.setattr(Counted, "opened", [])
    rewards = []
    for folder in None, tmp_path / "videos":
        env = make_env(args_of("toy_envs:Counted-v0", norm_reward=False, env_kwargs=f"kind={kind}"), folder)
        env.reset(seed=1)
        rewards.append([env.step(np.zeros(1, np.float32))[1] for _ in range(3)])
        assert Counted.opened == [env.env.unwrapped]
        env.close()
    # of what there can't be two, none can be tried without a reset
    assert (rewards[0] == rewards[1]) == (kind == "plain")
    assert list(tmp_path.glob("videos/*.mp4"))


def test_an_episode_that_can_not_be_filmed_ends_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Counted, "opened", [])
    flags = "--env-id toy_envs:Counted-v0 --num-steps 64 --total-timesteps 128 --optimizer adam --capture-video".split()
    code, _, err = run(tmp_path, "a2c", *flags, "--env-kwargs", "kind=changing")
    assert code == 0 and status(only_run(tmp_path))["state"] == "finished"
    told = [text for text in err.splitlines() if "--capture-video: rl-video-episode-0.mp4 can't be made: " in text]
    assert len(told) == 1 and "same size" in told[0]


@pytest.mark.parametrize("kind", ["handle", "pipe", "folder"])
def test_what_cleans_up_when_it_goes_is_not_copied(tmp_path, kind):
    """A checkpoint on trial would be gone at once, and take what the environment needs along."""
    flags = "--env-id toy_envs:Handles-v0 --num-steps 64 --total-timesteps 128 --checkpoint-interval 64".split()
    code, out, err = run(tmp_path, "a2c", *flags, "--env-kwargs", f"kind={kind}", "--optimizer", "adam")
    assert code == 0, err
    what = {"handle": "handle is a Handle", "pipe": "pipe is a tuple", "folder": "folder is a TemporaryDirectory"}[kind]
    assert f"note: Handles.{what} (what " in out and "which a checkpoint can't hold" in out


def test_a_simulator_that_only_looks_like_mujocos_is_named(tmp_path):
    flags = "--env-id toy_envs:Wraps-v0 --num-steps 64 --total-timesteps 64 --optimizer adam".split()
    code, out, _ = run(tmp_path, "a2c", *flags)
    assert code == 0 and "note: the toy_envs.MjModel is not MuJoCo's own, which a checkpoint can't hold" in out


def test_a_wrapper_may_be_the_first_to_have_a_space():
    env = make_env(args_of("toy_envs:SaysWhat-v0"))
    assert env.reset(seed=1).shape == (1,)


def test_an_environment_may_know_its_space_by_another_name():
    draws = []
    for _ in range(3):
        env = make_env(args_of("toy_envs:Goals-v0", norm_obs=False))
        env.env.unwrapped.goals.sample()
        draws.append(env.reset(seed=1).tolist())
    assert draws[0] == draws[1] == draws[2]


def test_a_space_of_the_module_is_not_one_for_all_environments(monkeypatch):
    one = spaces.Box(-1, 1, (1,), np.float32)
    monkeypatch.setattr(Toggle, "__init__", lambda self: setattr(self, "action_space", one))
    envs = [make_env(args_of("toy_envs:Toggle-v0")) for _ in range(3)]
    assert len({id(env.env.unwrapped.action_space) for env in envs}) == 3


def test_torchs_default_dtype_is_the_environments_own(tmp_path, monkeypatch):
    monkeypatch.setattr(
        Toggle, "__init__", lambda self: torch.set_default_dtype(torch.float64) or setattr(self, "terminates", False)
    )
    flags = "--env-id toy_envs:Toggle-v0 --num-steps 64 --total-timesteps 64 --save-model".split()
    try:
        for agent in AGENTS:
            torch.set_default_dtype(torch.float32)
            code, _, err = run(tmp_path, agent, *flags, "--exp-name", agent)
            assert code == 0, err
            torch.set_default_dtype(torch.float32)
            (folder,) = tmp_path.glob(f"runs/*__{agent}__*")
            assert evaluate(tmp_path, folder, "--episodes", 1)[0] == 0
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_module_that_ends_as_it_is_imported_is_named(monkeypatch):
    monkeypatch.setattr(Toggle, "__init__", mock.Mock(side_effect=SystemExit(2)))
    assert error_of(make_env, args_of("toy_envs:Toggle-v0")) == "--env-id toy_envs:Toggle-v0: SystemExit(2)"


def test_a_module_that_scripts_hides_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "grid", SimpleNamespace(__file__=f"{ROOT}/scripts/grid.py"))
    with pytest.raises(SystemExit, match=r"^error: --env-id grid:World-v0: scripts/ has a module of this name, too;"):
        make_env(args_of("grid:World-v0"))


def test_several_environments_that_are_one_object_are_refused(monkeypatch):
    one = Toggle()
    monkeypatch.setattr(gym, "make", lambda *args, **kwargs: gym.wrappers.TimeLimit(one, 3))
    args = args_of("Toggle-v0", num_envs=2, capture_video=False)
    with pytest.raises(SystemExit, match=r"^error: --num-envs 2: Toggle-v0 is one object"):
        make_envs(args, "a_run")
    args.num_envs = 1
    assert len(make_envs(args, "a_run")) == 1
    args.eval_interval = 1000  # an evaluation's episodes would be in the one that trains
    with pytest.raises(SystemExit, match=r"^error: --eval-interval: Toggle-v0 is one object"):
        make_envs(args, "a_run")


def test_to_ask_whether_an_environment_is_one_object_draws_nothing(monkeypatch):
    def make(*args, **kwargs):
        random.random(), np.random.random(), torch.rand(1)
        return gym.wrappers.TimeLimit(Toggle(), 3)

    monkeypatch.setattr(gym, "make", make)
    draws = []
    for interval in (0, 1000):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        make_envs(args_of("Toggle-v0", num_envs=1, capture_video=False, eval_interval=interval), "a_run")
        draws.append((random.random(), np.random.random(), torch.rand(1).item()))
    assert draws[0] == draws[1]


def test_a_standard_deviation_that_there_can_not_be_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "hesscale_envs.make_env", lambda *args: SimpleNamespace(discrete=True, env=Toggle(), obs_dim=1, action_dim=2)
    )
    with pytest.raises(SystemExit, match=r"^error: --state-std: Film-v0 has discrete actions"):
        make_envs(args_of("Film-v0", num_envs=1, capture_video=True, state_std=True), "a_run")
    assert not list(tmp_path.iterdir())


def test_a_seed_is_the_spaces_too(monkeypatch):
    env, draws = make_env(args_of("toy_envs:Sampler-v0", norm_obs=False, norm_reward=False)), []
    for _ in range(2):
        env.reset(seed=5)
        draws.append([env.step(np.zeros(1, np.float32))[:2] for _ in range(3)])
    assert repr(draws[0]) == repr(draws[1])
    env.reset(seed=6)
    assert repr([env.step(np.zeros(1, np.float32))[:2] for _ in range(3)]) != repr(draws[0])


@pytest.mark.parametrize(
    "low, high, warned",
    [
        (-1, 1, False), (-0.4, 0.4, False), (0, 1, False), (-10, 10, False), (-np.inf, np.inf, False),
        (0, np.inf, False), (-3.4e38, 3.4e38, False), (5, 9, True), (-9, -5, True), (5, np.inf, True),
        (-5e-4, 5e-4, True), (-500, 500, True), (0, 1000, True), (-9.2e18, 9.2e18, False),
    ],
)  # fmt: skip
def test_actions_that_a_new_policy_hardly_draws_are_warned_of(low, high, warned):
    toggle = Toggle()
    toggle.action_space = spaces.Box(np.float32([-1, low]), np.float32([1, high]))
    lines = warnings_of(args_of("Toggle-v0"), NormalizedEnv(toggle, 0.9))
    assert [f"action 1 is in [{low:g}, {high:g}]" in line and "RescaleAction" in line for line in lines] == [
        True
    ] * warned


@pytest.mark.parametrize("gamma, norm_reward, warned", [(1.0, True, True), (1.0, False, False), (0.999, True, False)])
def test_returns_that_forget_nothing_are_warned_of(gamma, norm_reward, warned):
    args = args_of("Toggle-v0", gamma=gamma, norm_reward=norm_reward)
    lines = warnings_of(args, NormalizedEnv(Toggle(), gamma))
    assert ["--gamma 1: " in line and "--no-norm-reward" in line for line in lines] == [True] * warned


# ---- arguments for the environment -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, kwargs",
    [
        ("", {}),
        ("map_name=8x8,is_slippery=False", {"map_name": "8x8", "is_slippery": False}),
        (" a = 1 , b=-2.5e-3,c='x, y',d=None", {"a": 1, "b": -2.5e-3, "c": "x, y", "d": None}),
        ("r=[0.7, 2],s={'k': [1, 2], 'l': (3,)}", {"r": [0.7, 2], "s": {"k": [1, 2], "l": (3,)}}),
        ("file=./my-robot.xml,on=true,top=inf", {"file": "./my-robot.xml", "on": True, "top": np.inf}),
        ("code=007,words=a b", {"code": "007", "words": "a b"}),
    ],
)  # fmt: skip
def test_arguments_are_python_literals_or_words(text, kwargs):
    read = read_env_kwargs(text)
    assert read == kwargs and list(map(type, read.values())) == list(map(type, kwargs.values()))


@pytest.mark.parametrize(
    "text, message",
    [
        ("8x8", "'8x8' is not name=value"),
        ("a=1,8x8", "neither a Python literal nor a word"),
        ("a=", "the value of a is neither"),
        ("a=[1,2", "the value of a is neither"),
        ("a='x", "the value of a is neither"),
        ("a=1,a=2", "gives a twice"),
        ("is_slippery=False,", "'is_slippery=False,' ends with a comma; leave it out, or write a tuple in brackets"),
        ("a=1 , , b=2", "ends with a comma"),
        ("1a=3", "'1a=3' is not name=value"),
        ('{"a": 1}', "is not name=value"),
    ],
)
def test_unreadable_arguments_are_one_line(text, message):
    with pytest.raises(SystemExit) as end:
        make_env(args_of("toy_envs:Toggle-v1", env_kwargs=text))
    assert str(end.value).startswith(f"error: --env-kwargs {text}: ") and message in str(end.value)


def test_an_error_without_a_sentence_is_named():
    with pytest.raises(SystemExit, match=r"--env-id FrozenLake-v1 --env-kwargs map_name=9x9: KeyError\('9x9'\)"):
        make_env(args_of("FrozenLake-v1", env_kwargs="map_name=9x9"))


def test_a_module_that_is_not_found_says_where_it_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "found.py").write_text("import missing_one")
    advice = "; its folder must be in PYTHONPATH, as in PYTHONPATH=. python ..."
    for module in "missing_one", "missing_one.envs":
        with pytest.raises(SystemExit) as end:
            make_env(args_of(f"{module}:My-v0"))
        assert str(end.value) == f"error: --env-id {module}:My-v0: No module named 'missing_one'{advice}"
    with pytest.raises(SystemExit) as end:
        make_env(args_of("found:My-v0"))
    assert "No module named 'missing_one'" in str(end.value) and "PYTHONPATH" not in str(end.value)


def test_arguments_reach_the_environment_or_are_one_line():
    env = make_env(args_of("toy_envs:Toggle-v1", env_kwargs="terminates=False"))
    assert env.env.unwrapped.terminates is False
    assert make_env(args_of("toy_envs:Toggle-v1")).env.unwrapped.terminates is True
    with pytest.raises(SystemExit, match=r"^error: --env-id toy_envs:Toggle-v1 --env-kwargs colour=red: .*colour"):
        make_env(args_of("toy_envs:Toggle-v1", env_kwargs="colour=red"))


@pytest.mark.parametrize(
    "env_id, kwargs, camera",
    [("Walker2d-v4", {}, "track"), ("Ant-v5", {}, "track"), ("InvertedDoublePendulum-v4", {}, None),
     ("Walker2d-v5", dict(camera_id=-5), -5)],
)  # fmt: skip
def test_videos_are_seen_through_the_camera_that_goes_with_the_agent(env_id, kwargs, camera):
    renderer = gym.make(env_id, render_mode="rgb_array", **kwargs).unwrapped.mujoco_renderer
    hesscale_envs.follow_body(renderer)
    cameras = [renderer.model.camera(i).name for i in range(renderer.model.ncam)]
    assert renderer.camera_id == (cameras.index(camera) if camera in cameras else camera or -1)


def test_videos_of_other_environments_have_no_such_camera(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        hesscale_envs, "follow_body", lambda renderer, f=hesscale_envs.follow_body: asked.append(f(renderer))
    )
    make_env(args_of("toy_envs:Film-v0"), tmp_path / "a")
    make_env(args_of("toy_envs:Film-v0"))
    assert asked == [None]


def test_runs_of_the_same_second_do_not_overwrite_each_others_videos(tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    args = args_of("toy_envs:Film-v0", num_envs=1, capture_video=True)
    folders = [make_envs(args, "a_run")[0].env.video_folder for _ in range(3)]
    assert folders == [str(tmp_path / "videos" / name) for name in ("a_run", "a_run_1", "a_run_2")]
    assert not recwarn.list
    args.env_kwargs = "colour=red"
    with pytest.raises(SystemExit, match="colour"):
        make_envs(args, "a_run")
    assert len(os.listdir("videos")) == 3  # what can't be made leaves no folder


def test_a_reset_that_fails_is_not_blamed_on_videos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Film, "reset", mock.Mock(side_effect=OSError))
    with pytest.raises(SystemExit, match=r"^error: --env-id toy_envs:Film-v0: the environment raised in reset: OSErr"):
        make_env(args_of("toy_envs:Film-v0"), tmp_path / "a")


def test_videos_lie_in_the_runs_folder_wherever_the_environment_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reset = Film.reset
    monkeypatch.setattr(Film, "reset", lambda self, **kwargs: os.chdir(os.sep) or reset(self, **kwargs))
    assert make_env(args_of("toy_envs:Film-v0"), "videos/a").env.video_folder == str(tmp_path / "videos/a")
    assert os.getcwd() == str(tmp_path)


def test_videos_that_can_not_be_written_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").write_text("")
    expected = r"^error: --capture-video: the videos can't be written \(\[Errno .*videos/a_run'\); run in"
    with pytest.raises(SystemExit, match=expected):
        make_envs(args_of("toy_envs:Film-v0", num_envs=1, capture_video=True), "a_run")
    with pytest.raises(SystemExit, match=expected):
        make_env(args_of("toy_envs:Film-v0"), "videos/a_run")


def test_a_way_of_rendering_must_be_the_one_that_videos_need(tmp_path):
    with pytest.raises(
        SystemExit, match=r"^error: --env-kwargs render_mode=human: --capture-video needs render_mode=rgb"
    ):
        make_env(args_of("toy_envs:Film-v0", env_kwargs="render_mode=human"), tmp_path / "a")
    for text in ("", "render_mode=rgb_array"):
        assert make_env(args_of("toy_envs:Film-v0", env_kwargs=text), tmp_path / "a").env.render_mode == "rgb_array"
    assert make_env(args_of("toy_envs:Film-v0", env_kwargs="render_mode=human")).env.render_mode == "human"


# ---- saving and restoring ----------------------------------------------------------------------------------

W = gym.wrappers


class Samples(gym.Wrapper):
    """Takes actions that it samples from a space of its class."""

    action_space = spaces.Box(-2, 2, (1,))

    def step(self, action):
        return self.env.step(self.action_space.sample())


WRAPPERS = {
    "Discrete": lambda e: e,
    **{w.__name__: w for w in (W.ClipAction, W.RecordEpisodeStatistics, W.TimeAwareObservation, W.NormalizeObservation,
                               W.NormalizeReward, W.PassiveEnvChecker, W.Autoreset)},
    "Samples": Samples,
    "RescaleAction": lambda e: W.RescaleAction(e, np.float32(-1), np.float32(1)),
    "RescaleObservation": lambda e: W.RescaleObservation(e, np.float32(-1), np.float32(1)),
    "FrameStackObservation": lambda e: W.FrameStackObservation(e, 3),
    "DelayObservation": lambda e: W.DelayObservation(e, 2),
    "StickyAction": lambda e: W.StickyAction(e, 0.3),
    "TransformObservation": lambda e: W.TransformObservation(e, lambda obs: 2 * obs, e.observation_space),
    "Dict": lambda e: W.TransformObservation(e, lambda obs: {"a": obs, "b": -obs}, spaces.Dict(
        dict.fromkeys("ab", e.observation_space))),
}  # fmt: skip
for name, wrap in WRAPPERS.items():
    gym.register(
        f"{name}-v0", lambda wrap=wrap, **kwargs: wrap(gym.make("Pendulum-v1", **kwargs)), max_episode_steps=60
    )
gym.register(
    "Added-v0", lambda: gym.make("Pendulum-v1"),
    additional_wrappers=(W.TimeAwareObservation.wrapper_spec(), W.FrameStackObservation.wrapper_spec(stack_size=2)),
)  # fmt: skip


@pytest.mark.parametrize("steps", [0, 90])
@pytest.mark.parametrize(
    "env_id",
    [
        *(f"{name}-v0" for name in WRAPPERS), "Added-v0",
        *("FrozenLake-v1", "CliffWalking-v1", "Taxi-v4", "Blackjack-v1", "Pendulum-v1", "Reacher-v4", "Humanoid-v5"),
        *(f"toy_envs:{name}-v0" for name in ("Sampler", "Garage", "Friction", "Shapes", "Film", "Slots")),
    ],
)  # fmt: skip
def test_an_environment_is_saved_whole(env_id, steps):
    """A newly made one that takes over goes on with the same numbers, through several episodes."""
    env, other = (make_env(args_of(env_id)) for _ in range(2))
    rng = np.random.default_rng(0)
    count = 200 + steps
    actions = (
        rng.integers(env.action_dim, size=count)
        if env.discrete
        else rng.normal(size=(count, env.action_dim)).astype(np.float32)
    )
    env.reset(seed=1)
    before = play(env, actions[:steps])
    assert env.unsaved() is None
    saved = io.BytesIO()
    torch.save(env.get_state(), saved)
    expected = play(env, actions[steps:])
    other.reset(seed=2)
    play(other, actions[:7])
    saved.seek(0)
    other.set_state(torch.load(saved, weights_only=True), seed=0)
    assert play(other, actions[steps:]) == expected
    # and nothing that environments begin with has changed
    third = make_env(args_of(env_id))
    third.reset(seed=1)
    assert play(third, actions) == before + expected


def test_what_was_shared_is_shared_again_and_nothing_else_is():
    class Holder(Toggle):
        start = np.zeros(2)

        def __init__(self):
            super().__init__()
            self.a = self.b = [1]
            self.c = [1]
            self.array = np.arange(6.0).reshape(2, 3)
            self.row, self.columns = self.array[1], self.array.T
            self.position = self.start
            self.me = {"self": self}
            self.wrapped = gym.wrappers.ClipAction(self)

    one, two = Holder(), Holder()
    one.position = one.position + 1
    saved = hesscale_state.save(one)
    assert hesscale_state.restore(saved, two) is two
    assert two.a is two.b and two.a is not two.c and two.me["self"] is two and two.wrapped.env is two
    two.array[1] = 7
    assert (two.row == 7).all() and (two.columns[:, 1] == 7).all()
    assert (two.position == 1).all() and (Holder.start == 0).all()


def restored(**attributes):
    """Return a Toggle that got the state of one with the attributes."""
    one, two = Toggle(), Toggle()
    vars(one).update(attributes)
    return hesscale_state.restore(hesscale_state.save(one), two)


NUMBERS = np.zeros(4)


def parts_with_shared_memory():
    """Return {name: (parts of an environment, that which is changed, its new content)}."""
    text, tensor, numbers_of_tensor = bytearray(b"abcdefgh"), torch.zeros(4), torch.ones(4).numpy()
    table, numbers, rows, things = np.zeros(3, "f8,f8"), np.zeros(4), np.zeros((2, 3)), np.zeros((2, 2), object)
    masked = np.ma.masked_array(np.zeros(4), mask=[0, 1, 0, 0])
    return {
        "bytes": ({"a": text, "b": np.frombuffer(text, np.uint8)}, "b", 7),
        "a memoryview": ({"a": text, "b": memoryview(text)[2:6]}, "b", b"wxyz"),
        "of an array": ({"a": rows, "b": memoryview(rows[1])}, "a", 7),
        "records": ({"a": table, "b": table.view(np.recarray)}, "a", (1, 2)),
        "a row": ({"a": table, "b": table[1]}, "a", (1, 2)),
        "masked": ({"a": masked, "b": masked.data, "c": masked.mask}, "b", 7),
        "objects": ({"a": things, "b": things[1], "c": things[:, 1]}, "b", 7),
        "tensors": ({"a": tensor, "b": tensor[1:3], "c": tensor.view(2, 2).T}, "b", 7),
        "an array's tensor": (
            {"a": numbers, "b": torch.from_numpy(numbers), "c": torch.from_numpy(numbers)[2:]},
            "a",
            7,
        ),
        "windows": ({"a": numbers, "b": np.lib.stride_tricks.sliding_window_view(numbers, 2)}, "a", 7),
        "a tensor's array": ({"a": torch.from_numpy(numbers_of_tensor), "b": numbers_of_tensor[1:]}, "b", 7),
    }


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize("name", parts_with_shared_memory())
def test_memory_that_was_shared_is_shared_again(name, turn):
    """Whatever is saved first."""
    parts, changed, value = parts_with_shared_memory()[name]
    parts = dict(list(parts.items())[::turn])
    expected, found = SimpleNamespace(**parts), restored(**parts)
    assert all(type(getattr(found, part)) is type(value) for part, value in parts.items())
    again = restored(**{part: getattr(found, part) for part in parts})
    for env in (found, again, expected):
        getattr(env, changed)[:] = value
    for part in parts:
        texts = {str(np.asanyarray(getattr(env, part))) for env in (found, again, expected)}
        assert len(texts) == 1, (part, texts)


def test_a_tensor_grows_and_a_view_is_read_only_as_before():
    view = (numbers := np.zeros(4))[1:]
    view.flags.writeable = False
    env = restored(tensor=torch.zeros(2), numbers=numbers, view=view, part=torch.from_numpy(numbers[2:]))
    env.tensor.resize_(9)
    env.part += 3
    assert env.numbers.tolist() == [0, 0, 3, 3]
    assert env.numbers.flags.writeable and not env.view.flags.writeable


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"view": memoryview(b"abcd")[::2]}, r"Toggle\.view is a memoryview \(a memoryview with gaps"),
        ({"view": np.ctypeslib.as_array((ctypes.c_double * 3)())}, r"Toggle\.view is .* \(numbers in the memory of a"),
        ({"view": np.empty_like(np.zeros((2, 3, 4)).transpose(2, 0, 1))[1]}, "with gaps"),
        ({"part": torch.from_numpy(NUMBERS[2:]), "whole": NUMBERS}, "a ndarray whose memory is in part another's"),
        ({"row": np.zeros(2, [("a", object)])[0]}, r"Toggle\.row is a void \(a part of a structured array"),
    ],
)
def test_memory_that_can_not_be_shared_again_is_named(parts, message):
    toggle = Toggle()
    vars(toggle).update(parts)
    with pytest.raises(hesscale_state.CannotSave, match=message):
        hesscale_state.save(toggle)


def test_what_a_program_has_one_of_stays_that_one():
    env = restored(a=np.random.normal, b=random.random, c=torch.default_generator, d=[np.nan])
    assert env.a.__self__ is np.random.mtrand._rand and env.b.__self__ is random._inst
    assert env.c is torch.default_generator and env.d[0] is np.nan


class Robot(EzPickle):
    __slots__ = ("speed",)

    def __init__(self, arms):
        super().__init__(arms)
        self.arms, self.place, self.speed = arms, 0, 0


def test_what_pickles_its_constructors_arguments_keeps_its_state():
    robot = Robot(2)
    robot.arms, robot.place, robot.speed, robot.me = 3, 7, 8, robot
    got = restored(robot=robot).robot
    assert (got.arms, got.place, got.speed, got.me) == (3, 7, 8, got)


def test_a_restored_environment_has_what_the_saved_one_had():
    """Not what reset left, but what a rendered one needs, and what could not come back."""
    image = type("Surface", (), {"__module__": "pygame.surface"})
    one, two = Toggle(), Toggle()
    one.window = image()
    two.cached, two.window, two.drawn, two.lock = 1, None, image(), threading.Lock()
    hesscale_state.restore(hesscale_state.save(one), two)
    assert vars(two).keys() - vars(one).keys() == {"drawn", "lock"} and two.window is None
    two.cached, two.render_mode = 1, "rgb_array"
    hesscale_state.restore(hesscale_state.save(one), two)
    assert two.cached == 1 and two.render_mode == "rgb_array"
    del (slots := Slots()).steps
    assert not hasattr(hesscale_state.restore(hesscale_state.save(slots), Slots()), "steps")


def test_plain_numbers_cost_little():
    one = Toggle()
    one.numbers = list(range(10_000))
    with mock.patch.object(hesscale_state, "_kind", wraps=hesscale_state._kind) as kind:
        hesscale_state.save(one)
    assert kind.call_count < 100


class Unloadable(Exception):
    """Exceptions are pickled with the one argument that this gives to Exception, which its constructor can't do with.

    It draws first, as what makes itself anew may.
    """

    def __init__(self, *args):
        random.random(), np.random.random()
        one, two = args
        super().__init__(one + two)


class NoModule(type):
    @property
    def __module__(cls):
        raise AttributeError


class Swig(metaclass=NoModule):
    """As the types of Box2D, of no module."""

    def __reduce__(self):
        raise TypeError


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("lock", threading.Lock(), "Toggle.lock is a lock"),
        (
            "parts",
            {"a": [SimpleNamespace(lock=threading.Lock())]},
            "Toggle.parts is a dict (cannot",
        ),
        ("letters", (x for x in "ab"), "Toggle.letters is a generator"),
        ("file", sys.stdout, "Toggle.file is a "),
        ("error", Unloadable(1, 2), "Toggle.error is a Unloadable ("),
        ("world", Swig(), "Toggle.world is a Swig ("),
    ],
)
def test_what_can_not_be_saved_is_named(name, value, message):
    toggle = Toggle()
    setattr(toggle, name, value)
    env = NormalizedEnv(toggle, 0.9)
    env.reset(seed=0)
    states = random.getstate(), np.random.random(), np.random.get_state()[2]
    assert env.unsaved().startswith(message)
    assert (random.getstate(), np.random.get_state()[2]) == (states[0], states[2])
    assert name == "error" or env.get_state()["layers"] is None


@pytest.mark.parametrize("mode", ["r", "a", "a+", "w+", "rb"])
def test_an_open_file_can_not_be_saved_and_what_is_in_memory_can(tmp_path, monkeypatch, mode):
    """A copy of what the file holds would take all that the environment writes, and it would reach no disk."""
    (tmp_path / "log").write_text("line")
    toggle = Toggle()
    with open(os.devnull, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)  # pytest's is of a class of its own
        toggle.streams = [io.StringIO("a"), io.BytesIO(b"b"), stderr]
        assert NormalizedEnv(toggle, 0.9).unsaved() is None
    with open(tmp_path / "log", mode) as toggle.log:
        assert NormalizedEnv(toggle, 0.9).unsaved().startswith("Toggle.log is a ")


def test_to_load_on_trial_changes_nothing():
    """A class that a function made is saved with its attributes."""

    class Part:
        empty = object()

    toggle = Toggle()
    toggle.part, toggle.cell = Part(), Part.empty
    assert NormalizedEnv(toggle, 0.9).unsaved() is None and toggle.cell is Part.empty


def test_what_is_drawn_is_each_environments_own():
    """An environment may have loaded images, and the new one none yet, or others."""
    image = type("Surface", (), {"__module__": "pygame.surface"})
    one, two, three = Toggle(), Toggle(), Toggle()
    one.images, two.images, three.images = [image()], None, (mine := [image()])
    one.window, one.steps = image(), 7
    saved = hesscale_state.save(one)
    for other, images in (two, None), (three, mine):
        hesscale_state.restore(saved, other)
        assert other.images is images and not hasattr(other, "window") and other.steps == 7
    one.ball, two.ball = [image(), 7], [mine := image(), 0]
    hesscale_state.restore(hesscale_state.save(one), two)
    assert two.ball == [mine, 7]


def test_where_a_game_keeps_its_positions_is_saved(monkeypatch):
    """pygame's Rect and Vector2 are numbers, and a module whose name begins with pygame's is another."""
    for module in ("pygame", "pygame.rect", "pygame.math", "pygame_like"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    one, two = Toggle(), Toggle()
    for name, module in ("Rect", "pygame.rect"), ("Vector2", "pygame.math"), ("Ball", "pygame_like"):
        monkeypatch.setattr(sys.modules[module], name, type(name, (SimpleNamespace,), {"__module__": module}), False)
        for toggle, x in (one, 7), (two, 0):
            setattr(toggle, name, getattr(sys.modules[module], name)(x=x))
    hesscale_state.restore(hesscale_state.save(one), two)
    assert (two.Rect.x, two.Vector2.x, two.Ball.x) == (7, 7, 7)


def test_an_environment_that_lacks_a_part_is_not_restored():
    one, two = Toggle(), Toggle()
    one.parts, two.parts = [Toggle(), Toggle()], [Toggle()]
    with pytest.raises(KeyError, match=r"env\.parts\.1"):
        hesscale_state.restore(hesscale_state.save(one), two)


def test_a_part_of_another_class_is_not_restored():
    one, two = Toggle(), Toggle()
    one.steps, two.steps, one.part, two.part = 1, 2, Toggle(), Slots()
    with pytest.raises(KeyError, match=r"env\.part was a toy_envs\.Toggle and is a toy_envs\.Slots"):
        hesscale_state.restore(hesscale_state.save(one), two)
    assert two.steps == 2


def test_a_model_of_another_size_is_not_restored():
    """An environment may make another for each episode."""
    mujoco = pytest.importorskip("mujoco")
    one, two = Toggle(), Toggle()
    for toggle, count in (one, 1), (two, 2):
        geoms = "<geom size='1'/>" * count
        toggle.model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{geoms}</worldbody></mujoco>")
    with pytest.raises(KeyError, match=r"env\.model was a mujoco.*MjModel of \d+ bytes and is a"):
        hesscale_state.restore(hesscale_state.save(one), two)


def test_a_part_that_can_not_be_found_again_is_not_saved():
    one = Toggle()
    one.parts = {Toggle()}
    with pytest.raises(hesscale_state.CannotSave, match=r"Toggle\.parts is a set .*a Toggle where it can't be found"):
        hesscale_state.save(one)


def test_what_can_not_be_restored_begins_a_new_episode(capsys):
    env, other = (NormalizedEnv(Toggle(), 0.9) for _ in range(2))
    env.reset(seed=0)
    env.step(np.zeros(1, np.float32))
    state, count = env.get_state(), env.obs_rms.count
    state["layers"] = state["layers"][:-1]
    other.reset(seed=0)
    other.set_state(state, seed=1)
    assert "state can't be restored (UnpicklingError" in capsys.readouterr().out
    assert other.episode_length == 0 and other.obs_rms.count == count + 1


def test_a_video_is_no_part_of_the_state(tmp_path):
    """A run may be resumed with videos, or without."""
    plain, film = make_env(args_of("toy_envs:Film-v0")), make_env(args_of("toy_envs:Film-v0"), tmp_path / "videos")
    actions = np.zeros((30, 1), np.float32)
    for env in (plain, film):
        env.reset(seed=3)
    assert play(plain, actions) == play(film, actions)
    for env, other in ((plain, film), (film, plain)):
        state = env.get_state()
        expected = play(env, actions)
        other.set_state(state, seed=0)
        assert play(other, actions) == expected
    assert film.env.render_mode == "rgb_array" and plain.env.render_mode is None
    film.close()
    assert list(tmp_path.glob("videos/*.mp4"))


# ---- whole runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", AGENTS)
def test_an_environment_that_returns_what_is_not_finite_has_failed_and_not_diverged(tmp_path, agent):
    """A sweep tries a failed run again, and counts a diverged one against the optimizer."""
    flags = "--env-id toy_envs:Broken-v0 --num-steps 64 --total-timesteps 640 --checkpoint-interval 64".split()
    code, _, err = run(tmp_path, agent, *flags)
    assert code == hesscale_run.ERROR
    assert "toy_envs:Broken-v0: the environment returned the observation array([nan]" in line(err)
    assert status(only_run(tmp_path))["state"] == "failed" and "to go on: --resume" in line(err)


@pytest.mark.parametrize("begun", ["--capture-video", "--no-capture-video"])
def test_a_run_with_videos_goes_on_bit_for_bit(tmp_path, monkeypatch, begun):
    monkeypatch.chdir(tmp_path)
    kept, write = [], hesscale_run.write_atomically

    def keep(path, content, **options):
        write(path, content, **options)
        if path.endswith("checkpoint.pt"):
            kept.append(shutil.copytree(os.path.dirname(path), tmp_path / f"kept{len(kept)}"))

    monkeypatch.setattr(hesscale_run, "write_atomically", keep)
    flags = (
        "--env-id toy_envs:Film-v0 --num-steps 64 --total-timesteps 384 --checkpoint-interval 128 --save-model".split()
    )
    AGENTS["a2c"].main(command_line("a2c", *flags, begun))
    expected = outcome(only_run(tmp_path))
    assert os.path.exists("videos") == (begun == "--capture-video")
    shutil.rmtree("videos", ignore_errors=True)
    monkeypatch.setattr(hesscale_run, "write_atomically", write)
    time.sleep(1.1)  # as starting a process takes; event files are read in the order of their seconds
    AGENTS["a2c"].main(command_line("a2c", "--resume", str(kept[0]), "--capture-video"))
    assert outcome(kept[0]) == expected
    assert list(tmp_path.glob("videos/*/*.mp4"))


@pytest.mark.parametrize("agent", AGENTS)
def test_an_environment_that_raises_in_close_costs_no_result(tmp_path, agent):
    flags = "--env-id toy_envs:Closes-v0 --num-steps 64 --total-timesteps 128 --num-envs 2 --save-model".split()
    code, _, err = run(tmp_path, agent, *flags)
    warning = "warning: the environment raised in close: RuntimeError('it will not close')"
    assert code == 0 and err.splitlines() == [warning] * 2
    assert status(only_run(tmp_path))["state"] == "finished"
    code, out, err = evaluate(tmp_path, only_run(tmp_path), "--episodes", 2)
    assert code == 0 and "2 episodes, most likely actions: return" in out and err == f"{warning}\n"


def test_an_agent_is_evaluated_in_the_environment_that_it_was_trained_in(tmp_path):
    """A Toggle's episode is three steps long where it terminates; else the 7 of its limit."""
    kwargs = "terminates=False,max_episode_steps=7"
    flags = "--env-id toy_envs:Toggle-v1 --num-steps 64 --total-timesteps 128 --save-model".split()
    assert run(tmp_path, "a2c", *flags, "--env-kwargs", kwargs)[0] == 0
    folder = only_run(tmp_path)
    assert status(folder)["args"]["env_kwargs"] == hesscale_run.load_model(folder)["env_kwargs"] == kwargs
    for more, steps in (([], 7), (["--env-kwargs", ""], 3), (["--env-kwargs=max_episode_steps=2"], 2)):
        code, out, err = evaluate(tmp_path, folder, "--episodes", 1, *more)
        assert code == 0 and f", {steps} steps" in out, err
    code, out, err = evaluate(tmp_path, folder, "--episodes", 1, "--env-id", "toy_envs:Toggle-v0")
    assert code == 0 and ", 3 steps" in out, err  # the other environment's own limit
    code, _, err = evaluate(tmp_path, folder, "--env-kwargs", "colour=red")
    assert code == 1 and "--env-kwargs colour=red: " in line(err)


def test_arguments_of_the_environment_tell_runs_apart():
    one, same, other = (command_line("ppo", "--env-kwargs", text) for text in ("a=1", "a=1", "a=2"))
    keys = [hesscale_run.identity("ppo_hesscale.py", vars(args)) for args in (one, same, other)]
    assert keys[0] == keys[1] != keys[2]


def test_an_older_run_had_no_arguments_for_its_environment(tmp_path):
    args = vars(command_line("a2c"))
    del args["env_kwargs"]
    torch.save({"format": hesscale_run.CHECKPOINT_FORMAT, "args": args, "step": 64}, tmp_path / "checkpoint.pt")
    about = {"state": "running", "step": 64, "versions": {}, "start": "", "resumed_at": []}
    (tmp_path / "status.json").write_text(json.dumps(about | {"script": "a2c_hesscale.py", "args": args}))
    rates = AGENTS["a2c"].LEARNING_RATES
    assert hesscale_run.load_checkpoint(command_line("a2c", "--resume", str(tmp_path)), rates)["step"] == 64
    with pytest.raises(SystemExit, match="--env-kwargs a=1: the run in"):
        hesscale_run.load_checkpoint(command_line("a2c", "--resume", str(tmp_path), "--env-kwargs", "a=1"), rates)


def test_a_warning_of_what_may_not_be_learned_is_one_line(tmp_path):
    flags = "--env-id toy_envs:Toggle-v0 --num-steps 64 --total-timesteps 128 --num-envs 2 --gamma 1".split()
    code, _, err = run(tmp_path, "a2c", *flags)
    assert code == 0 and err.startswith("warning: --gamma 1: ") and len(err.splitlines()) == 1
