"""What the programs say: the command line's errors whole and in one line, notes, and files of other machines."""

import contextlib
import glob
import os
import re
import signal
import subprocess
import sys
import warnings
from dataclasses import asdict, make_dataclass
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from test_plot import flat, make_run
from test_runs import wait_for

sys.path.insert(0, str(ROOT / "scripts"))
import evaluate
import plot
import sweep

import a2c_hesscale
import hesscale_envs
import hesscale_run
import ppo_hesscale
from hesscale_utils import check_args, make_to_net, parse_args

AGENTS = {"ppo": ppo_hesscale, "a2c": a2c_hesscale}
both = pytest.mark.parametrize("agent", AGENTS.values(), ids=AGENTS)
SWEEP = make_dataclass("Args", sweep.sweep_flags(), bases=(sweep.Sweep,))
PENDULUM = "--env-id Pendulum-v1 --optimizer adam --num-steps 64 --total-timesteps 128".split()


@pytest.fixture
def parse(monkeypatch):
    """Parse words as the command line of a script: return what differs from its defaults."""

    def parse(args_class, *words):
        monkeypatch.setattr(sys, "argv", ["folder/script.py", *map(str, words)])
        parsed, defaults = (asdict(args) for args in (parse_args(args_class), args_class()))
        return {name: value for name, value in parsed.items() if value != defaults[name]}

    return parse


@pytest.fixture
def train(monkeypatch, tmp_path):
    """Run an agent in an empty folder; return the folder of its new run."""
    monkeypatch.chdir(tmp_path)

    def train(agent, *words):
        before = glob.glob("runs/*")
        monkeypatch.setattr(sys, "argv", [agent.__file__, *map(str, words)])
        agent.main(parse_args(agent.Args))
        return "".join({*glob.glob("runs/*")} - {*before})

    return train


def error_of(function, *args):
    """Return the line that ends the program when the function is called."""
    with pytest.raises(SystemExit) as end:
        function(*args)
    line = str(end.value)
    assert line.startswith("error: ") and "\n" not in line and not {*line} & {*"│─╭╯"}
    return line.removeprefix("error: ")


# ---- the command line --------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("name, default", [("norm_obs", True), ("anneal_lr", False), ("state_std", False)])
def test_a_flag_may_have_a_value_as_wandb_writes_it(parse, agent, name, default):
    flag = name.replace("_", "-")
    for word, value in {"True": True, "true": True, "1": True, "False": False, "false": False, "0": False}.items():
        expected = {} if value == default else {name: value}
        for words in ([f"--{flag}={word}"], [f"--{flag}", word], [f"--{name}={word}"], [f"--{name}", word]):
            assert parse(agent.Args, *words, "--seed", 2) == expected | {"seed": 2}
        expected = {} if value != default else {name: not value}
        assert parse(agent.Args, f"--no-{flag}={word}") == parse(agent.Args, f"--no-{flag}", word) == expected
    assert parse(agent.Args, f"--no-{flag}") == ({name: False} if default else {})
    for words in ([f"--{flag}=maybe"], [f"--{flag}="], [f"--no_{name}=2"]):
        message = f"{words[0]}: must be True or False; or give --{flag} or --no-{flag} without a value"
        assert error_of(parse, agent.Args, *words) == message


def test_a_flag_takes_no_word_that_is_no_truth_value(parse):
    assert parse(evaluate.Args, "--sample", "runs/folder") == {"sample": True, "path": "runs/folder"}
    assert parse(evaluate.Args, "--sample", "--", "1") == {"sample": True, "path": "1"}
    assert "Unrecognized options: maybe" in error_of(parse, ppo_hesscale.Args, "--norm-obs", "maybe")


