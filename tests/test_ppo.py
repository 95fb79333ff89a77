"""PPO end to end: on real environments, on toys whose answer is known, and on bad input."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hesscale_utils
import ppo_hesscale
from hesscale_core import OPTIMIZERS, TanhMLP

CURVATURE = {f"hesscale/negative_curvature_{net}" for net in ("actor", "critic")}
SCALE = {f"hesscale/{quantity}_{net}" for quantity in ("eta", "trust_region") for net in ("actor", "critic")}
CLEANRL = {
    *(f"charts/{tag}" for tag in ("episodic_return", "episodic_length", "SPS", "learning_rate")),
    *(f"losses/{tag}" for tag in ("value_loss", "policy_loss", "entropy", "old_approx_kl", "approx_kl", "clipfrac")),
    "losses/explained_variance",
}


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Run the script in an empty folder, and return its only run's folder."""
    monkeypatch.chdir(tmp_path)

    def train(*flags):
        monkeypatch.setattr(sys, "argv", ["ppo_hesscale.py", *map(str, flags)])
        before = set(os.listdir("runs")) if os.path.exists("runs") else set()
        ppo_hesscale.main(hesscale_utils.parse_args(ppo_hesscale.Args))
        (new,) = set(os.listdir("runs")) - before
        return tmp_path / "runs" / new

    return train


def scalars(folder):
    """All logged scalars of a run: tag -> [(step, value), ...]."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


# ---- advantages --------------------------------------------------------------------------------------------


def test_gae_is_its_recursion_with_terminations_and_truncations_mixed():
    rng = np.random.default_rng(0)
    steps, envs, gamma, gae_lambda = 50, 3, 0.97, 0.9
    rewards, values, next_values = rng.normal(size=(3, steps, envs))
    terminations = (rng.random((steps, envs)) < 0.1).astype(float)
    dones = np.maximum(terminations, rng.random((steps, envs)) < 0.1)
    ours = ppo_hesscale.compute_gae(rewards, values, next_values, terminations, dones, gamma, gae_lambda)

    def advantage(t, i):
        """Sum of discounted TD errors until the episode or the rollout ends (Schulman et al. 2016, Eq. 16)."""
        total, weight = 0.0, 1.0
        for k in range(t, steps):
            bootstrap = 0.0 if terminations[k, i] else gamma * next_values[k, i]
            total += weight * (rewards[k, i] + bootstrap - values[k, i])
            if dones[k, i]:
                break
            weight *= gamma * gae_lambda
        return total

    expected = [[advantage(t, i) for i in range(envs)] for t in range(steps)]
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    assert 0 < terminations.sum() < dones.sum()


@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize("env_id, expected", [("Toggle-v0", 2.0), ("Toggle-v1", 4.0)])
def test_truncation_bootstraps_from_the_real_last_observation_and_termination_does_not(
    train, env_id, expected, num_envs
):
    """The ratio of the two states' values tells the ways of ending an episode apart: see Toggle."""
    flags = f"--env-id toy_envs:{env_id} --gamma 0.5 --gae-lambda 0 --optimizer adam --learning-rate 3e-3 --save-model"
    flags += f" --num-envs {num_envs} --num-steps {600 // num_envs} --num-minibatches 6 --total-timesteps 15000"
    folder = train(*flags.split())
    saved = torch.load(folder / "ppo_hesscale.pt", weights_only=True)
    critic = TanhMLP(1, (64, 64), 1)
    critic.load_state_dict({k[7:]: v for k, v in saved["agent"].items() if k.startswith("critic.")})
    stats = saved["statistics"][0]["obs"]
    obs = (torch.tensor([[-1.0], [1.0]]) - stats["mean"]) / torch.sqrt(stats["var"] + 1e-8)
    value_0, value_1 = critic(obs.float()).flatten().tolist()
    assert value_1 / value_0 == pytest.approx(expected, rel=0.1)


# ---- runs --------------------------------------------------------------------------------------------------


