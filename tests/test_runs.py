"""A run can't be lost: kills, signals, full disks, damaged checkpoints and divergence, each seen from outside."""

import argparse
import contextlib
import datetime
import functools
import glob
import io
import itertools
import json
import multiprocessing
import os
import random
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch
import toy_envs
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.summary.writer import event_file_writer
from test_agents import AGENTS, both, scalars

import hesscale_envs
import hesscale_run
from hesscale_envs import ActionNotFinite, EnvironmentFailed, make_env
from hesscale_run import Run
from hesscale_utils import from_plain, parse_args, quiet_end, to_plain

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "WANDB_MODE": "offline"}
# event files of one second are read in the order of these numbers as words, where 10 comes before 9
event_file_writer._global_uid = event_file_writer.AtomicCounter(10**6)
DRIFT = "--env-id toy_envs:Drift-v0 --num-steps 128 --checkpoint-interval 500".split()
QUICK = {"ppo": ["--num-minibatches", "4", "--update-epochs", "2"], "a2c": []}


def with_quick(agent, flags):
    """Add flags that make an update quick, unless the run that is resumed already has them."""
    return [*([] if "--resume" in flags and "auto" not in flags else QUICK[agent]), *flags]


def start(cwd, agent, *flags):
    """Start a script as a process of its own."""
    command = [sys.executable, ROOT / f"{agent}_hesscale.py", *with_quick(agent, flags)]
    pipe = subprocess.PIPE
    return subprocess.Popen([*map(str, command)], cwd=cwd, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True)


def run_process(cwd, agent, *flags):
    """Run a script to its end as a process of its own; return its exit status, output and errors."""
    process = start(cwd, agent, *flags)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def run_script(cwd, script, *flags):
    """Do what `python script flags` does, in this process, which saves the 1.5 seconds of importing torch."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    out.reconfigure = lambda **options: None
    with (
        contextlib.chdir(cwd),
        mock.patch.object(sys, "argv", ["", *map(str, flags)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("default")
        for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", hidden)
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
    if isinstance(status, str):  # as the interpreter does
        err.write(f"{status}\n")
        status = 1
    err.writelines(f"{warning.message}\n" for warning in caught)
    return status, out.getvalue(), err.getvalue()


def run(cwd, agent, *flags):
    """Run an agent's script to its end; return its exit status, output and errors."""
    return run_script(cwd, f"{agent}_hesscale.py", *with_quick(agent, flags))


def only_run(cwd):
    (folder,) = glob.glob(f"{cwd}/runs/*")
    return folder


def status(folder):
    with open(f"{folder}/status.json") as file:
        return json.load(file)


def outcome(folder):
    """What must not depend on interruptions: a run's parameters, its scalars but for the speed, and its return."""
    (path,) = glob.glob(f"{folder}/*_hesscale.pt")
    model = torch.load(path, weights_only=True)
    logged = {tag: values for tag, values in scalars(folder).items() if tag != "charts/SPS"}
    weights = {name: p.tolist() for name, p in model["agent"].items()}
    return weights, repr(model["statistics"]), logged, status(folder)["return"]


def line(err):
    """The only line of a program's errors."""
    (only,) = err.splitlines()
    assert only.startswith("error: "), err
    return only


def wait_for(condition, process):
    end = time.time() + 60
    while not condition():
        if process.poll() is not None or time.time() > end:
            process.kill()  # or communicate would wait for its end
            raise AssertionError(process.communicate())
        time.sleep(0.01)


# ---- killed, and resumed ------------------------------------------------------------------------------------


def kills_survived(tmp_path, agent, env_id, kills, steps):
    """Kill that many runs with SIGKILL at random moments; return how many ended as if they had not been killed."""
    flags = ["--env-id", env_id, "--total-timesteps", steps, "--checkpoint-interval", 4096, "--save-model"]
    (tmp_path / "whole").mkdir()
    begin = time.time()
    assert run_process(tmp_path / "whole", agent, *flags)[0] == 0
    length, expected = time.time() - begin, outcome(only_run(tmp_path / "whole"))
    moments, survived = random.Random(f"{agent} {env_id}"), 0
    while survived < kills:
        cwd = tmp_path / "killed"
        cwd.mkdir()
        begin = time.time()
        process = start(cwd, agent, *flags, "--resume", "auto")
        try:
            process.wait(moments.uniform(0.35, 0.95) * length)
            length = min(length, time.time() - begin)  # the machine has become faster
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        killed = [hesscale_run.read_status(folder) for folder in glob.glob(f"{cwd}/runs/*")]
        if all(s is None or s["state"] == "running" for s in killed):  # else it was faster than the clock
            code, _, err = run_process(cwd, agent, *flags, "--resume", "auto")
            assert code == 0, err
            (folder,) = (f for f in glob.glob(f"{cwd}/runs/*") if status(f)["state"] == "finished")
            assert outcome(folder) == expected, f"after {survived} kills survived, a run did not end as it would have"
            survived += 1
        shutil.rmtree(cwd)
    return survived


@pytest.mark.parametrize("env_id, agent", [("Hopper-v4", "ppo"), ("CartPole-v1", "a2c")])
def test_a_killed_run_goes_on_to_the_same_end(tmp_path, agent, env_id):
    assert kills_survived(tmp_path, agent, env_id, 1, 8192) == 1


@pytest.mark.long
@pytest.mark.parametrize("env_id", ["Hopper-v4", "CartPole-v1"])
@both
def test_thirty_kills(tmp_path, agent, env_id):
    survived = kills_survived(tmp_path, agent, env_id, 30, 40_960)
    print(f"{agent} on {env_id}: {survived} of 30 kills survived with bitwise-equal ends")
    assert survived == 30


@both
@pytest.mark.parametrize(
    "flags",
    [
        "--env-id toy_envs:Drift-v0 --optimizer scaled-adam --num-envs 3 --anneal-lr",
        "--env-id toy_envs:Drift-v0 --optimizer adahessian --no-norm-obs --no-norm-reward --max-grad-norm 0.5",
        "--env-id toy_envs:Counter-v0 --optimizer adahesscale",
        "--env-id toy_envs:Slots-v0 --optimizer adam --num-envs 2",
        "--env-id toy_envs:Drift-v0 --optimizer adahesscale --critic-ggn --betas 0.9 0.9 --desired-kl 0.01",
        "--env-id toy_envs:Drift-v0 --optimizer scaled-adam --delta 1e-3",
        "--env-id toy_envs:Drift-v0 --optimizer adam --reset-step --time-feature --no-orthogonal-init",
        "--env-id Humanoid-v4 --optimizer scaled-adahesscale",
    ],
)
def test_a_run_goes_on_bit_for_bit_from_each_of_its_checkpoints(tmp_path, monkeypatch, agent, flags):
    """In one process: every checkpoint is kept aside, and each one is gone on from."""
    monkeypatch.chdir(tmp_path)
    if agent == "a2c":
        flags = flags.replace("--desired-kl 0.01", "").replace("--reset-step", "")  # PPO's alone
    flags = [*flags.split(), "--num-steps", "64", "--total-timesteps", "1536", "--checkpoint-interval", "384"]
    parse = lambda *more: args_of(agent, *flags, *more)  # noqa: E731
    kept = []
    write = hesscale_run.write_atomically

    def keep(path, content, **options):
        write(path, content, **options)
        if path.endswith("checkpoint.pt"):
            folder = tmp_path / f"kept{len(kept)}"
            shutil.copytree(os.path.dirname(path), folder)
            kept.append(folder)

    monkeypatch.setattr(hesscale_run, "write_atomically", keep)
    AGENTS[agent].main(parse("--save-model"))
    expected = outcome(only_run(tmp_path))
    monkeypatch.setattr(hesscale_run, "write_atomically", write)
    assert [hesscale_run.read_checkpoint(folder)["step"] for folder in kept] == [384, 768, 1152, 1536]
    for folder in kept:
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)
        AGENTS[agent].main(parse("--save-model", "--resume", str(folder)))
        assert outcome(folder) == expected


