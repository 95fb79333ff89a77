"""NormalizedEnv against gymnasium's own wrappers, to the last bit."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

import hesscale_envs
from hesscale_envs import EnvironmentFailed, NormalizedEnv, make_env, make_envs


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
def test_the_first_of_several_environments_records_videos(monkeypatch, capture_video, recorded):
    folders = []
    toggle = lambda args, video_folder: folders.append(video_folder) or NormalizedEnv(gym.make("toy_envs:Toggle-v0"), 0.9)  # noqa: E731
    monkeypatch.setattr(hesscale_envs, "make_env", toggle)
    assert len(make_envs(SimpleNamespace(num_envs=3, capture_video=capture_video), "a_run")) == 3
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