def test_hopper_leaves_a_readable_event_file_with_every_tag(train, capsys):
    folder = train("--env-id", "Hopper-v4", "--optimizer", "scaled-adahesscale", "--total-timesteps", 4096)
    logged = scalars(folder)
    assert set(logged) == CLEANRL | CURVATURE | SCALE
    assert all(math.isfinite(value) for series in logged.values() for _, value in series)
    assert [step for step, _ in logged["hesscale/eta_actor"]] == [2048, 4096]
    for net in ("actor", "critic"):
        assert all(0 < eta <= 1 for _, eta in logged[f"hesscale/eta_{net}"])
        assert all(0 < share < 1 for _, share in logged[f"hesscale/negative_curvature_{net}"])
        assert all(half_uhu > 0 for _, half_uhu in logged[f"hesscale/trust_region_{net}"])
    assert logged["charts/learning_rate"][0][1] == pytest.approx(ppo_hesscale.LEARNING_RATES["scaled-adahesscale"])
    episodes, lengths = logged["charts/episodic_return"], logged["charts/episodic_length"]
    assert len(episodes) == len(lengths) > 50
    assert sum(length for _, length in lengths) == episodes[-1][0]  # one environment: every step is some episode's
    out = capsys.readouterr().out
    assert "scaled-adahesscale with step size" in out and "mean return of the last 50 episodes" in out


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains(train, name):
    folder = train("--optimizer", name, "--total-timesteps", 2048, "--save-model")
    scaled = name.startswith("scaled-")
    assert set(scalars(folder)) == CLEANRL | (CURVATURE if name != "adam" else set()) | (SCALE if scaled else set())
    agent = torch.load(folder / "ppo_hesscale.pt", weights_only=True)["agent"]
    assert len(agent) == 13
    assert all(p.isfinite().all() for p in agent.values())


def test_same_seed_gives_the_same_run_and_another_seed_another(train):
    flags = "--env-id Hopper-v4 --total-timesteps 2048 --num-steps 1024 --seed".split()
    one, again, other = (scalars(train(*flags, seed)) for seed in (1, 1, 2))
    for run in (one, again, other):
        del run["charts/SPS"]
    assert one == again
    assert one["charts/episodic_return"] != other["charts/episodic_return"]


def test_all_the_flags_of_cleanrl_work_together(train):
    folder = train(
        *"--env-id toy_envs:Shapes-v0 --num-envs 3 --num-steps 100 --total-timesteps 600 --num-minibatches 4".split(),
        *"--update-epochs 3 --anneal-lr --learning-rate 1e-3 --clip-vloss --max-grad-norm 0.5 --ent-coef 0.01".split(),
        *"--target-kl 0.01 --no-norm-adv --clip-coef 0.1 --gamma 0.9 --gae-lambda 0.8 --exp-name test".split(),
        *"--no-cuda --no-torch-deterministic --optimizer adahesscale".split(),
    )
    rates = [value for _, value in scalars(folder)["charts/learning_rate"]]
    assert rates == pytest.approx([1e-3, 5e-4])


def test_gradient_clipping_bounds_the_update(train):
    """With sqrt(V) ~ |g| Adam forgives any scale, but not one that is clipped below its eps."""
    flags = "--env-id toy_envs:Shapes-v0 --optimizer adam --num-steps 128 --total-timesteps 128 --save-model".split()
    moved = [
        torch.load(train(*flags, *more) / "ppo_hesscale.pt", weights_only=True)["agent"]["actor_log_std"].abs().max()
        for more in ([], ["--max-grad-norm", "1e-9"])
    ]
    assert moved[0] > 1e-3 > 1e-5 > moved[1]


def test_target_kl_stops_the_epochs(train):
    flags = "--env-id toy_envs:Shapes-v0 --optimizer adam --learning-rate 0.01 --num-steps 128 --total-timesteps 128"
    kls = [scalars(train(*flags.split(), *more))["losses/approx_kl"][0][1] for more in ([], ["--target-kl", "1e-3"])]
    assert kls[0] > kls[1] > 1e-3


def test_tensors_and_arrays_train_alike(train, monkeypatch):
    """What a GPU would run, on the CPU: the same losses as numpy's but for rounding."""
    flags = "--env-id Hopper-v4 --num-steps 256 --total-timesteps 256 --num-minibatches 4 --update-epochs 2".split()
    flags += ["--optimizer", "adahesscale", "--clip-vloss"]
    arrays = scalars(train(*flags))
    monkeypatch.setattr(ppo_hesscale, "array_functions", lambda device: (torch.as_tensor, lambda t: t.detach().numpy()))
    tensors = scalars(train(*flags))
    assert set(arrays) == set(tensors)
    for tag in set(arrays) - {"charts/SPS"}:
        np.testing.assert_allclose(arrays[tag], tensors[tag], rtol=0.01, atol=1e-4, err_msg=tag)


def test_a_run_never_writes_into_anothers_folder(train, monkeypatch):
    monkeypatch.setattr(ppo_hesscale.time, "time", lambda: 1e9)
    flags = "--env-id toy_envs:Shapes-v0 --num-steps 64 --total-timesteps 64 --optimizer adam".split()
    first, second = train(*flags), train(*flags)
    assert second.name == f"{first.name}_1"