@pytest.mark.parametrize("agent, env_id", [("ppo", "Drift-v0"), ("a2c", "Drift-v0"), ("ppo", "Sampler-v0")])
def test_evaluations_change_nothing_and_are_the_same_after_a_resume(tmp_path, agent, env_id):
    """On environments that draw from the global generators, and from spaces that are their class's."""
    flags = [*DRIFT, "--env-id", f"toy_envs:{env_id}", "--total-timesteps", 2048, "--checkpoint-interval", 0]
    evaluated = [*flags, "--eval-interval", 1000, "--eval-episodes", 2]
    paths, write = [tmp_path / name for name in ("without", "with", "stopped")], Run.checkpoint
    for path, args in zip(paths, (flags, evaluated, evaluated), strict=True):
        path.mkdir()
        if path.name == "stopped":

            def stop(self, step, get_state):
                self.signal = signal.SIGTERM if step >= 1024 else None
                write(self, step, get_state)

            with mock.patch.object(Run, "checkpoint", stop):
                assert run(path, agent, *args)[0] == hesscale_run.INTERRUPTED
            args = [*args, "--resume", "auto"]
            time.sleep(1)  # as starting a process takes; event files are read in the order of their seconds
        assert run(path, agent, *args)[0] == 0
    plain, whole, resumed = (outcome(only_run(path)) for path in paths)
    assert resumed == whole
    figures = {tag: whole[2].pop(tag) for tag in ("eval/episodic_return", "eval/episodic_length")}
    assert whole == plain
    assert [step for step, _ in figures["eval/episodic_return"]] == [0, 1024, 2048]


@both
def test_several_environments_are_evaluated_as_often(tmp_path, agent):
    flags = [*DRIFT, "--num-envs", 3, "--total-timesteps", 2304, "--eval-interval", 1000, "--eval-episodes", 1]
    assert run(tmp_path, agent, *flags)[0] == 0
    assert [step for step, _ in scalars(only_run(tmp_path))["eval/episodic_return"]] == [0, 1152, 2304]


def test_an_evaluation_has_the_first_environments_statistics(monkeypatch):
    """As a saved model has them, and so scripts/evaluate.py."""
    frozen, env = [], mock.Mock(episode_return=0.0, episode_length=1)
    env.freeze = frozen.append
    monkeypatch.setattr(hesscale_run, "make_env", lambda args: env)
    monkeypatch.setattr(hesscale_run, "play_episode", lambda *args, **options: True)
    envs = [mock.Mock(**{"obs_rms.get_state.return_value": i}) for i in range(2)]
    hesscale_run.evaluate(argparse.Namespace(seed=1, eval_episodes=1), None, envs)
    assert frozen == [{"obs": 0}]


def test_the_speed_is_that_since_the_resume():
    run = Run(argparse.Namespace(total_timesteps=100), "a", {"step": 10**9, "recent_returns": []})
    run.start_time = time.perf_counter() - 10
    assert run.sps(10**9 + 1000) == pytest.approx(100, abs=2)


def test_generators_are_restored_after_environments_that_draw():
    rng, env = np.random.default_rng(0), mock.Mock(set_state=lambda saved, seed: np.random.random(2))
    states = hesscale_run.get_random_states() | {"rng": rng.bit_generator.state}
    checkpoint = {"agent": {}, "optimizers": {}, "envs": ["a"], "random_states": states, "step": 0}
    expected = np.random.random()
    hesscale_run.set_state(checkpoint, torch.nn.Module(), {}, [env], rng, seed=7)
    assert np.random.random() == expected


@pytest.mark.parametrize("env_id", ["toy_envs:Walk-v0", "toy_envs:Walk-v1"])
def test_an_evaluation_plays_the_most_likely_actions_with_frozen_statistics(tmp_path, env_id):
    """The first is that of the agent before it trains, the last that of the agent kept: by plain numpy and gymnasium.

    What a step size of 1e-30 keeps is the agent before it trains; its statistics are then those of one observation.
    """
    env, returns, lengths = gym.make(env_id), [], []
    flags = ["--env-id", env_id, "--num-steps", 64, "--total-timesteps", 640, "--seed", 3]
    flags += ["--eval-interval", 1_000_000, "--eval-episodes", 4, "--learning-rate"]
    for name, step_size in ("untrained", 1e-30), ("trained", 3e-4):
        (tmp_path / name).mkdir()
        code, out, err = run(tmp_path / name, "ppo", *flags, step_size)
        assert code == 0, err
        folder = only_run(tmp_path / name)
        assert f"model saved to runs/{os.path.basename(folder)}/ppo_hesscale.pt" in out
        model = torch.load(f"{folder}/ppo_hesscale.pt", weights_only=True)
        weights = [p.numpy() for name, p in model["agent"].items() if name.startswith("actor.layers.")]
        mean, var = (model["statistics"][0]["obs"][name].numpy() for name in ("mean", "var"))
        if name == "untrained":
            x, count = env.reset(seed=3)[0], 1 + 1e-4  # in which gymnasium counts its mean of 0 and variance of 1
            mean, var = x / count, (1e-4 + x**2 * 1e-4 / count) / count
        returns.append(0.0)
        lengths.append(0)
        for episode in range(4):
            (x, _), done = env.reset(seed=3 + 10_000 + episode), False
            while not done:
                x = np.clip((x - mean) / np.sqrt(var + 1e-8), -10, 10).astype(np.float32)[None]
                for W, b in zip(weights[:-2:2], weights[1:-2:2], strict=True):
                    x = np.tanh(x @ W.T + b)
                output = (x @ weights[-2].T + weights[-1])[0]
                action = 1 + output.argmax() if env_id.endswith("v1") else np.clip(output, -1, 1)
                x, reward, terminated, truncated, _ = env.step(action)
                returns[-1] += reward / 4
                lengths[-1] += 1 / 4
                done = terminated or truncated
    logged = scalars(folder)
    assert logged["eval/episodic_return"] == [
        (s, pytest.approx(r, rel=1e-4)) for s, r in zip((0, 640), returns, strict=True)
    ]
    assert logged["eval/episodic_length"] == [*zip((0, 640), lengths, strict=True)]
    assert abs(returns[1] - returns[0]) > 1e-2 * abs(returns[0])


@pytest.mark.parametrize("version, steps", [(0, 10_000), (1, 12_000)])
def test_an_evaluation_ends_without_a_time_limit_and_not_before_one(tmp_path, version, steps):
    env_id = f"toy_envs:Endless-v{version}"
    flags = ["--env-id", env_id, "--num-steps", 64, "--total-timesteps", 64, "--eval-interval", 64]
    code, out, err = run(tmp_path, "ppo", *flags, "--eval-episodes", 1)
    assert code == 0, err
    assert {length for _, length in scalars(only_run(tmp_path))["eval/episodic_length"]} == {steps}
    note = f"note: --eval-interval: {env_id} has no time limit, and an evaluation's episode 10,000 steps\n"
    assert (note in out) == (version == 0)


def test_a_finished_run_keeps_its_agent_unless_told_not_to(tmp_path):
    assert run(tmp_path, "a2c", *DRIFT, "--total-timesteps", 128, "--no-save-model")[0] == 0
    assert not glob.glob(f"{only_run(tmp_path)}/*.pt")


def args_of(agent, *flags):
    with mock.patch.object(sys, "argv", [f"{agent}_hesscale.py", *QUICK[agent], *flags]):
        return parse_args(AGENTS[agent].Args)


def play(env, actions):
    """Take these actions in a NormalizedEnv, through as many episodes as it takes; return all that was seen."""
    seen = []
    for action in actions:
        obs, reward, terminated, truncated = env.step(action)
        seen += [*obs.tolist(), reward, env.episode_return, env.episode_length, terminated, truncated]
        if terminated or truncated:
            seen += env.reset().tolist()
    return seen