def test_the_wandb_sweep_makes_command_lines_that_its_program_reads(parse):
    content = yaml.safe_load((ROOT / "scripts/wandb_sweep.yaml").read_text())
    values = {name: p.get("values", [p.get("value")]) for name, p in content["parameters"].items()}
    values["norm-obs"] = [False]  # what a user may add
    for choose in (min, max):
        flags = [f"--{name}={choose(of)}" for name, of in values.items()]  # W&B's ${args}
        parsed = parse(ppo_hesscale.Args, *flags) | {"env_id": "Hopper-v4", "total_timesteps": 1_000_000}
        assert all(parsed.get(name.replace("-", "_"), 1) == choose(of) for name, of in values.items())
    assert content["command"][-1] == "${args}"


@pytest.mark.parametrize(
    "text, number",
    [("1e7", 10**7), ("3_000_000", 3 * 10**6), ("1E+3", 1000), ("1.5e3", 1500), ("2.0", 2), ("-1e3", -1000)]
    + [("9223372036854775807", 2**63 - 1), ("9007199254740993", 2**53 + 1)],
)
@both
def test_whole_numbers_may_be_written_with_an_exponent(parse, agent, text, number):
    for name in ("total_timesteps", "num_steps", "num_envs", "seed", "checkpoint_interval"):
        flag = f"--{name.replace('_', '-')}"
        assert parse(agent.Args, flag, text) == parse(agent.Args, f"{flag}={text}") == {name: number}
    assert parse(sweep.Sweep, "--local", text) == {"local": number}
    assert parse(SWEEP, "--seed", 7, text, "--dry-run=1") == {"seed": (7, number), "dry_run": True}


NOT_READ = [
    ("--seed 1.5", "--seed 1.5: must be a whole number"),
    ("--seed 1e-3", "--seed 1e-3: must be a whole number"),
    ("--seed nan", "--seed nan: must be a whole number"),
    ("--seed -inf", "--seed -inf: must be a whole number"),
    ("--seed ", "--seed '': must be a whole number"),
    ("--seed ten", "--seed ten: must be a whole number"),
    ("--seed 1e19", "--seed 1e19: is too large"),
    ("--seed 1e999999999", "--seed 1e999999999: is too large"),
    ("--seed 1e-999999999", "--seed 1e-999999999: must be a whole number"),
    (f"--seed {'9' * 5000}", f"--seed {'9' * 5000}: is too large"),
    (f"--seed {'é' * 300}", f"--seed {'é' * 300}: must be a whole number"),
    ("--betas 0.9 high", "--betas high: must be a number"),
    ("--learning-rate small", "--learning-rate small: must be a number"),
    ("--gamma ", "--gamma '': must be a number"),
    ("--seed", "Missing value for argument '--seed'. Expected 1 values"),
    ("--seed --cuda", "Missing value for argument '--seed'. Expected 1 values"),
    ("--sede 3 --optimzer adam", "Unrecognized options: --sede, 3, --optimzer, adam; "),
    ("--sede 3 --optimzer adam", "Arguments similar to --sede: --seed INT"),
    ("--sede 3 --optimzer adam", "Arguments similar to --optimzer: --optimizer STR"),
    ("--sede=3", "Unrecognized options: --sede, 3; Perhaps you meant: --seed INT"),
    ("--no-seed", "Unrecognized options: --no-seed; Perhaps you meant: --seed INT"),
    ("--tyro-print-completion tcl", "Shell should be one `bash`"),
    ("adam -x 3", "Unrecognized options: adam, -x, 3"),
]


