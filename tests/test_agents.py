"""The agents end to end: on real environments, on toys whose answer is known, and on bad input."""

import math
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import a2c_hesscale
import hesscale_run
import hesscale_utils
import ppo_hesscale
from hesscale_core import OPTIMIZERS, TanhMLP

sys.path.insert(0, str(ROOT / "scripts"))
import evaluate

AGENTS = {"ppo": ppo_hesscale, "a2c": a2c_hesscale}

CURVATURE = {f"hesscale/negative_curvature_{net}" for net in ("actor", "critic")}
SCALE = {f"hesscale/{quantity}_{net}" for quantity in ("eta", "trust_region") for net in ("actor", "critic")}
COMMON = {
    *(f"charts/{tag}" for tag in ("episodic_return", "episodic_length", "SPS", "learning_rate")),
    *(f"losses/{tag}" for tag in ("value_loss", "policy_loss", "entropy", "explained_variance")),
}
TAGS = {"ppo": COMMON | {f"losses/{tag}" for tag in ("old_approx_kl", "approx_kl", "clipfrac")}, "a2c": COMMON}
both = pytest.mark.parametrize("agent", AGENTS)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Run an agent's script in an empty folder, and return its only new run's folder."""
    monkeypatch.chdir(tmp_path)

    def train(agent, *flags):
        monkeypatch.setattr(sys, "argv", [f"{agent}_hesscale.py", *map(str, flags)])
        before = set(os.listdir("runs")) if os.path.exists("runs") else set()
        AGENTS[agent].main(hesscale_utils.parse_args(AGENTS[agent].Args))
        (new,) = set(os.listdir("runs")) - before
        return tmp_path / "runs" / new

    return train


def saved_model(folder):
    (path,) = folder.glob("*.pt")
    return torch.load(path, weights_only=True)


def scalars(folder):
    """All logged scalars of a run: tag -> [(step, value), ...]."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


# ---- advantages --------------------------------------------------------------------------------------------


@both
def test_gae_is_its_recursion_with_terminations_and_truncations_mixed(agent):
    rng = np.random.default_rng(0)
    steps, envs, gamma, gae_lambda = 50, 3, 0.97, 0.9
    rewards, values, next_values = rng.normal(size=(3, steps, envs))
    terminations = (rng.random((steps, envs)) < 0.1).astype(float)
    dones = np.maximum(terminations, rng.random((steps, envs)) < 0.1)
    ours = AGENTS[agent].compute_gae(rewards, values, next_values, terminations, dones, gamma, gae_lambda)

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


def test_n_step_returns_are_their_definition():
    """With gae_lambda 1, advantage + value is the discounted sum of what follows, and a value where that ends."""
    rng = np.random.default_rng(1)
    steps, envs, gamma = 5, 200, 0.97
    rewards, values, next_values = rng.normal(size=(3, steps, envs))
    next_values[:-1] = values[1:]  # a step's successor is the next one,
    terminations = (rng.random((steps, envs)) < 0.1).astype(float)
    truncations = (rng.random((steps, envs)) < 0.1) * (1 - terminations)
    next_values[truncations > 0] = rng.normal(size=int(truncations.sum()))  # but at an episode's end
    dones = terminations + truncations
    advantages = a2c_hesscale.compute_gae(rewards, values, next_values, terminations, dones, gamma, 1.0)

    def n_step_return(t, i):
        total = 0.0
        for k in range(t, steps):
            total += gamma ** (k - t) * rewards[k, i]
            if terminations[k, i]:
                return total
            if truncations[k, i] or k == steps - 1:
                return total + gamma ** (k - t + 1) * next_values[k, i]

    expected = [[n_step_return(t, i) for i in range(envs)] for t in range(steps)]
    np.testing.assert_allclose(advantages + values, expected, rtol=1e-10)