@pytest.mark.parametrize("env_id", "Hopper-v4 HalfCheetah-v4 Ant-v4 Humanoid-v4 CartPole-v1 Pendulum-v1".split())
def test_an_environment_goes_on_where_it_was(env_id):
    args = AGENTS["ppo"].Args(env_id=env_id)
    env, other = make_env(args), make_env(args)
    rng = np.random.default_rng(0)
    actions = rng.integers(2, size=300) if env.discrete else rng.normal(size=(300, env.action_dim)).astype(np.float32)
    env.reset(seed=1)
    other.reset(seed=2)

    play(env, actions[:90])
    play(other, actions[:7])
    assert env.unsaved() is None
    saved = torch.load(_bytes(env.get_state()), weights_only=True)
    expected = play(env, actions[90:])
    other.set_state(saved, seed=0)
    assert play(other, actions[90:]) == expected


def _bytes(state):
    content = io.BytesIO()
    torch.save(state, content)
    content.seek(0)
    return content


def test_plain_data_comes_back_as_it_was():
    values = {"a": [1, 2.5, None, "x", True], "b": (np.float32(1.5), np.arange(6).reshape(2, 3)), "c": {"d": 2**100}}
    back = from_plain(torch.load(_bytes(to_plain(values)), weights_only=True))
    assert back["a"] == values["a"] and back["c"] == values["c"]
    assert type(back["b"][0]) is np.float32 and back["b"][0] == 1.5
    assert back["b"][1].dtype == np.int64 and (back["b"][1] == values["b"][1]).all()
    with pytest.raises(TypeError, match="a object"):
        to_plain([object()])


def test_an_environment_that_cannot_be_saved_says_so_and_begins_a_new_episode(tmp_path):
    flags = "--env-id toy_envs:Opaque-v0 --num-steps 64 --total-timesteps 640 --checkpoint-interval 64".split()
    code, out, _ = run(tmp_path, "a2c", *flags)
    assert code == 0
    assert "note: Opaque.engine is a lock (cannot pickle '_thread.lock' object), which a checkpoint can't hold" in out
    env, other = (make_env(AGENTS["ppo"].Args(env_id="toy_envs:Opaque-v0")) for _ in range(2))
    env.reset(seed=1)
    for _ in range(2):
        env.step(np.zeros(1, np.float32))
    state = env.get_state()
    assert state["layers"] is None
    other.set_state(state, seed=5)  # normalization goes on, the episode does not
    assert other.episode_length == 0 and other.obs_rms.count == env.obs_rms.count + 1
    assert other.discounted_return == env.discounted_return != 0


@pytest.mark.parametrize("env_id", ["Opaque", "Locks"])
def test_what_can_not_be_saved_is_told_once(tmp_path, env_id):
    flags = f"--env-id toy_envs:{env_id}-v0 --num-steps 64 --num-envs 2 --total-timesteps 640 --checkpoint-interval 64"
    code, out, _ = run(tmp_path, "a2c", *flags.split())
    assert code == 0 and out.count(f"note: {env_id}.engine is a lock (cannot pickle '_thread.lock' object), which") == 1


# ---- signals -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Function from an agent to the flags of a run, and how that run ends if nothing interrupts it."""

    @functools.cache
    def flags_and_outcome(agent):
        cwd, flags = tmp_path_factory.mktemp("uninterrupted"), [*DRIFT, "--total-timesteps", 12_800, "--save-model"]
        assert run(cwd, agent, *flags)[0] == 0
        return flags, outcome(only_run(cwd))

    return flags_and_outcome


@pytest.mark.parametrize("agent, name", [("ppo", "SIGTERM"), ("a2c", "SIGINT"), ("a2c", "SIGUSR1")])
def test_a_signal_ends_the_run_with_a_checkpoint(uninterrupted, tmp_path, agent, name):
    flags, expected = uninterrupted(agent)
    process = start(tmp_path, agent, *flags, "--checkpoint-interval", 0)
    wait_for(lambda: glob.glob(f"{tmp_path}/runs/*/status.json"), process)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert process.returncode == hesscale_run.INTERRUPTED == 75, err
    folder = only_run(tmp_path)
    assert f"interrupted by {name} after" in out and f"to go on: --resume runs/{os.path.basename(folder)}" in out
    assert status(folder)["state"] == "interrupted" and 0 < status(folder)["step"] < 12_800
    time.sleep(1)  # as starting a process takes; event files are read in the order of their seconds
    code, out, err = run(tmp_path, agent, *flags, "--resume", "auto")
    assert code == 0, err
    assert outcome(folder) == expected
    assert status(folder)["resumed_at"] and not glob.glob(f"{folder}/checkpoint*")


def test_a_second_sigint_ends_at_once(tmp_path):
    process = start(tmp_path, "ppo", "--env-id", "toy_envs:Slow-v0", "--total-timesteps", 4096)  # 20 s for a rollout
    wait_for(lambda: glob.glob(f"{tmp_path}/runs/*/status.json"), process)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(2) == 130


# ---- how runs end ------------------------------------------------------------------------------------------


def test_status_tells_what_was_run_and_how_it_ended(tmp_path):
    assert run(tmp_path, "ppo", *DRIFT, "--total-timesteps", 1280, "--optimizer", "adam")[0] == 0
    s = status(only_run(tmp_path))
    assert (s["state"], s["script"], s["step"], s["total_timesteps"]) == ("finished", "ppo_hesscale.py", 1280, 1280)
    assert s["args"]["optimizer"] == "adam" and s["args"]["learning_rate"] == AGENTS["ppo"].LEARNING_RATES["adam"]
    assert s["versions"]["torch"] == torch.__version__
    assert s["commit"] is None or len(s["commit"].rstrip("+")) == 40
    returns = [value for _, value in scalars(only_run(tmp_path))["charts/episodic_return"]]
    assert s["return"] == pytest.approx(np.mean(returns[-50:]), rel=1e-6)
    assert s["start"] <= s["updated"] <= s["end"]


def test_a_killed_run_is_known_by_its_lock(tmp_path):
    process = start(tmp_path, "ppo", "--env-id", "toy_envs:Slow-v0", "--total-timesteps", 4096)
    wait_for(lambda: glob.glob(f"{tmp_path}/runs/*/status.json"), process)
    folder = only_run(tmp_path)
    assert hesscale_run.lock(folder) is None
    process.kill()
    process.wait()
    assert status(folder)["state"] == "running"
    assert hesscale_run.lock(folder) is not None


@both
@pytest.mark.parametrize(
    "run, flags, quantity",
    [
        (run, "--env-id Hopper-v4 --learning-rate 1e6", "not finite"),
        (run, "--env-id toy_envs:Shapes-v0 --learning-rate 1e38", "not finite"),  # it raises on such actions
        (run_process, "--env-id Hopper-v4 --learning-rate 1e30", "not finite"),
    ],
)
def test_divergence_is_an_outcome(tmp_path, agent, run, flags, quantity):
    flags = [*flags.split(), "--optimizer", "adam", "--num-steps", 256, "--total-timesteps", 5120]
    code, _, err = run(tmp_path, agent, *flags)
    assert code == hesscale_run.DIVERGED == 3
    assert "adam with" in line(err) and quantity in line(err)
    folder = only_run(tmp_path)
    s = status(folder)
    assert s["state"] == "diverged" and line(err) == f"error: {s['message']}" and s["end"]
    assert scalars(folder)["charts/episodic_return"]
    assert any(b"diverged" in path.read_bytes() for path in Path(folder).glob("events*"))
    code, _, err = run_script(tmp_path, f"{agent}_hesscale.py", "--resume", folder)
    assert code == 1 and "is diverged, so there is nothing to go on with" in line(err)


