"""The tools around the agents run, and their tables hold what the runs did."""

import csv
import os
import subprocess
import sys

import pytest
from conftest import ROOT


def tool(cwd, *command):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_grid_is_run_once_kept_and_drawn(tmp_path):
    grid = [ROOT / "experiments/grid.py", "--out", "toy", "--env-ids", "toy_envs:Shapes-v0"]
    grid += ["--optimizers", "adam", "scaled-adahesscale", "--learning-rates", "1e-3", "1e30", "--seeds", "1", "2"]
    grid += ["--total-timesteps", "640", "--extra=--num-steps 64", "--jobs", "2"]
    done = tool(tmp_path, *grid)
    assert done.returncode == 0, done.stderr
    table = rows(tmp_path / "toy.csv")
    assert len(table) == 8
    state = {(row["optimizer"], row["learning_rate"]): row["state"] for row in table}
    assert state["adam", "1e30"] == "diverged"  # and is counted, not dropped
    assert state["scaled-adahesscale", "1e30"] == "finished"  # which is what step-size scaling is for
    curve = [row for row in rows(tmp_path / "toy_curves.csv") if row["seed"] == "1" and row["optimizer"] == "adam"]
    assert len(curve) > 5 and all(float(row["return"]) != 0 for row in curve)

    again = tool(tmp_path, *grid)
    assert "8 done already" in again.stdout
    assert rows(tmp_path / "toy.csv") == table
    for what in ("curves", "step-sizes"):
        done = tool(tmp_path, ROOT / "experiments/plot.py", what, "toy")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "toy.png").stat().st_size > 10_000
        (tmp_path / "toy.png").unlink()


def test_a_grid_stops_at_a_run_that_can_not_start(tmp_path):
    grid = [ROOT / "experiments/grid.py", "--out", "toy", "--env-ids", "Hoper-v4", "--optimizers", "adam"]
    done = tool(tmp_path, *grid)
    assert done.returncode != 0
    assert "error: --env-id Hoper-v4" in done.stderr
    assert not (tmp_path / "toy.csv").exists()


def test_the_minibatch_benchmark_runs(tmp_path):
    done = tool(tmp_path, ROOT / "benchmarks/minibatch.py", "--quick", "--csv", "table.csv")
    assert done.returncode == 0, done.stderr
    for line in ("CleanRL's way", "scaled-adahesscale on tensors", "one flat vector", "NormalizedEnv"):
        assert line in done.stdout
        assert line in (tmp_path / "table.csv").read_text()


PEERS = ["--peers-python", "no/python"]  # CI measures without them
BENCHMARKS = {
    "critic.py": ["skipped: ", "run benchmarks/peers.sh", "torch.optim.Adam: gradient as ours", "scaled-adahesscale"],
    "cost.py": ["run benchmarks/peers.sh", "update over the number of layers", "AdaHesScaleGN, ours"],
    "whole_run.py": ["CleanRL is skipped; to have it: git clone", "Stable-Baselines3 is skipped", "bare environment"],
}


@pytest.mark.parametrize("script", BENCHMARKS)
def test_the_other_benchmarks_run(tmp_path, script):
    done = tool(tmp_path, ROOT / "benchmarks" / script, "--quick", *PEERS)
    assert done.returncode == 0, done.stderr
    for text in BENCHMARKS[script]:
        assert text in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "script, flags, message",
    [
        ("critic.py", "--hesscale no/folder", "--hesscale no/folder: has no optimizers/adahesscale.py; git clone"),
        ("critic.py", "--rounds 0", "--rounds 0: must be at least 1"),
        ("cost.py", "--batch 0", "--batch 0: must be at least 1"),
        ("whole_run.py", "--cleanrl no/folder", "no/folder: has no cleanrl/ppo_continuous_action.py; git clone"),
        ("whole_run.py", "--steps 10", "10: must be a whole number of at least 2048"),
    ],
)
def test_bad_input_to_a_benchmark_is_one_line(tmp_path, script, flags, message):
    done = tool(tmp_path, ROOT / "benchmarks" / script, *flags.split())
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "script",
    ["scripts/run.sh", "scripts/test.sh", "scripts/venv.sh", "experiments/results.sh", "experiments/step_sizes.sh"],
)
def test_shell_scripts_parse(script):
    assert subprocess.run(["bash", "-n", ROOT / script]).returncode == 0