def test_wandb_works_offline_without_an_account(tmp_path):
    flags = "--env-id toy_envs:Shapes-v0 --num-steps 64 --total-timesteps 64 --track".split()
    done = run_script(tmp_path, *flags, WANDB_MODE="offline", WANDB_SILENT="true")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


# ---- bad input ---------------------------------------------------------------------------------------------


def run_script(cwd, *flags, **environment):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}/tests"} | environment
    command = [sys.executable, "-W", "error::UserWarning", f"{ROOT}/ppo_hesscale.py", *map(str, flags)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


BAD_INPUT = [
    ("--env-id Hoper-v4", "--env-id Hoper-v4: Environment `Hoper` doesn't exist"),
    ("--env-id Hopper-v99", "--env-id Hopper-v99: Environment version `v99`"),
    ("--env-id no_such_module:Env-v0", "--env-id no_such_module:Env-v0: No module named 'no_such_module'"),
    ("--env-id toy_envs:DiscreteToggle-v0", "action space Discrete(2); supported: Box"),
    ("--num-minibatches 30", "--num-minibatches 30: must divide the batch, num_envs * num_steps = 2048"),
    ("--num-steps 16", "--num-minibatches 32: a rollout of 16 gives none of them 2 samples, which --norm-adv needs"),
    ("--num-steps 16 --no-norm-adv", "--num-minibatches 32: a rollout of 16 gives none of them 1 sample"),
    ("--num-steps 0", "--num-steps 0: must be at least 1"),
    ("--num-envs -1", "--num-envs -1: must be at least 1"),
    ("--update-epochs 0", "--update-epochs 0: must be at least 1"),
    ("--num-minibatches 0", "--num-minibatches 0: must be at least 1"),
    ("--total-timesteps 0", "--total-timesteps 0: must be at least 1"),
    ("--total-timesteps 1000", "--total-timesteps 1000: is less than one rollout, num_envs * num_steps = 2048"),
    ("--learning-rate 0", "--learning-rate 0.0: must be a number above 0"),
    ("--learning-rate -1e-3", "--learning-rate -0.001: must be a number above 0"),
    ("--learning-rate nan", "--learning-rate nan: must be a number above 0"),
    ("--delta 0", "--delta 0.0: must be a number above 0"),
    ("--delta inf", "--delta inf: must be a number above 0"),
    ("--clip-coef 0", "--clip-coef 0.0: must be a number above 0"),
    ("--max-grad-norm 0", "--max-grad-norm 0.0: must be a number above 0"),
    ("--ent-coef -1", "--ent-coef -1.0: must be a number >= 0"),
    ("--gamma 1.5", "--gamma 1.5: must be in [0, 1]"),
    ("--gae-lambda nan", "--gae-lambda nan: must be in [0, 1]"),
    ("--seed -1", "--seed -1: must be in [0, 2^32)"),
    ("--optimizer sgdd", f"--optimizer sgdd: choose one of {', '.join(OPTIMIZERS)}"),
    ("--seed abc", "Error parsing --seed: invalid literal"),
    ("--sede 1", "Unrecognized options: --sede"),
]


@pytest.mark.parametrize("flags, message", BAD_INPUT)
def test_bad_input_is_one_line_and_nothing_is_written(train, tmp_path, flags, message):
    with pytest.raises(SystemExit) as exit:
        train(*flags.split())
    assert exit.value.code.startswith("error: ")
    assert message in exit.value.code
    assert "\n" not in exit.value.code
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", ["--optimizer sgdd", "--seed abc", "--env-id Hoper-v4"])
def test_bad_input_seen_from_the_shell(tmp_path, flags):
    done = run_script(tmp_path, *flags.split())
    assert done.returncode != 0
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags",
    [
        "--env-id toy_envs:Broken-v0 --optimizer adam",
        "--env-id Hopper-v4 --optimizer adam --learning-rate 1e6",
        "--env-id Hopper-v4 --optimizer scaled-adahesscale --learning-rate 1e300",
    ],
)
def test_a_run_that_diverges_says_so_in_one_line_and_keeps_its_returns(tmp_path, flags):
    done = run_script(tmp_path, *flags.split(), "--num-steps", 256, "--total-timesteps", 2560)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "the update of step" in done.stderr and "is not finite" in done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert scalars(folder)["charts/episodic_return"]