@both
@pytest.mark.parametrize("where", ["actor.layers.0.weight", "critic.layers.2.bias", "actor.log_std"])
def test_a_parameter_that_is_not_finite_ends_the_run_at_the_next_update(tmp_path, monkeypatch, agent, where):
    monkeypatch.chdir(tmp_path)
    made = []
    init = AGENTS[agent].Agent.__init__

    def keep(self, *args):
        init(self, *args)
        made.append(self)

    def plant(run, step):
        if step >= 512:
            with torch.no_grad():
                dict(made[0].named_parameters())[where].view(-1)[0] = float("nan")

    monkeypatch.setattr(AGENTS[agent].Agent, "__init__", keep)
    monkeypatch.setattr(hesscale_run.Run, "progress", plant)
    args = args_of(agent, *DRIFT, "--total-timesteps", "12800", "--num-steps", "512", "--optimizer", "adam")
    with pytest.raises(SystemExit) as end:
        AGENTS[agent].main(args)
    assert end.value.code == hesscale_run.DIVERGED
    s = status(only_run(tmp_path))
    assert s["state"] == "diverged" and "parameters not finite" in s["message"] and s["step"] < 4000


@both
def test_an_environment_that_raises_ends_the_run_in_one_line(tmp_path, agent):
    flags = "--env-id toy_envs:Raises-v0 --num-steps 64 --total-timesteps 640 --checkpoint-interval 64".split()
    code, _, err = run(tmp_path, agent, *flags)
    assert code == 1
    expected = "error: --env-id toy_envs:Raises-v0: the environment raised in step: RuntimeError('the simulator is"
    assert line(err).startswith(expected) and "to go on: --resume" in line(err)
    assert status(only_run(tmp_path))["state"] == "failed"


def run_of(total_timesteps=100):
    """A Run in the current folder, as ppo_hesscale.py makes it."""
    args = AGENTS["ppo"].Args(env_id="toy_envs:Drift-v0", learning_rate=1e-3, total_timesteps=total_timesteps)
    return Run(args, "a_run")


def test_without_an_interval_no_checkpoint_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with run_of() as run:
        run.args.checkpoint_interval = 0
        run.checkpoint(10**6, dict)
        assert not os.path.exists("runs/a_run/checkpoint.pt")