@pytest.mark.parametrize("columns", ["20", None])
@pytest.mark.parametrize("boxes", [True, False])
def test_what_cannot_be_read_is_said_whole_in_one_line(parse, monkeypatch, columns, boxes):
    """However wide the terminal is, and whether or not it shows tyro's boxes."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("tyro._fmtlib._should_use_utf8_drawing_chars", lambda: boxes)
    for words, message in NOT_READ:
        line = error_of(parse, ppo_hesscale.Args, *words.split(" "))
        assert message in line and (line.endswith(" (see script.py --help)") or "Shell" in line), line
        assert "helptext" not in line and "(default" not in line
        assert os.environ.get("COLUMNS") == columns
    for args_class, words, message in [
        (plot.Args, "--what bars", "invalid choice 'bars' for argument '--what'. Expected one of ('curves', "),
        (plot.Args, "--out a --sead", "Unrecognized options: --sead"),
        (evaluate.Args, "--episods 3", "Unrecognized options: --episods, 3; Perhaps you meant: --episodes INT"),
        (SWEEP, "--seed 1 two", "--seed two: must be a whole number"),
        (SWEEP, "--norm-obs yes perhaps", "--norm-obs perhaps: must be True or False"),
        (SWEEP, "--learning-rate 1e-3 None x", "--learning-rate x: must be a number"),
        (SWEEP, "--betas 0.9", "--betas Could not find valid parse for arguments: ['0.9']"),
        (SWEEP, "--env-id --seed 1", "--env-id has no values"),
        (SWEEP, "--cells 1", "--cells no type matching {None}|{INT INT} could be instantiated from ['1']"),
    ]:
        assert message in error_of(parse, args_class, *words.split())
    required = make_dataclass("Required", [("width", int), ("height", int)])
    line = error_of(parse, required, "--depth", "3")
    assert all(
        part in line for part in ("Missing from", "--width INT", "--height INT", "Unrecognized options: --depth")
    )


@both
def test_two_numbers_are_read_as_a_pair(parse, agent):
    assert parse(agent.Args, "--betas", "0.9", "0") == {"betas": (0.9, 0.0)}
    assert parse(SWEEP, "--betas", "0.9", "0.9", "0.99", "1e-1") == {"betas": ((0.9, 0.9), (0.99, 0.1))}


def test_help_is_as_wide_as_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setattr(sys, "argv", ["script.py", "--help"])
    with pytest.raises(SystemExit, match=r"^0$"):
        parse_args(ppo_hesscale.Args)
    assert max(map(len, capsys.readouterr().out.splitlines())) == 90


BAD_NAMES = ["", ".", "..", ".hidden", "../up", "/abs", "a/b", "a\\b", "a*", "a?", "a[1]", "checkpoint", "checkpoints"]
BAD_NAMES += ["x" * 300, "é" * 120, "new\nline", "\udcff", "tab\t"]


@both
@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_experiments_name_leads_outside_its_folder_or_hides_its_model(parse, agent, name):
    args = agent.Args(exp_name=name)
    assert error_of(check_args, args).startswith("--exp-name ")
    assert error_of(check_args, agent.Args(env_id=f"{'x' * 300}-v0")).startswith("--env-id ")
    for flag in "wandb_project_name", "wandb_entity":
        assert error_of(check_args, agent.Args(**{flag: "\udcff"})).startswith(f"--{flag.replace('_', '-')} ")
    assert error_of(check_args, agent.Args(env_id="")) == "--env-id '': must not be empty"


@both
def test_every_other_name_works(train, agent):
    for name in ("my test, é=1", "x" * 150, "-v2"):
        folder = train(agent, *PENDULUM, "--save-model", f"--exp-name={name}")
        assert hesscale_run.load_model(folder)["env_id"] == "Pendulum-v1"
        assert glob.glob(f"{glob.escape(folder)}/*.pt") == [f"{folder}/{name}.pt"]


@both
def test_a_rollout_that_cannot_fit_in_memory_is_refused(agent):
    args = agent.Args(num_steps=10**9, total_timesteps=10**10)
    expected = "num_envs * num_steps = 1,000,000,000 steps don't fit in memory"
    assert f"--num-steps 1000000000: {expected}" in error_of(check_args, args)
    args = agent.Args(num_steps=10, num_envs=10**8, total_timesteps=10**10)
    assert f"--num-envs 100000000: {expected}" in error_of(check_args, args)


# ---- notes at the start ------------------------------------------------------------------------------------


@both
def test_what_a_run_does_otherwise_than_asked_is_said_once(train, agent, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    train(agent, *PENDULUM)
    assert "note" not in capsys.readouterr().out
    train(agent, *PENDULUM[:-1], 1_150, "--cuda", "--num-envs", 2, "--num-steps", 512, "--save-model")
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if line.startswith("note")] == [
        "note: --cuda: torch finds no GPU here, so the networks are on the CPU",
        "note: --total-timesteps 1,150: whole rollouts of 1,024 make 1,024 steps",
    ]
    assert out[0].startswith("adam with step size") and out[-1].startswith("1,024 steps")


# ---- files of a machine with a GPU -------------------------------------------------------------------------


def save_as_of_cuda(monkeypatch):
    """Make torch.save write every tensor as one of the first GPU, and torch know of none."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def interrupted(train, agent, monkeypatch, *words):
    """Run an agent that is interrupted after its first rollout; return its folder."""
    before = glob.glob("runs/*")
    with monkeypatch.context() as patch:
        write = hesscale_run.Run.checkpoint

        def interrupt(run, step, get_state):
            run.signal = 10
            write(run, step, get_state)

        patch.setattr(hesscale_run.Run, "checkpoint", interrupt)
        with pytest.raises(SystemExit, match=f"^{hesscale_run.INTERRUPTED}$"):
            train(agent, *words)
    return "".join({*glob.glob("runs/*")} - {*before})


