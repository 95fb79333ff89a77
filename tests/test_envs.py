"""NormalizedEnv against gymnasium's own wrappers, to the last bit."""

import gymnasium as gym
import numpy as np
import pytest

from hesscale_utils import NormalizedEnv, make_env


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
    ends = 0
    for _ in range(1000):
        action = rng.normal(0, 1.5, ours.action_dim).astype(np.float32)
        obs, reward, terminated, truncated = ours.step(action)
        expected_obs, expected_reward, *expected_ends, info = theirs.step(action.reshape(ours.action_space.shape))
        np.testing.assert_array_equal(obs, expected_obs)
        assert obs.dtype == np.float32
        assert reward == expected_reward
        assert [terminated, truncated] == expected_ends
        if terminated or truncated:
            ends += 1
            assert ours.episode_return == pytest.approx(info["episode"]["r"], abs=1e-3)  # theirs is rounded
            assert ours.episode_length == info["episode"]["l"]
            np.testing.assert_array_equal(ours.reset(), theirs.reset()[0])
    assert ends > 10


def test_dict_observations_are_flattened():
    gym.register("DictObs-v0", lambda: gym.wrappers.TransformObservation(
        gym.make("toy_envs:Toggle-v0"), lambda obs: {"a": obs, "b": obs},
        gym.spaces.Dict({k: gym.spaces.Box(-1, 1, (1,), np.float32) for k in "ab"}),
    ))  # fmt: skip
    env = make_env("DictObs-v0", 0.99)
    assert env.obs_dim == 2
    assert env.reset(seed=0).shape == (2,)
