"""UR-Reacher-v0 against a product of 4x4 matrices, a geometric Jacobian, and rules of motion worked by hand."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import ROOT
from gymnasium.utils.env_checker import check_env
from test_envs import args_of
from test_runs import only_run, outcome, play, run, status

import hesscale_run
from experiments import ur_reacher
from hesscale_envs import make_env

ENV_ID = "experiments.ur_reacher:UR-Reacher-v0"
AT_REST = np.array([1.58724391, -2.4, 1.5, -0.71790582, 1.63685572, 1.00910473])
LOW, HIGH = np.deg2rad([-170.0, -150.0]), np.deg2rad([-10.0, 150.0])


def literal_frames(q):
    """The frames [4, 4] of base and joints of a UR5, as products of elementary transforms; x and y are SenseAct's."""

    def rotation(angle, axis):
        i, j = {"x": (1, 2), "z": (0, 1)}[axis]
        matrix = np.eye(4)
        matrix[[i, j], [i, j]], matrix[j, i], matrix[i, j] = np.cos(angle), np.sin(angle), -np.sin(angle)
        return matrix

    def translation(x, z):
        matrix = np.eye(4)
        matrix[[0, 2], 3] = x, z
        return matrix

    d, a = (0.089159, 0, 0, 0.10915, 0.09465, 0.0823), (0, -0.425, -0.39225, 0, 0, 0)
    alpha = np.pi / 2 * np.array([1, 0, 0, 1, -1, 0])
    frames = [rotation(np.pi, "z")]
    for i in range(6):
        frames.append(frames[-1] @ rotation(q[i], "z") @ translation(a[i], d[i]) @ rotation(alpha[i], "x"))
    return frames


def at(shoulder, elbow):
    return np.array([AT_REST[0], shoulder, elbow, *AT_REST[3:]])


def bare(seed=0, **kwargs):
    env = gym.make(ENV_ID, **kwargs).unwrapped
    env.reset(seed=seed)
    return env


def poses(count):
    return np.random.default_rng(1).uniform(LOW, HIGH, (count, 2))


# ---- kinematics --------------------------------------------------------------------------------------------


def test_the_tool_at_the_reset_pose():
    assert ur_reacher.arm_points(-2.4, 1.5)[-1] == pytest.approx([-0.104, 0.019, 0.770], abs=5e-4)


def test_every_point_of_the_arm_is_that_of_a_product_of_matrices():
    for q in poses(50):
        frames = literal_frames(at(*q))
        origins = [frame[:3, 3] for frame in frames]
        assert ur_reacher.arm_points(*q) == pytest.approx(np.array(origins), abs=1e-12)
        assert ur_reacher.tool_position(*q) == pytest.approx(origins[-1][1:], abs=1e-12)


def test_the_tools_velocity_is_the_geometric_jacobians():
    """A joint that turns at 1 rad/s moves the tool by its axis x (tool - joint)."""
    eps = 1e-6
    for q in poses(20):
        frames = literal_frames(at(*q))
        for j in range(2):
            before = frames[j + 1]  # the frame whose z is the axis of joint j + 1
            expected = np.cross(before[:3, 2], frames[-1][:3, 3] - before[:3, 3])[1:]
            forth, back = (ur_reacher.tool_position(*(q + sign * eps * np.eye(2)[j])) for sign in (1, -1))
            assert (np.array(forth) - back) / (2 * eps) == pytest.approx(expected, abs=1e-8)


# ---- reset and observation ---------------------------------------------------------------------------------


def test_an_episode_begins_at_rest_with_a_random_previous_action():
    env, previous = bare(), []
    for seed in range(200):
        obs, _ = env.reset(seed=seed)
        assert obs[:4].tolist() == [-2.4, 1.5, 0, 0]
        assert obs[4:6] == pytest.approx(literal_frames(AT_REST)[-1][1:3, 3] - env.target, abs=1e-12)
        previous.append(obs[6:])
    previous = np.array(previous)
    assert (abs(previous) <= 1).all() and np.ptp(previous, 0).min() > 1.9
    assert previous.mean(0) == pytest.approx([0, 0], abs=0.12)


def test_targets_are_what_a_quarter_of_all_poses_reach():
    """The targets have the distribution of the poses' tools that lie in the box."""
    tools = np.array([literal_frames(at(*q))[-1][1:3, 3] for q in poses(4000)])
    accepted = tools[((tools >= [-0.3, 0.5]) & (tools <= [0.4, 1.0])).all(1)]
    assert len(accepted) / len(tools) == pytest.approx(0.24, abs=0.02)
    env = bare()
    targets = np.array([env.reset()[0] is not None and env.target for _ in range(2000)])
    assert (targets >= [-0.3, 0.5]).all() and (targets <= [0.4, 1.0]).all()
    start = literal_frames(AT_REST)[-1][1:3, 3]
    assert np.linalg.norm(targets - start, axis=1).mean() == pytest.approx(0.24, abs=0.01)
    for quantile in (0.1, 0.3, 0.5, 0.7, 0.9):
        found, expected = (np.quantile(points, quantile, 0) for points in (targets, accepted))
        assert found == pytest.approx(expected, abs=0.05)