@both
@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize("env_id, expected", [("Toggle-v0", 2.0), ("Toggle-v1", 4.0)])
def test_truncation_bootstraps_from_the_real_last_observation_and_termination_does_not(
    train, agent, env_id, expected, num_envs
):
    """The ratio of the two states' values tells the ways of ending an episode apart: see Toggle."""
    flags = f"--env-id toy_envs:{env_id} --gamma 0.5 --gae-lambda 0 --optimizer adam --learning-rate 3e-3 --save-model"
    flags += f" --num-envs {num_envs} --total-timesteps 15000 --num-steps "
    flags += f"{600 // num_envs} --num-minibatches 6" if agent == "ppo" else f"{40 // num_envs} --anneal-lr"
    saved = saved_model(train(agent, *flags.split()))
    critic = TanhMLP(1, (64, 64), 1)
    critic.load_state_dict({k[7:]: v for k, v in saved["agent"].items() if k.startswith("critic.")})
    stats = saved["statistics"][0]["obs"]
    obs = (torch.tensor([[-1.0], [1.0]]) - stats["mean"]) / torch.sqrt(stats["var"] + 1e-8)
    value_0, value_1 = critic(obs.float()).flatten().tolist()
    assert value_1 / value_0 == pytest.approx(expected, rel=0.1)


# ---- runs --------------------------------------------------------------------------------------------------


@both
def test_hopper_leaves_a_readable_event_file_with_every_tag(train, agent, capsys):
    folder = train(agent, "--env-id", "Hopper-v4", "--optimizer", "scaled-adahesscale", "--total-timesteps", 4096)
    logged = scalars(folder)
    assert set(logged) == TAGS[agent] | CURVATURE | SCALE
    assert all(math.isfinite(value) for series in logged.values() for _, value in series)
    assert [step for step, _ in logged["hesscale/eta_actor"]] == ([2048, 4096] if agent == "ppo" else [2050, 4095])
    for net in ("actor", "critic"):
        assert all(0 < eta <= 1 for _, eta in logged[f"hesscale/eta_{net}"])
        assert all(0 <= share < 1 for _, share in logged[f"hesscale/negative_curvature_{net}"])
        assert all(half_uhu > 0 for _, half_uhu in logged[f"hesscale/trust_region_{net}"])
    default = AGENTS[agent].LEARNING_RATES["scaled-adahesscale"]
    assert logged["charts/learning_rate"][0][1] == pytest.approx(default)
    episodes, lengths = logged["charts/episodic_return"], logged["charts/episodic_length"]
    assert len(episodes) == len(lengths) > 50
    assert sum(length for _, length in lengths) == episodes[-1][0]  # one environment: every step is some episode's
    out = capsys.readouterr().out
    assert "scaled-adahesscale with step size" in out and "mean return of the last 50 episodes" in out


def test_the_defaults_are_those_that_were_chosen():
    """The README's step sizes, and the rest: CleanRL's in PPO, the paper's but for what docs/defaults.md tells."""
    table = (ROOT / "README.md").read_text().split("## Optimizers")[1]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines() if row.startswith("| `")][1:]
    for agent, column in ("ppo", 3), ("a2c", 4):
        sizes = {row[0].strip("`"): float(row[column]) for row in rows[: len(OPTIMIZERS)]}
        assert sizes == AGENTS[agent].LEARNING_RATES and [*sizes] == [*OPTIMIZERS]
    common = dict(
        seed=1, torch_deterministic=True, optimizer="scaled-adahesscale", total_timesteps=1_000_000, betas=(0.9, 0.999),
        eps=1e-5, delta=1e-7, critic_ggn=False, adam_log_std=True, state_std=False, orthogonal_init=True,
        time_feature=False, num_envs=1, norm_obs=True, norm_reward=True, anneal_lr=False, gamma=0.99, ent_coef=0.0,
        max_grad_norm=None, learning_rate=None, checkpoint_interval=50_000, eval_interval=0, eval_episodes=10,
        env_id="Hopper-v4", env_kwargs="", cuda=False, track=False, capture_video=False, save_model=True, resume=None,
    )  # fmt: skip
    own = {
        "ppo": dict(num_steps=2048, gae_lambda=0.95, num_minibatches=32, update_epochs=10, norm_adv=True, clip_coef=0.2,
                    clip_vloss=False, target_kl=None, desired_kl=None, reset_step=False, stability=False),
        "a2c": dict(num_steps=5, gae_lambda=1.0, norm_adv=False),
    }  # fmt: skip
    free = "exp_name", "wandb_project_name", "wandb_entity"
    for agent, module in AGENTS.items():
        found = {name: value for name, value in vars(module.Args()).items() if name not in free}
        assert found == common | own[agent]