def test_only_a_second_ctrl_c_ends_at_once(tmp_path, monkeypatch):
    """SLURM may send its warning again, and SIGTERM after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail(f"it has ended at once, with status {code}"))
    with pytest.raises(SystemExit) as end, run_of() as run:
        for signum in signal.SIGUSR1, signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM:
            os.kill(os.getpid(), signum)
        run.checkpoint(50, dict)
    assert end.value.code == hesscale_run.INTERRUPTED and status("runs/a_run")["state"] == "interrupted"
    assert hesscale_run.read_checkpoint("runs/a_run")["step"] == 50


def test_a_closed_terminal_ends_no_run_that_nohup_has_started():
    lines = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); import hesscale_run as run"
    command = [sys.executable, "-c", f"{lines}; print(signal.SIGHUP in run.SIGNALS, signal.SIGTERM in run.SIGNALS)"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out == "False True\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system forks no processes")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_process_that_the_environment_forks_ends_by_sigterm_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with run_of() as run:
        for patient in [True] + 100 * [False]:
            process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            process.start()
            if patient:
                for signum in signal.SIGINT, signal.SIGUSR1, signal.SIGHUP:
                    os.kill(process.pid, signum)
                process.join(0.3)
                assert process.is_alive()
            process.terminate()  # perhaps before it has begun
            process.join(10)
            assert process.exitcode == -signal.SIGTERM
        assert run.signal is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert run.signal == signal.SIGTERM


def test_episodes_that_could_not_be_saved_begin_with_other_seeds_than_the_run():
    seeds, rng = [], np.random.default_rng(0)
    env = mock.Mock(set_state=lambda saved, seed: seeds.append((saved, seed)) or np.zeros(2))
    states = hesscale_run.get_random_states() | {"rng": rng.bit_generator.state}
    checkpoint = {"agent": {}, "optimizers": {}, "envs": ["a", "b"], "random_states": states, "step": 1000}
    hesscale_run.set_state(checkpoint, torch.nn.Module(), {}, [env, env], rng, seed=7)
    assert seeds == [("a", 1007), ("b", 1008)]


def hooks():
    """Everything global that a run changes while it is under way."""
    return [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)], threading.excepthook


@pytest.mark.parametrize(
    "error, state, message, raised",
    [
        (None, "finished", "", None),
        (FloatingPointError("the loss"), "diverged", "the loss", (SystemExit, 3)),
        (
            ActionNotFinite("in step"),
            "diverged",
            "scaled-adahesscale with step size 0.001: actions not finite after 60,000 steps",
            (SystemExit, 3),
        ),
        (EnvironmentFailed("in\nstep"), "failed", "--env-id toy_envs:Drift-v0: in\nstep", (SystemExit, "in step")),
        (OSError("no space"), "failed", "no space; what was written before stays", (SystemExit, "no space; what")),
        (ValueError("a bug"), "failed", "ValueError: a bug", (ValueError, None)),
        (KeyboardInterrupt(), "failed", "KeyboardInterrupt: ", (KeyboardInterrupt, None)),
        (SystemExit("error: bad"), "failed", "bad", (SystemExit, "error: bad")),
        (SystemExit(7), "failed", "SystemExit: 7", (SystemExit, 7)),
    ],
)
def test_a_run_ends_in_the_state_that_its_exception_means(tmp_path, monkeypatch, capsys, error, state, message, raised):
    monkeypatch.chdir(tmp_path)
    before = hooks()
    with pytest.raises(raised[0]) if raised else contextlib.nullcontext() as caught, run_of() as run:
        assert all(old != new for old, new in zip(before[0] + [before[1]], hooks()[0] + [hooks()[1]], strict=True))
        s = status(run.folder)
        assert (s["state"], s["pid"], s["host"]) == ("running", os.getpid(), socket.gethostname())
        assert hesscale_run.lock(run.folder) is None
        run.checkpoint(50_000, dict)
        run.log(60_000, {"charts/some": 1.0})
        if error is not None:
            raise error
    assert hooks() == before
    assert hesscale_run.lock("runs/a_run") is not None
    s = status("runs/a_run")
    assert (s["state"], s["message"], s["step"]) == (state, message, 60_000) and s["end"]
    assert scalars("runs/a_run")["charts/some"] == [(60_000, 1.0)]
    assert os.path.exists("runs/a_run/checkpoint.pt") == (state != "finished")
    out, err = capsys.readouterr()
    if state == "finished":
        assert "\n60,000 steps at " in out and out.endswith("; no episode has ended\n")
    elif state == "diverged":
        assert caught.value.code == 3 and err == f"error: {message}\n"
    elif raised[0] is SystemExit and isinstance(raised[1], str):
        assert raised[1] in caught.value.code and "\n" not in caught.value.code
        assert caught.value.code.endswith("; to go on: --resume runs/a_run")
    else:
        assert caught.value is error


def test_a_signal_writes_a_checkpoint_and_ends_the_run_as_interrupted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = hooks()
    with pytest.raises(SystemExit) as end, run_of() as run:
        run.checkpoint(1, dict)
        assert not glob.glob("runs/a_run/checkpoint*")
        os.kill(os.getpid(), signal.SIGUSR1)
        run.checkpoint(2, dict)
        pytest.fail("the run went on")
    assert end.value.code == hesscale_run.INTERRUPTED and hooks() == before
    assert (status("runs/a_run")["state"], status("runs/a_run")["message"]) == ("interrupted", "by SIGUSR1")
    assert hesscale_run.read_checkpoint("runs/a_run")["step"] == 2
    assert "interrupted by SIGUSR1 after 2 of 100 steps; to go on: --resume runs/a_run" in capsys.readouterr().out


def test_a_run_whose_end_can_not_be_written_has_failed_and_keeps_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write = hesscale_run.write_atomically

    def full_disk(path, content, **options):
        if b'"finished"' in content:
            raise OSError("no space")
        write(path, content, **options)

    monkeypatch.setattr(hesscale_run, "write_atomically", full_disk)
    with pytest.raises(SystemExit, match="no space"), run_of() as run:
        run.checkpoint(50_000, dict)
    assert status("runs/a_run")["state"] == "failed" and os.path.exists("runs/a_run/checkpoint.pt")


def test_a_run_that_can_not_begin_leaves_no_handlers_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = hooks()
    monkeypatch.setattr(hesscale_run, "write_atomically", mock.Mock(side_effect=OSError("no space")))
    with pytest.raises(SystemExit, match="no space; what was written before stays"), run_of():
        pytest.fail("the run began")
    assert hooks() == before
    assert hesscale_run.lock("runs/a_run") is not None


def test_a_reader_that_goes_away_ends_no_run(tmp_path):
    """Ctrl-C on `python ppo_hesscale.py | tee log` ends tee, too."""
    process = start(
        tmp_path, "ppo", *DRIFT, "--env-id", "toy_envs:Slow-v0", "--total-timesteps", 10**6, "--checkpoint-interval", 1
    )
    process.stdout.close()
    process.stderr.close()
    wait_for(lambda: glob.glob(f"{tmp_path}/runs/*/checkpoint.pt"), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == hesscale_run.INTERRUPTED
    s = status(only_run(tmp_path))
    assert (s["state"], s["message"]) == ("interrupted", "by SIGINT")
    assert hesscale_run.read_checkpoint(only_run(tmp_path))["step"] == s["step"]


@pytest.mark.parametrize("out", [">/dev/full", ">&-", "2>&-", "2>/dev/full", "| head -c 10 >/dev/null", ">out.txt"])
def test_a_run_finishes_whatever_becomes_of_its_output(tmp_path, out):
    """In ASCII, too, which lacks letters of the folder's name, and with a warning, which --gamma 1 makes."""
    command = [sys.executable, ROOT / "ppo_hesscale.py", *with_quick("ppo", DRIFT), "--total-timesteps", 256]
    command = shlex.join(map(str, [*command, "--gamma", 1, "--exp-name", "d\u00e9j\u00e0", "--resume", "auto"]))
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(f"{command} {out}", shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert status(only_run(tmp_path))["state"] == "finished"


def test_a_signal_while_nobody_reads_the_output_ends_the_run_with_a_checkpoint(tmp_path):
    """It comes in the midst of a print, which goes on when somebody reads again."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(1024))
    os.set_blocking(writing, True)
    command = [sys.executable, ROOT / "a2c_hesscale.py", *DRIFT, "--total-timesteps", 10**6]
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONUNBUFFERED"}
    options = dict(cwd=tmp_path, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([*map(str, command)], **options)
    os.close(writing)
    wait_for(lambda: glob.glob(f"{tmp_path}/runs/*/status.json"), process)
    time.sleep(0.5)  # the first line is printed next
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    with open(reading, "rb") as output:
        text = output.read().decode()
    err = process.communicate(timeout=60)[1]
    assert process.returncode == hesscale_run.INTERRUPTED and "Traceback" not in err, err
    assert "interrupted by SIGTERM" in text and status(only_run(tmp_path))["state"] == "interrupted"


def test_an_interrupt_before_the_run_has_begun_is_no_traceback(tmp_path):
    process = start(tmp_path, "a2c", "--env-id", "toy_envs:Waits-v0")
    wait_for(lambda: glob.glob(f"{tmp_path}/waiting"), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "") and not glob.glob(f"{tmp_path}/runs")


@both
def test_an_agent_trains_in_another_thread(tmp_path, monkeypatch, agent):
    """Where a program may set no signal handlers."""
    monkeypatch.chdir(tmp_path)
    before, args = hooks(), args_of(agent, *DRIFT, "--total-timesteps", "256")
    thread = threading.Thread(target=AGENTS[agent].main, args=[args])
    thread.start()
    thread.join()
    assert status(only_run("."))["state"] == "finished" and hooks() == before


@pytest.mark.parametrize("threads", [None, 2])
def test_threads_are_one_unless_the_environment_says_otherwise(threads):
    """Whatever is imported first."""
    program = """if True:
        import numpy, scipy.linalg, torch, threadpoolctl
        from hesscale_utils import limit_threads
        limit_threads()
        limit_threads()
        print({pool["num_threads"] for pool in threadpoolctl.threadpool_info()} | {torch.get_num_threads()})
    """
    environment = {key: value for key, value in ENVIRONMENT.items() if not key.endswith("_NUM_THREADS")}
    environment |= {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", program]
    assert subprocess.check_output(command, cwd=ROOT, env=environment, text=True).strip() == f"{{{threads or 1}}}"


# ---- resuming what can't be resumed ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The folder of a run that was killed after its second checkpoint, and how the run would have ended."""
    cwd, killed = tmp_path_factory.mktemp("interrupted"), []
    write = Run.write_status

    def keep(run, **changes):
        write(run, **changes)
        if not killed and os.path.exists(f"{run.folder}/checkpoint_previous.pt"):
            killed.append(shutil.copytree(run.folder, cwd / "killed" / os.path.basename(run.folder)))

    with mock.patch.object(Run, "write_status", keep):
        assert run(cwd, "ppo", *DRIFT, "--total-timesteps", 3840, "--save-model")[0] == 0
    assert status(killed[0])["state"] == "running" and status(killed[0])["step"] < 3840
    return killed[0], outcome(only_run(cwd))


@pytest.fixture
def folder(interrupted, tmp_path):
    os.makedirs(tmp_path / "runs")
    return shutil.copytree(interrupted[0], tmp_path / "runs" / "copy")


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_checkpoint_leaves_the_previous_one(interrupted, folder, tmp_path, seed):
    path = folder / "checkpoint.pt"
    content, rng = bytearray(path.read_bytes()), random.Random(seed)
    if seed % 2:
        content[rng.randrange(len(content) // 4)] ^= 0xFF  # in the pickle or in the first tensors
    else:
        content = content[: rng.randrange(len(content))]
    path.write_bytes(content)
    code, _, err = run(tmp_path, "ppo", "--resume", folder)
    assert code == 0, err
    assert err.startswith("warning: checkpoint.pt is damaged (") and len(err.splitlines()) == 1
    assert outcome(folder) == interrupted[1]


def test_two_damaged_checkpoints_are_one_line(folder, tmp_path):
    for path in folder.glob("checkpoint*.pt"):
        path.write_bytes(path.read_bytes()[:5000])
    code, _, err = run(tmp_path, "ppo", "--resume", folder)
    assert code == 1
    assert "checkpoint.pt is damaged" in line(err) and "checkpoint_previous.pt is damaged" in line(err)


@pytest.mark.parametrize(
    "agent, flags, message",
    [
        ("a2c", "", "is a run of ppo_hesscale.py; go on with that instead of a2c_hesscale.py"),
        ("ppo", "--env-id Ant-v4", "--env-id Ant-v4: the run in runs/copy has toy_envs:Drift-v0; leave the flag out"),
        ("ppo", "--learning-rate 0.5", "--learning-rate 0.5: the run in runs/copy has 0.1"),
        ("ppo", "--num-steps 2048", "--num-steps 2048: the run in runs/copy has 128"),  # the default, and yet given
        ("ppo", "--num_steps=2048", "--num-steps 2048: the run in runs/copy has 128"),
        ("ppo", "--anneal-lr", "--anneal-lr True: the run in runs/copy has False"),
        ("ppo", "--checkpoint-interval -1", "--checkpoint-interval -1: must be at least 0"),
    ],
)
def test_a_run_goes_on_only_as_what_it_was(folder, tmp_path, agent, flags, message):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, out, err = run(tmp_path, agent, "--resume", "runs/copy", *flags.split())
    assert code == 1 and out == ""
    assert message in line(err)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda folder: (folder / "status.json").write_text("{"), "has no readable status.json"),
        (lambda folder: (folder / "status.json").unlink(), "has no readable status.json"),
        (lambda folder: _status(folder, args=None), "has no readable status.json"),
        (lambda folder: _status(folder, step="x"), "has no readable status.json"),
        (
            lambda folder: [p.unlink() for p in folder.glob("checkpoint*")],
            "there is no checkpoint; move that folder away",
        ),
        (lambda folder: shutil.rmtree(folder), "is not a run's folder"),
        (lambda folder: _edit(folder, format=99), "in format 99, this one reads format 3; use that commit"),
        (
            lambda folder: _edit(folder, args=_checkpoint(folder)["args"] | {"fisher": True}),
            "--resume runs/copy: its run has --fisher, which is no more; use commit",
        ),
    ],
)
def test_a_folder_that_is_no_run(folder, tmp_path, change, message):
    change(folder)
    code, _, err = run(tmp_path, "ppo", "--resume", "runs/copy")
    assert code == 1
    assert message in line(err)