def test_the_previous_action_is_observed_as_given_also_through_the_agents_clip():
    env = bare()
    assert env.step(np.array([3.0, -0.25]))[0][6:].tolist() == [3.0, -0.25]
    wrapped = make_env(args_of(ENV_ID, norm_obs=False))
    wrapped.reset(seed=1)
    assert wrapped.step(np.array([3.0, -7.0], np.float32))[0][6:].tolist() == [3.0, -7.0]


# ---- motion ------------------------------------------------------------------------------------------------


def test_a_step_by_hand():
    # the second joint's speed would change by 1 and may change by 2 * 0.04 = 0.08; the first's shrinks alike
    env = bare()
    obs = env.step(np.array([0.5, -2.0]))[0]
    assert obs[2:4] == pytest.approx([0.04, -0.08]) and obs[:2] == pytest.approx([-2.4 + 0.0016, 1.5 - 0.0032])
    env.speed = (0.9, 0.1)
    obs = env.step(np.array([0.95, 0.04]))[0]  # changes of 0.05 and -0.06 are within the limit
    assert obs[2:4] == pytest.approx([0.95, 0.04])


def test_speed_and_acceleration_keep_to_their_limits_and_reach_them():
    env, rng = bare(), np.random.default_rng(2)
    speeds, angles = [np.zeros(2)], [AT_REST[1:3]]
    for _ in range(500):
        obs = env.step(rng.normal(scale=3, size=2))[0]
        angles.append(obs[:2])
        speeds.append(obs[2:4])
    changes = np.abs(np.diff(speeds, axis=0)).max(1)
    assert changes.max() == pytest.approx(0.08) and np.abs(speeds).max() <= 1 + 1e-12
    assert np.diff(angles, axis=0) == pytest.approx(0.04 * np.array(speeds[1:]), abs=1e-12)
    for _ in range(13):  # 1 rad/s at 2 rad/s^2 takes 12.5 steps
        env.speed = env.speed if _ else (0.0, 0.0)
        obs = env.step(np.array([0.0, 9.0]))[0]
    assert obs[3] == pytest.approx(1)


@pytest.mark.parametrize("joint", [0, 1])
@pytest.mark.parametrize("side", [-1, 1])
def test_at_a_limit_a_command_that_leads_outwards_is_turned_inwards(joint, side):
    limit = (LOW if side < 0 else HIGH)[joint]

    def speed_after(q, command):
        env = bare()
        env.q = tuple(np.where(np.arange(2) == joint, q, [-1.5, 0.5]).tolist())
        env.step(np.where(np.arange(2) == joint, command, 0.0))
        return env.speed[joint]

    assert speed_after(limit, 0.05 * side) == pytest.approx(-0.05 * side)
    assert speed_after(limit + 0.1 * side, 0.05 * side) == pytest.approx(-0.05 * side)
    assert speed_after(limit + 0.1 * side, -0.05 * side) == pytest.approx(-0.05 * side)
    assert speed_after(limit - 0.01 * side, 0.05 * side) == pytest.approx(0.05 * side)


def test_a_joint_brakes_at_its_limit_and_comes_back():
    """At full speed, 1 rad/s, it stops within v^2 / 2a = 0.25 rad and what a step of 0.04 s adds at either end."""
    env = bare()
    env.q, angles = (-1.5, 1.0), []
    for _ in range(300):
        angles.append(env.step(np.array([0.0, 1.0]))[0][1])
    beyond = max(angles) - HIGH[1]
    assert 0.2 < beyond < 0.25 + 0.04 + 0.04
    assert min(angles[150:]) < HIGH[1]


# ---- reward and the end ------------------------------------------------------------------------------------


def test_the_reward_is_at_most_5_and_that_on_the_target():
    env, rng = bare(), np.random.default_rng(3)
    tools = ur_reacher.tool_position(*env.q)
    for distance, reward in ((0.0, 5.0), (0.1, 5 * (np.exp(-1) - 0.1)), (0.3, 5 * (np.exp(-9) - 0.3))):
        env.target = tools[0] + 0.6 * distance, tools[1] - 0.8 * distance
        assert env.step(np.zeros(2))[1] == pytest.approx(reward)
    rewards = [env.step(rng.normal(size=2))[1] for _ in range(500)]
    assert max(rewards) <= 5