@both
@pytest.mark.parametrize("optimizer, gpus", [("scaled-adahesscale", 0), ("adahessian", 0), ("adam", 1)])
def test_a_checkpoint_of_a_gpu_goes_on_without_one(train, agent, optimizer, gpus, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = [*PENDULUM, "--optimizer", optimizer, "--cuda", "--save-model"]
    words += ["--num-minibatches", 2, "--update-epochs", 2] if agent is ppo_hesscale else []
    expected = hesscale_run.load_model(train(agent, *words))["agent"]
    get_state = hesscale_run.get_state

    def with_gpus(*args, **more):
        state = get_state(*args, **more)
        state["random_states"]["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * 2
        return state

    monkeypatch.setattr(agent, "get_state", with_gpus)
    with monkeypatch.context() as patch:
        save_as_of_cuda(patch)
        folder = interrupted(train, agent, patch, *words)
    with pytest.raises(RuntimeError, match="map_location"):  # what was written is what a GPU's run would write
        torch.load(f"{folder}/checkpoint.pt", weights_only=True)
    evaluate.main(evaluate.Args(folder, episodes=1))
    capsys.readouterr()
    restored = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: restored.append(device))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    train(agent, *words, "--resume", folder)
    assert restored == [*range(gpus)]  # of the two that it was written with
    captured = capsys.readouterr()
    assert captured.out.count("note: --cuda: torch finds no GPU here") == 1 and not captured.err
    found = hesscale_run.load_model(folder)["agent"]
    assert all(found[name].equal(p) for name, p in expected.items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@both
@pytest.mark.parametrize("optimizer", ["adam", "scaled-adahesscale", "adahessian"])
def test_a_gpus_run_is_the_cpus_but_for_rounding_and_goes_on(train, agent, optimizer, monkeypatch):
    words = [*PENDULUM, "--optimizer", optimizer, "--save-model"]
    on_cpu, whole = (hesscale_run.load_model(train(agent, *words, *cuda))["agent"] for cuda in ([], ["--cuda"]))
    if optimizer != "adahessian":  # its random vectors are the device's
        for name, p in on_cpu.items():
            torch.testing.assert_close(whole[name], p, rtol=1e-3, atol=1e-4)
    folder = interrupted(train, agent, monkeypatch, *words, "--cuda")
    train(agent, "--resume", folder)
    assert all(p.equal(whole[name]) for name, p in hesscale_run.load_model(folder)["agent"].items())


@both
def test_cuda_asks_for_a_gpu(agent, monkeypatch, tmp_path):
    class Moved(Exception):
        pass

    def to(self, device, dtype):
        raise Moved(device)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(agent.Agent, "to", to)
    for cuda in (True, False):
        with pytest.raises(Moved, match="cuda" if cuda else "cpu"):
            agent.main(agent.Args(env_id="CartPole-v1", cuda=cuda))
    assert make_to_net(torch.device("meta"))(np.ones(2)).device.type == "meta"


def test_a_saved_model_needs_no_gpu_to_be_read(train, monkeypatch):
    """Its tensors are the CPU's; and one that an earlier commit saved from a GPU is read, too."""
    on_gpu = SimpleNamespace(cpu=lambda: "on the CPU")
    assert hesscale_run.model_of(ppo_hesscale.Args(), {"weight": on_gpu}, [])["agent"] == {"weight": "on the CPU"}
    save_as_of_cuda(monkeypatch)
    folder = train(ppo_hesscale, *PENDULUM, "--save-model")
    with pytest.raises(RuntimeError, match="map_location"):
        torch.load(f"{folder}/ppo_hesscale.pt", weights_only=True)
    evaluate.main(evaluate.Args(folder, episodes=1))


@both
def test_a_checkpoint_of_other_sizes_is_one_line(train, agent, monkeypatch):
    folder = interrupted(train, agent, monkeypatch, *PENDULUM)
    checkpoint = torch.load(f"{folder}/checkpoint.pt", weights_only=True)
    checkpoint["agent"]["critic.layers.0.weight"] = torch.zeros(32, 3)
    torch.save(checkpoint, f"{folder}/checkpoint.pt")
    line = error_of(train, agent, *PENDULUM, "--resume", folder)
    assert line.startswith(f"--resume {folder}: the checkpoint doesn't fit the agent and environments of this commit (")
    assert "critic.layers.0.weight" in line and glob.glob(f"{folder}/checkpoint.pt")


# ---- playing -----------------------------------------------------------------------------------------------


@pytest.fixture
def model(train):
    """The path of a saved model, and its content."""
    path = f"{train(ppo_hesscale, *PENDULUM, '--save-model')}/ppo_hesscale.pt"
    return path, torch.load(path, weights_only=True)


def test_an_endless_episode_is_cut_off(model, capsys, monkeypatch):
    path, _ = model
    gym.register("LongPendulum-v0", lambda: gym.make("Pendulum-v1", max_episode_steps=1000))
    capsys.readouterr()
    evaluate.main(evaluate.Args(path, env_id="LongPendulum-v0", episodes=2, max_steps=300))
    first, second, last = capsys.readouterr().out.splitlines()
    for n, line in ((1, first), (2, second)):
        assert line.startswith(f"episode {n}: return -") and line.endswith(", 300 steps, cut off by --max-steps 300")
    assert last.endswith(", 300 steps; 2 cut off by --max-steps 300")
    evaluate.main(evaluate.Args(path, episodes=1, max_steps=200))  # as many as Pendulum's own limit
    assert "cut off" not in capsys.readouterr().out
    assert evaluate.Args(path).max_steps == 100_000
    clock = iter(range(0, 10**6, 4))
    monkeypatch.setattr(evaluate.time, "perf_counter", lambda: next(clock))
    evaluate.main(evaluate.Args(path, episodes=1))
    so_far, *_ = capsys.readouterr().out.splitlines()
    assert so_far.startswith("episode 1: return -") and so_far.endswith(" steps so far, at most 100,000")
    assert "--max-steps 0: must be at least 1" in error_of(evaluate.main, evaluate.Args(path, max_steps=0))


@pytest.mark.parametrize("norm_obs", [True, False])
@pytest.mark.parametrize("sample", [False, True])
def test_episodes_are_those_of_the_policy_and_the_seed(model, capsys, sample, norm_obs):
    path, content = model
    assert content["norm_obs"] is True
    other = {"obs": {name: 2 * value + 1 for name, value in content["statistics"][0]["obs"].items()}}
    # a run has statistics of each environment; evaluations are by the first one's
    torch.save(content | {"norm_obs": norm_obs, "statistics": [*content["statistics"], other]}, path)
    capsys.readouterr()
    evaluate.main(evaluate.Args(path, episodes=2, seed=5, sample=sample))
    printed = [float(line.split("return ")[1].split(",")[0]) for line in capsys.readouterr().out.splitlines()[:2]]
    weights, statistics = content["agent"], content["statistics"][0]["obs"]
    env, rng, returns = gym.make("Pendulum-v1"), np.random.default_rng([1, 5]), []
    for episode in range(2):
        obs, done, total = env.reset(seed=5 if episode == 0 else None)[0], False, 0.0
        while not done:
            x = torch.tensor((obs - statistics["mean"].numpy()) / np.sqrt(statistics["var"].numpy() + 1e-8)).float()
            x = x if norm_obs else torch.tensor(obs)
            for layer in range(3):
                x = weights[f"actor.layers.{layer}.weight"] @ x.clip(-10, 10) + weights[f"actor.layers.{layer}.bias"]
                x = x if layer == 2 else torch.tanh(x)
            noise = rng.standard_normal((1, 1), np.float32)[0] if sample else 0.0
            action = x.numpy() + noise * weights["actor.log_std"].exp().numpy()
            obs, reward, _, done, _ = env.step(np.clip(action, -2, 2))
            total += reward
        returns.append(total)
    assert printed == pytest.approx(returns, abs=0.06)  # they are rounded to one digit
    assert abs(returns[0] - returns[1]) > 1


def test_a_model_that_cannot_play_is_one_line_before_anything_is_made(model, monkeypatch):
    path, content = model
    agent, statistics = content["agent"], content["statistics"][0]
    nan, smaller = torch.full((64, 3), torch.nan), torch.zeros(32, 3)
    bad_statistics = {"obs": statistics["obs"] | {"mean": torch.full((3,), torch.inf)}}
    cases = [
        (content | {"agent": agent | {"actor.layers.0.weight": nan}}, "its actor.layers.0.weight is not finite"),
        (content | {"statistics": [statistics | bad_statistics]}, "its mean of the observations is not finite"),
        (content | {"agent": {}}, "its agent has no actor"),
        (content | {"agent": [1]}, "is not a saved model (TypeError"),
        (content | {"format": 1}, "is in format 1, this commit reads format 3; use its own commit"),
        (content | {"format": "2"}, "is in format 2, this commit reads format 3; use its own commit"),
        ({k: v for k, v in content.items() if k != "state_std"}, "has no 'state_std', which this commit reads"),
        ([1, 2], "is not a saved model (AttributeError"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "make_env", None)
        for changed, message in cases:
            torch.save(changed, path)
            assert f"{path}: {message}" in error_of(evaluate.main, evaluate.Args(path))
    cases = [
        (agent | {"critic.layers.0.weight": smaller}, "critic.layers.0.weight [32, 3] instead of [64, 3]"),
        (
            {k: p for k, p in agent.items() if k != "critic.layers.0.bias"},
            "critic.layers.0.bias missing instead of [64]",
        ),
        (agent | {"critic.extra": smaller}, "critic.extra [32, 3] instead of none"),
    ]
    for changed, message in cases:
        torch.save(content | {"agent": changed}, path)
        assert f"{path}: its agent has {message}; it is of another commit" in error_of(
            evaluate.main, evaluate.Args(path)
        )


def test_without_a_model_it_says_what_is_missing():
    assert error_of(evaluate.main, evaluate.Args()).startswith("PATH is missing: give a run's folder")
    assert error_of(plot.main, plot.Args()).startswith("--out is missing: must be how the files' names begin")


def test_no_video_replaces_another(train, capsys):
    """Neither of the same agent, nor of another run's, whose file has the same name."""
    folders = [
        train(ppo_hesscale, *PENDULUM, "--env-id", "toy_envs:Film-v0", "--save-model", "--seed", s) for s in "12"
    ]
    os.replace(f"{folders[0]}/ppo_hesscale.pt", "alone.pt")
    paths = "alone.pt", "alone.pt", folders[1], folders[1], f"{folders[1]}/ppo_hesscale.pt"
    name = os.path.basename(folders[1])
    names = "alone", "alone", name, name, f"{name}__ppo_hesscale"
    made = [f"videos/{n}__evaluation{end}" for n, end in zip(names, ("", "_1", "", "_1", ""), strict=True)]
    for path, folder in zip(paths, made, strict=True):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*Overwriting existing videos")
            evaluate.main(evaluate.Args(path, episodes=2, max_steps=3, capture_video=True))
        assert capsys.readouterr().out.endswith(f"; videos in {folder}\n")
        assert sorted(os.listdir(folder)) == ["rl-video-episode-0.mp4", "rl-video-episode-1.mp4"]
    error_of(evaluate.main, evaluate.Args("alone.pt", capture_video=True, env_id="CartPole-v1"))
    assert sorted(glob.glob("videos/*")) == sorted(made)  # what fails leaves none
    os.rename("videos", "kept")
    open("videos", "w").close()
    assert error_of(evaluate.main, evaluate.Args("alone.pt", capture_video=True)).startswith("--capture-video: ")


# ---- the end -----------------------------------------------------------------------------------------------

WALKER = "agents/walker2d.pt"


def begin(script, *flags, **options):
    """Start a script with pipes, which hold back its output as usual, in which it can write ASCII alone."""
    command = [sys.executable, ROOT / "scripts" / script, *flags]
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": ""}
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) | options
    return subprocess.Popen([*map(str, command)], env=os.environ | environment, **options)


@pytest.mark.parametrize(
    "script, flags",
    [
        ("sweep.py", "quick --dry-run --no-archive"),
        ("evaluate.py", f"{ROOT / WALKER} --episodes 3 --max-steps 2"),
        ("plot.py", "--out p --what table"),
        ("archive.py", "mine quick"),
    ],
)
def test_output_that_nobody_reads_is_no_traceback(tmp_path, script, flags):
    make_run(tmp_path / "runs", flat(1.0, start=0.0))
    reads, writes = os.pipe()
    os.close(reads)
    process = begin(script, *flags.split(), stdout=writes, cwd=tmp_path)
    os.close(writes)
    assert process.communicate()[1] == "" and process.returncode == 141


def test_an_interrupted_evaluation_says_what_it_has_played():
    process = begin("evaluate.py", ROOT / WALKER, "--episodes", 10**6, "--max-steps", 2)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    *told, last = process.stdout.read().splitlines()
    number = int(re.match(r"Walker2d-v4, (\d+) episodes, most likely actions: return \S+ \? ", last)[1])
    assert number - len(told) in (1, 2)  # the first was read before, and the interrupt may come before a line
    assert process.communicate()[1] == "" and process.returncode == 130


def test_a_plot_that_is_interrupted_as_it_reads_is_no_traceback(tmp_path):
    make_run(tmp_path / "runs", flat(1.0), seed=2)  # so that a second process waits
    (events,) = make_run(tmp_path / "runs", flat(1.0)).glob("events*")
    events.unlink()
    os.mkfifo(events)  # whoever reads it waits for a writer
    process = begin("plot.py", "--out", "p", cwd=tmp_path)
    writer = []

    def is_read():
        with contextlib.suppress(OSError):  # nobody reads it yet
            writer.append(os.open(events, os.O_WRONLY | os.O_NONBLOCK))
        return writer

    wait_for(is_read, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.communicate() == ("", "") and process.returncode == 130
    os.close(*writer)


# ---- rendering ---------------------------------------------------------------------------------------------


@pytest.fixture
def mujoco_without_library(monkeypatch):
    """Register an environment that behaves as MuJoCo's where the library of MUJOCO_GL is not installed."""

    def make(**options):
        if os.environ.get("MUJOCO_GL", "disable") != "disable":
            raise AttributeError("'NoneType' object has no attribute 'glGetError'")
        sys.modules.setdefault("mujoco", SimpleNamespace())
        return gym.make("Pendulum-v1").unwrapped

    gym.register("NoLibrary-v0", make)
    monkeypatch.setitem(sys.modules, "mujoco", SimpleNamespace())
    yield SimpleNamespace(env_id="NoLibrary-v0", gamma=0.99, norm_obs=True, norm_reward=True)
    gym.registry.pop("NoLibrary-v0")


ADVICE = {
    "osmesa": "('NoneType' object has no attribute 'glGetError'); MUJOCO_GL=osmesa needs the package libosmesa6",
    "egl": "('NoneType' object has no attribute 'glGetError'); MUJOCO_GL=egl needs the packages libegl1 and libgl1",
    "bogus": "MUJOCO_GL=bogus must be egl, osmesa or glfw",
    "glfw": "without a display, set MUJOCO_GL=osmesa, which needs the package libosmesa6; or MUJOCO_GL=egl, which",
}


@pytest.mark.parametrize("backend", ADVICE)
def test_a_missing_library_matters_only_where_something_is_rendered(
    mujoco_without_library, backend, monkeypatch, tmp_path
):
    args = mujoco_without_library
    monkeypatch.setenv("MUJOCO_GL", backend)
    hesscale_envs.make_env(args).close()
    assert os.environ["MUJOCO_GL"] == backend
    line = error_of(hesscale_envs.make_env, args, str(tmp_path))
    assert line.startswith("--capture-video: NoLibrary-v0 can't be rendered (") and ADVICE[backend] in line
    args.env_id = "Hoper-v4"
    for video_folder in (None, str(tmp_path)):
        line = error_of(hesscale_envs.make_env, args, video_folder)
        assert line.startswith("--env-id Hoper-v4: ") and "MUJOCO_GL" not in line
        assert os.environ["MUJOCO_GL"] == backend


def test_no_advice_on_mujoco_where_it_is_not_used(mujoco_without_library, monkeypatch, tmp_path):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delitem(sys.modules, "mujoco")
    monkeypatch.setattr("gymnasium.envs.classic_control.PendulumEnv.render", lambda env: 1 / 0)
    args = mujoco_without_library
    args.env_id = "Pendulum-v1"
    line = error_of(hesscale_envs.make_env, args, str(tmp_path))
    assert line == "--capture-video: Pendulum-v1 can't be rendered (division by zero); leave the flag out"


@both
def test_wandb_adds_to_a_name_before_it_becomes_a_folder(agent, monkeypatch):
    monkeypatch.setattr("hesscale_utils.check_extras", lambda args: None)
    check_args(agent.Args(exp_name="x" * 185))
    assert "--exp-name xx" in error_of(check_args, agent.Args(exp_name="x" * 185, track=True))


def test_what_can_not_be_printed_is_one_line():
    with open("/dev/full", "w") as full:
        process = begin("evaluate.py", ROOT / WALKER, "--episodes", 1, "--max-steps", 5, stdout=full)
    err = process.communicate()[1]
    assert process.returncode == 1 and err.startswith("error: the output can't be written ([Errno 28]")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "words, message",
    [
        (["quick", "--slurm", "--sbatch=--comment='a"], "--sbatch --comment='a: No closing quotation; close each"),
        (["quick", "--cells", "5", "1"], "--cells 5 1: takes none; give the first, from 0, and the last + 1"),
        (["quick", "--cells", "-2", "1"], "--cells -2 1: takes none"),
        (["quick", "--cells", "100", "200"], "--cells 100 200: takes none; the grid has 12 cells, the first is 0"),
        ([""], "'': there is no such grid file"),
        (["quick", "--exp-name", "a/b"], "--exp-name a/b: it names the model's file"),
        (["quick", "--seed"], "--seed has no values"),
    ],
)
def test_a_sweep_of_nothing_is_one_line(words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sweep.py", "--dry-run", *words])
    assert message in error_of(sweep.main)
    assert not [*tmp_path.iterdir()]


def test_an_evaluations_length_is_the_mean_over_episodes(model, capsys, monkeypatch):
    path, _ = model
    lengths = iter([100, 20, 30])

    def play(agent, env, *args):
        env.episode_length = next(lengths)
        return True

    monkeypatch.setattr(evaluate, "play_episode", play)
    capsys.readouterr()
    evaluate.main(evaluate.Args(path, episodes=3))
    assert capsys.readouterr().out.endswith(" 50 steps\n")