def _checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def _status(folder, **changes):
    (folder / "status.json").write_text(json.dumps(status(folder) | changes))


def _edit(folder, **changes):
    torch.save(_checkpoint(folder) | changes, folder / "checkpoint.pt")


def test_the_folder_that_a_command_is_given_in_is_named_by_a_dot(folder, tmp_path, monkeypatch):
    code, _, err = run(folder, "ppo", "--resume", "")
    assert code == 1 and "--resume '': is not a run's folder" in line(err)
    started = {}
    monkeypatch.setitem(sys.modules, "wandb", mock.Mock(init=lambda **given: started.update(given)))
    started_in = hesscale_run.Run.__new__(hesscale_run.Run)
    started_in.args, started_in.folder, started_in.path = args_of("ppo"), ".", str(folder)  # as _open makes them
    started_in._start_wandb()
    assert started["name"] == started["id"] == folder.name


def test_another_version_is_warned_of(folder, tmp_path):
    s = status(folder)
    s["versions"]["mujoco"] = "2.3.7"
    (folder / "status.json").write_text(json.dumps(s))
    code, _, err = run(tmp_path, "ppo", "--resume", "runs/copy")
    assert code == 0
    assert "warning: mujoco was 2.3.7" in err


def test_a_run_under_way_is_left_alone(folder, tmp_path):
    held = hesscale_run.lock(folder)
    code, _, err = run(tmp_path, "ppo", "--resume", "runs/copy")
    assert code == 1 and "is under way in another process" in line(err)
    held.release()