def test_an_episode_is_truncated_after_100_steps_and_never_terminated():
    env = gym.make(ENV_ID)
    for _ in range(2):
        env.reset(seed=4)
        ends = [env.step(np.array([0.3, -0.2]))[2:4] for _ in range(100)]
        assert ends == [(False, False)] * 99 + [(False, True)]


# ---- as an environment -------------------------------------------------------------------------------------


def test_gymnasiums_checks_pass():
    """It warns of spaces without bounds, which they are on purpose, and of nothing else."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(gym.make(ENV_ID, render_mode="rgb_array").unwrapped)
    texts = [str(warning.message) for warning in caught]
    assert all("infinity" in text or "symmetric and normalized" in text for text in texts), texts
    assert len(texts) == 5


def test_the_seed_alone_decides():
    actions = np.random.default_rng(5).normal(size=(250, 2)).astype(np.float32)
    seen = []
    for seed in (7, 7, 8):
        env = make_env(args_of(ENV_ID))
        env.reset(seed=seed)
        seen.append(play(env, actions))
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.parametrize("steps", [0, 37, 130])
def test_it_goes_on_bit_for_bit_from_a_saved_state(steps):
    actions = np.random.default_rng(6).normal(size=(steps + 250, 2)).astype(np.float32)
    one, two = (make_env(args_of(ENV_ID)) for _ in range(2))
    one.reset(seed=1)
    play(one, actions[:steps])
    assert one.unsaved() is None
    saved = io.BytesIO()
    torch.save(one.get_state(), saved)
    expected = play(one, actions[steps:])
    two.reset(seed=2)
    play(two, actions[:11])
    saved.seek(0)
    two.set_state(torch.load(saved, weights_only=True), seed=0)
    assert play(two, actions[steps:]) == expected


def test_it_makes_at_least_20_000_steps_a_second():
    """The best of several tries, for the machine may be busy."""
    env, actions, fastest = bare(), np.random.default_rng(7).normal(size=(2000, 2)), np.inf
    for _ in range(5):
        start = time.perf_counter()
        for action in actions:
            env.step(action)
        fastest = min(fastest, time.perf_counter() - start)
    assert len(actions) / fastest > 20_000


def colored(picture, color):
    """The rows and columns [n, 2] of the pixels of a color, as HTML writes it."""
    return np.argwhere((picture == [int(color[i : i + 2], 16) for i in (0, 2, 4)]).all(-1))


def test_a_picture_shows_the_tool_and_the_target_where_they_are():
    env = bare(seed=3, render_mode="rgb_array")
    for _ in range(20):
        env.step(np.array([-1.0, 0.5]))
    picture = env.render()
    assert picture.shape == (480, 480, 3) and picture.dtype == np.uint8
    size = ur_reacher.WIDTH / ur_reacher.PIXELS

    def place(color):
        row, column = colored(picture, color).mean(0)
        return ur_reacher.LEFT + (column + 0.5) * size, ur_reacher.BOTTOM + ur_reacher.WIDTH - (row + 0.5) * size

    assert place("D55E00") == pytest.approx(env.target, abs=size)
    assert place("004466") == pytest.approx(literal_frames(at(*env.q))[-1][1:3, 3], abs=size)
    assert bare().render() is None


# ---- with the scripts --------------------------------------------------------------------------------------

FLAGS = f"--env-id {ENV_ID} --state-std --num-steps 128 --num-minibatches 2 --total-timesteps 384".split()


def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    assert run(tmp_path / "whole", "ppo", *FLAGS)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(hesscale_run.Run, "progress", lambda self, step: setattr(self, "signal", signal.SIGTERM))
        assert run(tmp_path / "parts", "ppo", *FLAGS)[0] == hesscale_run.INTERRUPTED
    time.sleep(1.1)  # event files are read in the order of their seconds
    assert run(tmp_path / "parts", "ppo", *FLAGS, "--resume", "auto")[0] == 0
    whole, part = (only_run(tmp_path / name) for name in ("whole", "parts"))
    assert status(part)["resumed_at"] == [128] and outcome(part) == outcome(whole)


def test_every_script_finds_it_from_any_folder(tmp_path):
    """As processes of their own, to which Python gives the script's folder and not the current one."""

    def python(script, *flags):
        command = [sys.executable, ROOT / script, *flags]
        done = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout

    python("scripts/sweep.py", "--agent", "ppo", *FLAGS[:3], "True", *FLAGS[3:], "--local", 1)
    folder = only_run(tmp_path)
    assert status(folder)["state"] == "finished" and os.path.basename(folder).startswith("experiments.ur_reacher-UR-")
    assert ", 100 steps" in python("scripts/evaluate.py", folder, "--episodes", 1)
    shutil.rmtree(folder)
    python("ppo_hesscale.py", *FLAGS)
    assert status(only_run(tmp_path))["state"] == "finished"