@both
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains(train, agent, name):
    flags = "--env-id Hopper-v4 --total-timesteps 512 --num-steps 256 --save-model --optimizer".split()
    folder = train(agent, *flags, name)
    scaled, curvature = name.startswith("scaled-"), name not in ("sgd", "adam")
    assert set(scalars(folder)) == TAGS[agent] | (CURVATURE if curvature else set()) | (SCALE if scaled else set())
    parameters = saved_model(folder)["agent"]
    assert len(parameters) == 13
    assert all(p.isfinite().all() for p in parameters.values())


@both
def test_in_a_fair_game_no_agent_does_better_than_chance(train, agent, capsys):
    """As it would if its noise were of the generator that the environment draws from. 2048 steps pay 1024 +- 23."""
    flags = "--env-id toy_envs:Bandit-v0 --total-timesteps 2048 --learning-rate 1e-9 --save-model".split()
    folder = train(agent, *flags)
    paid = [value for _, value in scalars(folder)["charts/episodic_return"]]
    assert len(paid) == 40 and abs(np.mean(paid) - 25) < 25 * 4 / 2000**0.5
    capsys.readouterr()
    evaluate.main(evaluate.Args(str(folder), sample=True, episodes=40))
    found = float(re.search(r"sampled actions: return ([\d.]+)", capsys.readouterr().out)[1])
    assert abs(found - 25) < 25 * 4 / 2000**0.5


@both
@pytest.mark.parametrize("name", ["adam", "adahessian", "scaled-adahesscale"])
def test_discrete_actions_train(train, agent, name):
    folder = train(agent, "--env-id", "CartPole-v1", "--optimizer", name, "--total-timesteps", 2048, "--ent-coef", 0.01)
    assert TAGS[agent] <= set(scalars(folder))