def test_auto_begins_no_second_run_beside_one_that_has_no_checkpoint_yet(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = AGENTS["ppo"].Args(env_id="toy_envs:Drift-v0", learning_rate=1e-3, resume="auto")
    name = hesscale_run.folders_like(args)[len("runs/") : -1].replace("?", "-")
    with Run(args, f"{name}123"):
        with pytest.raises(SystemExit, match=r"--resume auto: runs/.* is under way in another process"):
            hesscale_run.load_checkpoint(args, {})
        assert hesscale_run.load_checkpoint(replace(args, seed=2), {}) is None
    status_file = Path(f"runs/{name}123/status.json")
    status_file.write_text(json.dumps(status(status_file.parent) | {"state": "running"}))  # killed before its first
    assert hesscale_run.load_checkpoint(args, {}) is None


def test_a_run_that_is_only_looked_at_goes_on(folder, tmp_path):
    """Who looks whether a run is alive holds its lock for a moment."""
    held = hesscale_run.lock(folder)
    threading.Timer(0.5, held.release).start()
    assert run(tmp_path, "ppo", "--resume", "runs/copy")[0] == 0


@pytest.mark.parametrize("state", ["finished", "diverged"])
def test_a_run_that_another_process_has_ended_meanwhile_stays_ended(folder, tmp_path, state):
    def lock(path, timeout):  # the other has ended between the reading of the checkpoint and this
        s = status(folder)
        (folder / "status.json").write_text(json.dumps(s | {"state": state}))
        return take(path, timeout)

    take = hesscale_run.lock
    with mock.patch.object(hesscale_run, "lock", lock):
        code, _, err = run(tmp_path, "ppo", "--resume", "runs/copy")
    assert code == 1 and f"--resume runs/copy: the run is {state}, so there is nothing to go on with" in line(err)
    assert status(folder)["state"] == state and take(folder) is not None


@pytest.mark.parametrize("flag", ["--no-track", "--track=False", "--no_track", "--track no"])
def test_a_run_with_wandb_can_go_on_without(folder, tmp_path, flag):
    _edit(folder, args=_checkpoint(folder)["args"] | {"track": True})
    with mock.patch.object(Run, "_start_wandb", side_effect=AssertionError("it was started")):
        code, _, err = run(tmp_path, "ppo", "--resume", "runs/copy", *flag.split())
        assert code == 0 and not status(folder)["args"]["track"], err


@both
def test_an_environment_that_seeds_the_generators_does_not_seed_the_agent(tmp_path, agent):
    """The step size is so small that the weights are the initial ones."""
    models = []
    for seed in (1, 2):
        (tmp_path / f"{seed}").mkdir()
        flags = ["--env-id", "toy_envs:Meddles-v0", "--optimizer", "adam", "--learning-rate", 1e-30, "--save-model"]
        code, _, err = run(
            tmp_path / f"{seed}", agent, *flags, "--num-steps", 8, "--total-timesteps", 8, "--seed", seed
        )
        assert code == 0, err
        (model,) = Path(only_run(tmp_path / f"{seed}")).glob("*.pt")
        models.append(torch.load(model, weights_only=True)["agent"])
    assert all((models[0][name] != models[1][name]).any() for name in models[0] if name.endswith(".weight"))


def test_an_environment_that_draws_from_the_generators_plays_the_same_each_time(tmp_path):
    flags = ["--env-id", "toy_envs:Meddles-v0", "--env-kwargs", "seeds=False", "--total-timesteps", 5, "--save-model"]
    assert run(tmp_path, "a2c", *flags)[0] == 0
    played = [evaluate(tmp_path, only_run(tmp_path), "--episodes", 2)[1] for _ in range(2)]
    assert played[0] == played[1] and "2 episodes" in played[0]


def test_a_run_that_fails_does_not_wait_for_its_environments_threads(tmp_path):
    process = start(tmp_path, "a2c", "--env-id", "toy_envs:Meddles-v0", "--env-kwargs", "fails=True")
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1 and "the environment raised in step: RuntimeError('it fails')" in err


def test_short_memory_is_one_line(capsys):
    message = r"^error: out of memory: Unable to allocate 376\. GiB; give smaller numbers"
    with pytest.raises(SystemExit, match=message), quiet_end():
        raise MemoryError("Unable to allocate 376. GiB")


def test_auto_takes_the_newest_run_with_the_same_arguments(interrupted, tmp_path):
    name = Path(interrupted[0]).name  # by which such runs are looked for
    folder = shutil.copytree(interrupted[0], tmp_path / "runs" / name)
    older = shutil.copytree(folder, tmp_path / "runs" / f"{name}_1")
    s = status(older)
    start = datetime.datetime.fromisoformat(s["start"]) - datetime.timedelta(seconds=5)
    start = start.astimezone(datetime.timezone(datetime.timedelta(hours=9)))  # later by its letters
    (older / "status.json").write_text(json.dumps(s | {"start": start.isoformat()}))
    code, out, _ = run(tmp_path, "ppo", *DRIFT, "--total-timesteps", 3840, "--seed", 2, "--resume", "auto")
    assert code == 0 and "no such run to go on with, so this is a new one" in out
    code, out, _ = run(tmp_path, "ppo", *DRIFT, "--total-timesteps", 3840, "--resume", "auto")
    assert code == 0 and status(folder)["state"] == "finished" and status(older)["state"] == "running"


# ---- disks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["4k", "24k", "400k"])
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, size):
    """At the start; while logging; while writing a checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        flags = ["--total-timesteps", 61_440, "--checkpoint-interval", 4096, "--env-id", "CartPole-v1"]
        code, _, err = run_process(disk, "ppo", *flags, "--save-model")
        assert code == 1
        assert "No space left on device" in line(err)
        assert not list(disk.glob("runs/*/*.tmp"))  # which would take the room that the user makes
        if size == "400k":
            folder = only_run(disk)
            assert f"to go on: --resume runs/{os.path.basename(folder)}" in line(err)
            shutil.copytree(disk / "runs", tmp_path / "runs")
            code, _, err = run_process(tmp_path, "ppo", *flags, "--resume", "auto")
            assert code == 0, err
            assert status(only_run(tmp_path))["resumed_at"] > [0]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_can_not_be_made(tmp_path):
    (tmp_path / "runs").write_text("a file")
    code, _, err = run(tmp_path, "a2c", *DRIFT, "--total-timesteps", 1280)
    assert code == 1 and "the run folder can't be made" in line(err)


@pytest.mark.long
def test_wandb_out_of_reach(tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "WANDB_MODE", "online")
    monkeypatch.setitem(ENVIRONMENT, "WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setitem(ENVIRONMENT, "WANDB_API_KEY", "0" * 40)
    code, _, err = run_process(tmp_path, "a2c", *DRIFT, "--total-timesteps", 1280, "--track")
    assert code == 1
    (error,) = [text for text in err.splitlines() if text.startswith("error: ")]
    assert "--track: W&B can't be used" in error and "WANDB_MODE=offline" in error
    assert not os.listdir(tmp_path / "runs")


# ---- saved models ------------------------------------------------------------------------------------------


def evaluate(cwd, *flags):
    """Run scripts/evaluate.py to its end; return its exit status, output and errors."""
    return run_script(cwd, "scripts/evaluate.py", *flags)


def evaluate_process(cwd, *flags, **environment):
    command = [sys.executable, ROOT / "scripts/evaluate.py", *flags]
    environment = ENVIRONMENT | environment
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_the_agent_in_the_repository_walks(tmp_path):
    status, stdout, stderr = evaluate(tmp_path, ROOT / "agents/walker2d.pt", "--episodes", "2")
    assert status == 0, stderr
    assert float(re.search(r"return (\S+) ±", stdout)[1]) > 2000 and "Walker2d-v4" in stdout


@both
@pytest.mark.parametrize("env_id", ["Hopper-v4", "CartPole-v1"])
def test_a_loaded_agent_acts_as_the_saved_one(tmp_path, monkeypatch, agent, env_id):
    monkeypatch.chdir(tmp_path)
    made, envs = [], []
    init = AGENTS[agent].Agent.__init__
    monkeypatch.setattr(AGENTS[agent].Agent, "__init__", lambda self, *args: (init(self, *args), made.append(self))[0])
    monkeypatch.setattr(hesscale_envs, "make_env", lambda *args: envs.append(make_env(*args)) or envs[-1])
    flags = ["--env-id", env_id, "--num-steps", "64", "--total-timesteps", "640", "--save-model"]
    AGENTS[agent].main(args_of(agent, *flags))
    model = hesscale_run.load_model(only_run(tmp_path))
    loaded = AGENTS[agent].Agent(envs[0].obs_dim, envs[0].action_dim, envs[0].discrete, model["state_std"])
    loaded.load_state_dict(model["agent"])
    env = make_env(AGENTS[agent].Args(env_id=env_id))
    env.freeze(model["statistics"][0])
    for raw in np.random.default_rng(0).normal(size=(20, env.obs_dim)):
        expected = (raw - envs[0].obs_rms.mean) / np.sqrt(envs[0].obs_rms.var + 1e-8)
        expected = np.float32(np.clip(expected, -10, 10))
        obs = env._normalize(raw)
        assert (obs == expected).all()  # and so the statistics have not moved
        assert (loaded.actor(obs[None]) == made[0].actor(expected[None])).all()


def test_evaluation_prints_mean_and_deviation_the_same_each_time(tmp_path):
    flags = "--env-id toy_envs:Counter-v0 --num-steps 64 --total-timesteps 1280 --optimizer adam --save-model".split()
    assert run(tmp_path, "ppo", *flags)[0] == 0
    folder = only_run(tmp_path)
    code, out, err = evaluate(tmp_path, folder, "--episodes", 4, "--sample")
    assert code == 0, err
    *episodes, last = out.splitlines()
    returns = [float(text.split()[3].rstrip(",")) for text in episodes]
    assert len(returns) == 4 and all(50 <= r <= 70 for r in returns)  # ten steps of 5, 6 or 7
    assert f"4 episodes, sampled actions: return {np.mean(returns):.1f} ± {np.std(returns):.1f}, 10 steps" in last
    assert evaluate_process(tmp_path, folder, "--episodes", 4, "--sample")[1] == out
    _, out, _ = evaluate(tmp_path, glob.glob(f"{folder}/ppo_hesscale.pt")[0], "--episodes", 2)
    assert "2 episodes, most likely actions: return" in out and "± 0.0" in out


def test_a_checkpoint_can_be_evaluated(interrupted):
    code, out, err = evaluate(os.path.dirname(interrupted[0]), interrupted[0], "--episodes", 2)
    assert code == 0 and "toy_envs:Drift-v0, 2 episodes" in out, err


def test_an_agent_that_observes_the_time_is_evaluated_with_it(tmp_path, monkeypatch):
    assert run(tmp_path, "ppo", *DRIFT, "--total-timesteps", 1280, "--time-feature")[0] == 0
    model = hesscale_run.load_model(only_run(tmp_path))
    assert model["time_feature"] is True and model["agent"]["actor.layers.0.weight"].shape == (64, 3)
    code, out, err = evaluate(tmp_path, only_run(tmp_path), "--episodes", 2)
    assert code == 0 and "toy_envs:Drift-v0, 2 episodes, most likely actions" in out, err
    code, out, err = evaluate(tmp_path, only_run(tmp_path), "--env-id", "toy_envs:Raises-v0")
    assert code == 1 and "--time-feature: toy_envs:Raises-v0 has no time limit (max_episode_steps)" in line(err)


def test_an_agent_with_a_state_dependent_deviation_can_be_evaluated(tmp_path):
    assert run(tmp_path, "a2c", *DRIFT, "--total-timesteps", 1280, "--state-std")[0] == 0
    assert hesscale_run.load_model(only_run(tmp_path))["state_std"] is True
    for flags in ([], ["--sample"]):
        code, out, err = evaluate(tmp_path, only_run(tmp_path), "--episodes", 2, *flags)
        assert code == 0 and "toy_envs:Drift-v0, 2 episodes" in out, err
    code, _, err = evaluate(tmp_path, only_run(tmp_path), "--env-id", "CartPole-v1")
    assert code == 1 and "trained on observations [2] and actions [1]" in line(err)


@pytest.mark.parametrize("source", ["model", "checkpoint"])
def test_a_model_of_another_format_is_one_line(interrupted, tmp_path, source):
    folder = shutil.copytree(interrupted[0], tmp_path / "run")
    if source == "checkpoint":
        _edit(folder, format=1)
    else:
        torch.save({"env_id": "Hopper-v4", "norm_obs": True, "agent": {}, "statistics": []}, folder / "ppo_hesscale.pt")
    code, _, err = evaluate(tmp_path, folder)
    assert code == 1 and "run: is in format 1, this commit reads format 3" in line(err)


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            "--env-id CartPole-v1",
            "--env-id CartPole-v1 has observations [4] and 2 choices, but the agent was trained on ",
        ),
        ("--env-id CartPole-v1", "trained on observations [2] and actions [1]"),
        ("--episodes 0", "--episodes 0: must be at least 1"),
        ("--seed -1", "--seed -1: must be in [0, 2^32)"),
        ("--episode 3", "Unrecognized options: --episode"),
    ],
)
def test_bad_input_to_an_evaluation_is_one_line(interrupted, tmp_path, flags, message):
    code, out, err = evaluate(tmp_path, interrupted[0], *flags.split())
    assert code == 1 and out == "" and message in line(err)


def test_what_is_no_model_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("no model")
    (tmp_path / "checkpoint.pt").write_text("no model either")
    for path, message in [
        ("none", "no such file"),
        ("empty", "neither a saved model"),
        ("text.pt", "not a saved model"),
        ("checkpoint.pt", "is a checkpoint; give the folder of its run"),
    ]:
        code, _, err = evaluate(tmp_path, path)
        assert code == 1 and message in line(err)


def test_a_video_or_a_line_that_says_why_not(tmp_path):
    flags = "--env-id InvertedPendulum-v4 --num-steps 64 --total-timesteps 64 --save-model".split()
    assert run(tmp_path, "a2c", *flags)[0] == 0
    for backend in ("egl", "glfw"):  # the second has no display to open
        flags, environment = ["--episodes", 1, "--capture-video"], dict(MUJOCO_GL=backend, DISPLAY="")
        code, _, err = evaluate_process(tmp_path, only_run(tmp_path), *flags, **environment)
        if code == 0:
            assert glob.glob(f"{tmp_path}/videos/*__evaluation/*.mp4")
        else:
            errors = [text for text in err.splitlines() if text.startswith("error: ")]
            assert len(errors) == 1 and "--capture-video: InvertedPendulum-v4 can't be rendered" in errors[0]
            assert "MUJOCO_GL=egl" in errors[0] and "libegl1 and libgl1" in errors[0]


# ---- any flags ---------------------------------------------------------------------------------------------

NUMBERS = st.one_of(st.floats(), st.sampled_from([0.0, 1.0, 1e-3, 1e300, -1.0]))
FLAGS = {
    "--learning-rate": NUMBERS, "--eps": NUMBERS, "--delta": NUMBERS, "--gamma": NUMBERS, "--gae-lambda": NUMBERS,
    "--ent-coef": NUMBERS, "--max-grad-norm": NUMBERS, "--clip-coef": NUMBERS, "--target-kl": NUMBERS,
    "--seed": st.integers(-1, 2**33), "--num-envs": st.integers(-1, 3), "--num-steps": st.integers(-1, 70),
    "--update-epochs": st.integers(-1, 3),
    "--total-timesteps": st.integers(-1, 400), "--checkpoint-interval": st.integers(-1, 100),
    "--optimizer": st.sampled_from(["adam", "scaled-adahesscale", "sgd", "adahessian", "", "Adam"]),
    "--env-id": st.sampled_from(["toy_envs:Shapes-v0", "toy_envs:Counter-v0", "toy_envs:Many-v0", "no_such_env"]),
    "--resume": st.sampled_from(["auto", "", "/", "runs", "no/such\nfolder"]),
}  # fmt: skip


@both
@given(flags=st.dictionaries(st.sampled_from(sorted(FLAGS)), st.none(), max_size=5).flatmap(
    lambda names: st.fixed_dictionaries({name: FLAGS[name] for name in names})
))  # fmt: skip
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_flags_run_or_end_with_one_line(tmp_path_factory, agent, flags):
    cwd = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("any"))
    given_flags = {"--env-id": "toy_envs:Shapes-v0", "--num-steps": 64, "--total-timesteps": 256} | flags
    try:
        args = args_of(agent, *itertools.chain(*((k, str(v)) for k, v in given_flags.items())))
        AGENTS[agent].main(args)
        assert status(only_run("."))["state"] == "finished"
    except SystemExit as end:
        if end.code == hesscale_run.DIVERGED:
            assert status(only_run("."))["state"] == "diverged"
        else:
            assert isinstance(end.code, str) and end.code.startswith("error: ") and "\n" not in end.code
            assert not glob.glob("runs/*"), end.code
    finally:
        os.chdir(cwd)


@both
def test_an_environment_that_draws_as_it_is_made_is_the_same_each_time(tmp_path, agent):
    paid = []
    for seed in 1, 2:
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        (tmp_path / f"{seed}").mkdir()
        flags = ["--env-id", "toy_envs:Laid-v0", "--num-steps", 8, "--total-timesteps", 8]
        assert run(tmp_path / f"{seed}", agent, *flags)[0] == 0
        paid.append(scalars(only_run(tmp_path / f"{seed}"))["charts/episodic_return"])
    assert paid[0] == paid[1]


@both
def test_all_environments_are_closed(tmp_path, agent, monkeypatch):
    """Those of evaluations, too; a thread of one could keep the program from ending."""
    monkeypatch.setattr(toy_envs.Laid, "closed", 0)
    flags = ["--env-id", "toy_envs:Laid-v0", "--num-steps", 8, "--num-envs", 3, "--total-timesteps", 24]
    flags += ["--eval-interval", 100, "--eval-episodes", 1]
    assert run(tmp_path, agent, *flags)[0] == 0
    assert toy_envs.Laid.closed == 3 + 2 + 1  # two evaluations; and to see whether they would be in the one that trains


def test_a_model_has_the_statistics_of_every_environment(tmp_path):
    assert run(tmp_path, "a2c", *DRIFT, "--num-envs", 2, "--total-timesteps", 256)[0] == 0
    statistics = hesscale_run.load_model(only_run(tmp_path))["statistics"]
    assert len(statistics) == 2 and not statistics[0]["obs"]["mean"].equal(statistics[1]["obs"]["mean"])


def test_a_runs_return_is_that_of_the_last_50_episodes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with run_of() as run:
        for i in range(60):
            run.log_episode(i, argparse.Namespace(episode_return=float(i), episode_length=1))
    assert status("runs/a_run")["return"] == np.mean(range(10, 60))


@pytest.mark.parametrize("changed", [0, 1])
def test_a_commit_has_a_plus_where_files_differ_from_it(monkeypatch, changed):
    def git(command, **options):
        done = subprocess.CompletedProcess(command, 0, stdout="abc\n")
        return done if "rev-parse" in command else subprocess.CompletedProcess(command, changed)

    monkeypatch.setattr(hesscale_run.subprocess, "run", git)
    assert hesscale_run.commit() == "abc" + "+" * changed


def test_wandb_gets_the_project_and_the_entity(tmp_path, monkeypatch):
    given = []
    wandb = argparse.Namespace(init=lambda **options: given.append(options), Settings=lambda **options: None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.chdir(tmp_path)
    made = run_of()
    made.args.track, made.args.wandb_project_name, made.args.wandb_entity = True, "mine", "us"
    with made:
        pass
    assert [(o["project"], o["entity"], o["name"]) for o in given] == [("mine", "us", "a_run")]


def test_progress_is_told_every_ten_seconds_with_the_time_that_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    clock = [0.0]
    monkeypatch.setattr(hesscale_run.time, "perf_counter", lambda: clock[0])
    with run_of(total_timesteps=1000) as run:
        capsys.readouterr()
        for clock[0], step in (9.0, 90), (20.0, 200), (21.0, 210), (30.0, 300):
            run.progress(step)
        lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["200/1", "300/1"]
    assert [line.rsplit(", ", 1)[1] for line in lines] == ["80 s left", "70 s left"]


def test_a_run_keeps_its_start_and_all_its_resumptions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit), run_of() as run:
        run.signal = 15
        run.checkpoint(10, dict)
    path = Path("runs/a_run/status.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"start": "2026-01-01T00:00:00+00:00"}))
    for step in 20, 30:
        args = run.args
        args.resume = "runs/a_run"
        with pytest.raises(SystemExit), Run(args, "a_run", hesscale_run.read_checkpoint("runs/a_run")) as run:
            run.signal = 15
            run.checkpoint(step, dict)
    s = status("runs/a_run")
    assert s["resumed_at"] == [10, 20] and s["start"] == "2026-01-01T00:00:00+00:00"
