"""The benchmarks run, with and without the peers that they measure against."""

import ast
import csv
import os
import re
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_runs import run_script

sys.path.append(f"{ROOT}/benchmarks")
import timing


def test_tables_are_appended_with_one_head(tmp_path, capsys):
    times = {"a": np.array([2.0, 2.0]), "b": np.array([1.0, 1.0])}
    for title in "first", "second":
        assert timing.report(title, times, "a", path=tmp_path / "t.csv") == {"a": 1, "b": 0.5}
    with (tmp_path / "t.csv").open() as file:
        rows = [(row["benchmark"], row["name"], row["median"], row["ratio"]) for row in csv.DictReader(file)]
    assert rows == [(title, *row) for title in ("first", "second") for row in (("a", "2", "1"), ("b", "1", "0.5"))]
    assert "second" in capsys.readouterr().out


PEERS = ["--peers-python", "no/python"]  # CI measures without them
BENCHMARKS = {
    "minibatch.py": ["CleanRL's way", "scaled-adahesscale on tensors", "one flat vector", "NormalizedEnv"],
    "critic.py": ["skipped: ", "run benchmarks/peers.sh", "torch.optim.Adam: gradient as ours", "scaled-adahesscale"],
    "convolutions.py": ["run benchmarks/peers.sh", "update of 3C3D with 1 images", "adahesscalegn"],
    "cost.py": ["run benchmarks/peers.sh", "update over the number of layers", "AdaHesScaleGN, ours"],
    "whole_run.py": ["CleanRL is skipped; to have it: git clone", "Stable-Baselines3 is skipped", "bare environment"],
}


@pytest.mark.parametrize("script", BENCHMARKS)
def test_the_benchmarks_run_and_quick_keeps_no_table(tmp_path, script):
    before = {path: path.read_bytes() for path in (ROOT / "results").rglob("*.*") if path.is_file()}
    peers = PEERS if script != "minibatch.py" else []
    with mock.patch.dict(os.environ):  # they limit the threads by it
        code, out, err = run_script(tmp_path, f"benchmarks/{script}", "--quick", *peers)
    assert code == 0, err
    for text in BENCHMARKS[script]:
        assert text in out
    assert not list(tmp_path.iterdir())
    assert {path: path.read_bytes() for path in (ROOT / "results").rglob("*.*") if path.is_file()} == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_convolutions_run_on_a_gpu_and_agree_with_autograd(tmp_path):
    with mock.patch.dict(os.environ):
        code, out, err = run_script(tmp_path, "benchmarks/convolutions.py", "--quick", "--cuda", *PEERS)
    assert code == 0, err
    assert "torch.optim.Adam: gradient as ours" in out and f" on {torch.cuda.get_device_name()}" in out


@pytest.mark.parametrize("script", ["critic.py", "convolutions.py", "sb3_run.py"])
def test_the_peers_environment_has_the_packages_that_its_scripts_import(script):
    """CI does not make it, and so would not see that one is missing."""
    installed = set(re.findall(r"^([\w-]+)==", (ROOT / "benchmarks/peers.txt").read_text().replace("-", "_"), re.M))
    folders = [ROOT, *(ROOT / name for name in ("benchmarks", "scripts", "experiments"))]
    scripts, imported = [ROOT / "benchmarks" / script], set()
    while scripts:
        for node in ast.parse(scripts.pop().read_text()).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                modules = {name.partition(".")[0] for name in names} - imported
                imported |= modules
                paths = [folder / f"{module}.py" for module in modules for folder in folders]
                scripts += [path for path in paths if path.exists()]
    ours = {path.stem for folder in folders for path in folder.glob("*.py")}
    assert "torch" in imported
    assert imported - ours - sys.stdlib_module_names <= installed


@pytest.mark.parametrize(
    "script, flags, message",
    [
        ("critic.py", "--hesscale no/folder", "--hesscale no/folder: has no optimizers/adahesscale.py; git clone"),
        ("critic.py", "--rounds 0", "--rounds 0: must be at least 1"),
        ("critic.py", "--quick --csv a.csv", "--csv a.csv: --quick keeps no table; leave one of the two out"),
        ("critic.py", "--csv no/a.csv", "--csv no/a.csv: can't be written; give a file in a folder that exists"),
        ("critic.py", "--csv /dev/null/a.csv", "--csv /dev/null/a.csv: can't be written"),
        ("cost.py", "--quick --csv a.csv", "--csv a.csv: --quick keeps no table; leave one of the two out"),
        ("cost.py", "--rounds 1.5", "--rounds 1.5: must be a whole number"),
        ("minibatch.py", "--quick --csv a.csv", "--csv a.csv: --quick keeps no table; leave one of the two out"),
        ("minibatch.py", "--rounds 0", "--rounds 0: must be at least 1"),
        ("whole_run.py", "--quick --csv a.csv", "a.csv: --quick keeps no table; leave one of the two out"),
        ("cost.py", "--batch 0", "--batch 0: must be at least 1"),
        ("whole_run.py", "--cleanrl no/folder", "no/folder: has no cleanrl/ppo_continuous_action.py; git clone"),
        ("whole_run.py", "--steps 10", "10: must be a whole number of at least 2048"),
    ],
)
def test_bad_input_to_a_benchmark_is_one_line(tmp_path, script, flags, message):
    code, out, err = run_script(tmp_path, f"benchmarks/{script}", *flags.split())
    assert code != 0 and message in err.splitlines()[-1] and out == ""


@pytest.mark.parametrize(
    "script", [*ROOT.glob("*/*.sh"), *ROOT.glob("scripts/*.sbatch")], ids=lambda path: str(path.relative_to(ROOT))
)
def test_shell_scripts_parse(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0