@both
def test_a_state_dependent_standard_deviation_has_its_own_network_in_the_actors_trust_region(train, agent):
    flags = "--env-id Hopper-v4 --state-std --optimizer scaled-adahesscale --total-timesteps 2048 --save-model".split()
    folder = train(agent, *flags)
    logged, parameters = scalars(folder), saved_model(folder)["agent"]
    assert set(logged) == TAGS[agent] | CURVATURE | SCALE
    assert "actor.log_std" not in parameters and parameters["actor_std.layers.1.weight"].shape == (3, 64)
    done = subprocess.run(
        [sys.executable, f"{ROOT}/scripts/evaluate.py", folder, "--episodes", "2", "--sample"],
        capture_output=True, text=True, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0 and "2 episodes, sampled actions" in done.stdout, done.stderr


@both
def test_an_interrupted_run_with_a_state_dependent_standard_deviation_goes_on_to_the_same_end(
    train, agent, tmp_path, monkeypatch
):
    flags = "--env-id toy_envs:Drift-v0 --state-std --num-steps 64 --total-timesteps 640 --save-model".split()
    finished = train(agent, *flags)
    write = hesscale_run.Run.checkpoint

    def interrupt(run, step, get_state):
        run.signal = signal.SIGUSR1 if step == 320 else None
        write(run, step, get_state)

    monkeypatch.setattr(hesscale_run.Run, "checkpoint", interrupt)
    with pytest.raises(SystemExit, match=f"^{hesscale_run.INTERRUPTED}$"):
        train(agent, *flags)
    monkeypatch.setattr(sys, "argv", [f"{agent}_hesscale.py", *flags, "--resume", "auto"])
    AGENTS[agent].main(hesscale_utils.parse_args(AGENTS[agent].Args))
    (resumed,) = set((tmp_path / "runs").iterdir()) - {finished}
    expected, found = (saved_model(folder)["agent"] for folder in (finished, resumed))
    assert len(found) == 16 and all(found[name].equal(p) for name, p in expected.items())


@both
def test_cart_pole_is_learnt(train, agent):
    """Ten times what a random policy gets (22), in a tenth of the steps that solving it takes."""
    steps = 20_000 if agent == "ppo" else 40_000
    folder = train(agent, "--env-id", "CartPole-v1", "--optimizer", "adam", "--total-timesteps", steps)
    returns = [value for _, value in scalars(folder)["charts/episodic_return"]]
    assert np.mean(returns[:20]) < 50 and np.mean(returns[-10:]) > 150


@both
def test_same_seed_gives_the_same_run_and_another_seed_another(train, agent):
    flags = "--env-id Hopper-v4 --total-timesteps 2048 --seed".split()
    one, again, other = (scalars(train(agent, *flags, seed)) for seed in (1, 1, 2))
    for run in (one, again, other):
        del run["charts/SPS"]
    assert one == again
    assert one["charts/episodic_return"] != other["charts/episodic_return"]


@both
@pytest.mark.parametrize("env_id", ["toy_envs:Shapes-v0", "toy_envs:Counter-v0"])
def test_all_the_flags_work_together(train, agent, env_id):
    flags = f"--env-id {env_id} --num-envs 3 --total-timesteps 600 --anneal-lr --learning-rate 1e-3 --ent-coef 0.01"
    flags += " --max-grad-norm 0.5 --gamma 0.9 --gae-lambda 0.8 --exp-name test --no-cuda --no-torch-deterministic"
    flags += " --optimizer adahesscale --no-norm-obs --no-norm-reward --num-steps 100"
    if agent == "ppo":
        flags += " --num-minibatches 4 --update-epochs 3 --clip-vloss --target-kl 0.01 --no-norm-adv --clip-coef 0.1"
    else:
        flags += " --norm-adv"
    folder = train(agent, *flags.split(), "--save-model")
    rates = [value for _, value in scalars(folder)["charts/learning_rate"]]
    assert rates[-1] == pytest.approx(5e-4) and saved_model(folder)["norm_obs"] is False
    assert torch.backends.cudnn.deterministic is False


@both
def test_gradient_clipping_bounds_the_update(train, agent):
    """Adam forgives any scale of the gradient, but not one below its eps."""
    flags = "--env-id toy_envs:Shapes-v0 --optimizer adam --num-steps 128 --total-timesteps 128 --save-model".split()
    flags += ["--learning-rate", "3e-4"]
    moved = [
        saved_model(train(agent, *flags, *more))["agent"]["actor.log_std"].abs().max()
        for more in ([], ["--max-grad-norm", "1e-9"])
    ]
    assert moved[0] > 1e-4 > 1e-6 > moved[1]


def test_target_kl_stops_the_epochs(train, monkeypatch):
    """A threshold that the first epoch passes leaves one epoch of two."""
    losses = []
    original = ppo_hesscale.ppo_loss
    monkeypatch.setattr(ppo_hesscale, "ppo_loss", lambda *args: losses.append(1) or original(*args))
    flags = "--env-id toy_envs:Toggle-v0 --optimizer adam --num-steps 128 --total-timesteps 128 --num-minibatches 4"
    for more, expected in ((), 8), (("--target-kl", "1e-9"), 4), (("--target-kl", "1e9"), 8):
        losses.clear()
        train("ppo", *flags.split(), "--update-epochs", 2, *more)
        assert len(losses) == expected


@both
@pytest.mark.parametrize("env_id", ["Hopper-v4", "CartPole-v1"])
def test_tensors_and_arrays_train_alike(train, agent, env_id, monkeypatch):
    """What a GPU would run, on the CPU: the same losses as numpy's but for rounding."""
    flags = f"--env-id {env_id} --total-timesteps 256 --optimizer adahesscale --learning-rate 1e-4".split()
    if agent == "ppo":
        flags += "--num-steps 256 --num-minibatches 4 --update-epochs 2 --clip-vloss".split()
    arrays = scalars(train(agent, *flags))
    monkeypatch.setattr(AGENTS[agent], "make_to_net", lambda device: torch.as_tensor)
    tensors = scalars(train(agent, *flags))
    assert set(arrays) == set(tensors)
    for tag in set(arrays) - {"charts/SPS"}:
        np.testing.assert_allclose(arrays[tag], tensors[tag], rtol=0.01, atol=1e-4, err_msg=tag)


@both
def test_a_run_never_writes_into_anothers_folder(train, agent, monkeypatch):
    monkeypatch.setattr(AGENTS[agent].time, "time", lambda: 1e9)
    flags = "--env-id toy_envs:Shapes-v0 --num-steps 64 --total-timesteps 64 --optimizer adam".split()
    first, second = train(agent, *flags), train(agent, *flags)
    assert second.name == f"{first.name}_1"


def test_wandb_works_offline_without_an_account(tmp_path):
    flags = "--env-id toy_envs:Film-v0 --num-steps 64 --total-timesteps 64 --track --capture-video".split()
    done = run_script(tmp_path, "ppo", *flags, WANDB_MODE="offline", WANDB_SILENT="true")
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    assert [*tmp_path.glob("videos/*/*.mp4")]
    (twin,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert all(tag.encode() in twin.read_bytes() for tag in TAGS["ppo"] | CURVATURE | SCALE)


# ---- bad input ---------------------------------------------------------------------------------------------


def run_script(cwd, agent, *flags, **environment):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}/tests"} | environment
    command = [sys.executable, "-W", "error::UserWarning", f"{ROOT}/{agent}_hesscale.py", *map(str, flags)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


BAD_INPUT = [
    ("--env-id Hoper-v4", "--env-id Hoper-v4: Environment `Hoper` doesn't exist"),
    ("--env-id Hopper-v99", "--env-id Hopper-v99: Environment version `v99`"),
    ("--eval-interval -1", "--eval-interval -1: must be"),
    ("--eval-episodes 0", "--eval-episodes 0: must be"),
    ("--env-id no_such_module:Env-v0", "--env-id no_such_module:Env-v0: No module named 'no_such_module'; its"),
    ("--env-kwargs a=False,", "--env-kwargs a=False,: 'a=False,' ends with a comma; leave it out"),
    ("--env-id toy_envs:Many-v0", "--env-id toy_envs:Many-v0 has the action space MultiDiscrete"),
    ("--env-id toy_envs:Many-v0", "supported: Box and Discrete"),
    ("--num-steps 0", "--num-steps 0: must be at least 1"),
    ("--num-envs -1", "--num-envs -1: must be at least 1"),
    ("--total-timesteps 0", "--total-timesteps 0: must be at least 1"),
    ("--total-timesteps 4", "--total-timesteps 4: is less than one rollout, num_envs * num_steps = "),
    ("--learning-rate 0", "--learning-rate 0.0: must be a number above 0"),
    ("--learning-rate -1e-3", "--learning-rate -0.001: must be a number above 0"),
    ("--learning-rate nan", "--learning-rate nan: must be a number above 0"),
    ("--eps 0", "--eps 0.0: must be a number above 0"),
    ("--delta 0", "--delta 0.0: must be a number above 0"),
    ("--delta inf", "--delta inf: must be a number above 0"),
    ("--max-grad-norm 0", "--max-grad-norm 0.0: must be a number above 0"),
    ("--ent-coef -1", "--ent-coef -1.0: must be a number >= 0"),
    ("--gamma 1.5", "--gamma 1.5: must be in [0, 1]"),
    ("--gae-lambda nan", "--gae-lambda nan: must be in [0, 1]"),
    ("--seed -1", "--seed -1: must be in [0, 2^32)"),
    ("--optimizer sgdd", f"--optimizer sgdd: choose one of {', '.join(OPTIMIZERS)}"),
    ("--state-std --env-id CartPole-v1", "--state-std: CartPole-v1 has discrete actions"),
    (
        "--critic-ggn --optimizer adam",
        "--critic-ggn: adam does not use HesScale's diagonal, which this replaces; leave",
    ),
    ("--critic-ggn --optimizer scaled-adahessian", "--critic-ggn: scaled-adahessian does not use HesScale's diagonal"),
    ("--time-feature --env-id toy_envs:Raises-v0", "--time-feature: toy_envs:Raises-v0 has no time limit (max_epi"),
    ("--betas 0.9 1", "--betas 0.9 1.0: both must be in [0, 1)"),
    ("--betas nan 0.9", "--betas nan 0.9: both must be in [0, 1)"),
    ("--betas 0.9", "Missing value for argument '--betas'. Expected 2 values"),
    ("--seed abc", "--seed abc: must be a whole number"),
    ("--exp-name tfevents", "--exp-name tfevents: TensorBoard would take the run's folder for a file"),
    ("--sede 1", "Unrecognized options: --sede"),
]
OF_ONE_AGENT = [
    ("ppo", "--num-minibatches 30", "--num-minibatches 30: must divide the batch, num_envs * num_steps = 2048"),
    ("ppo", "--num-steps 16", "--num-minibatches 32: a rollout of 16 gives none of them 2 samples, which --norm-adv"),
    ("ppo", "--num-steps 16 --no-norm-adv", "--num-minibatches 32: a rollout of 16 gives none of them 1 sample"),
    ("ppo", "--update-epochs 0", "--update-epochs 0: must be at least 1"),
    ("ppo", "--num-minibatches 0", "--num-minibatches 0: must be at least 1"),
    ("ppo", "--clip-coef 0", "--clip-coef 0.0: must be a number above 0"),
    ("ppo", "--desired-kl 0", "--desired-kl 0.0: must be a number above 0"),
    ("ppo", "--desired-kl 0.01 --anneal-lr", "--desired-kl 0.01: --anneal-lr sets the step size, too; leave one of"),
    ("ppo", "--desired-kl 0.01", "--desired-kl 0.01: scaled-adahesscale's trust region cancels the step size; leave"),
    ("ppo", "--reset-step --optimizer scaled-sgd", "--reset-step: scaled-sgd's trust region would shrink by its bias"),
    ("a2c", "--desired-kl 0.01", "Unrecognized options: --desired-kl"),
    ("ppo", "--target-kl 0", "--target-kl 0.0: must be a number above 0"),
    ("a2c", "--num-steps 1 --norm-adv", "--num-steps 1: --norm-adv needs a rollout of at least 2 samples"),
    ("a2c", "--clip-coef 0.2", "Unrecognized options: --clip-coef"),
]


@pytest.mark.parametrize(
    "agent, flags, message", [(agent, *case) for agent in AGENTS for case in BAD_INPUT] + OF_ONE_AGENT
)
def test_bad_input_is_one_line_and_nothing_is_written(train, tmp_path, agent, flags, message):
    with pytest.raises(SystemExit) as exit:
        train(agent, *flags.split())
    assert exit.value.code.startswith("error: ")
    assert message in exit.value.code
    assert "\n" not in exit.value.code
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "agent, steps", [("ppo", "--num-steps 4 --num-minibatches 4 --total-timesteps 8"),
                     ("a2c", "--num-steps 1 --total-timesteps 2")]
)  # fmt: skip
def test_the_samples_of_all_environments_count(train, agent, steps):
    folder = train(agent, *f"--env-id toy_envs:Toggle-v0 --num-envs 2 --norm-adv {steps}".split())
    assert hesscale_run.read_status(folder)["state"] == "finished"


@pytest.mark.parametrize(
    "agent, flags", [("ppo", "--optimizer sgdd"), ("a2c", "--seed abc"), ("ppo", "--env-id Hoper-v4")]
)
def test_bad_input_seen_from_the_shell(tmp_path, agent, flags):
    done = run_script(tmp_path, agent, *flags.split())
    assert done.returncode != 0
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "agent, flags",
    [
        ("ppo", "--env-id Hopper-v4 --optimizer adam --learning-rate 1e6"),
        ("a2c", "--env-id Hopper-v4 --optimizer scaled-adahesscale --learning-rate 1e300"),
    ],
)
def test_a_run_that_diverges_says_so_in_one_line_and_keeps_its_returns(tmp_path, agent, flags):
    done = run_script(tmp_path, agent, *flags.split(), "--num-steps", 256, "--total-timesteps", 2560)
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert flags.split()[3] in done.stderr and "not finite" in done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert scalars(folder)["charts/episodic_return"]
