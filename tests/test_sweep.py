"""A sweep runs each cell of its grid once, whatever stops it, here and on SLURM."""

import dataclasses
import datetime
import errno
import glob
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from unittest import mock

import filelock
import pytest
import slurm_node
import yaml
from conftest import ROOT
from test_runs import ENVIRONMENT, line, outcome, run_script, status, wait_for

import hesscale_run
from hesscale_utils import parse_args

sys.path.append(str(ROOT / "scripts"))
import sweep
from done import duration, estimate, find_runs
from grid import agent_name, load_agent, read_cells, write_cells

GRID = "[[grid]]\nagent = 'ppo'\n"
DRIFT = "--env-id toy_envs:Drift-v0 --num-steps 128 --checkpoint-interval 1024 --save-model True".split()


def command(*flags):
    return [sys.executable, str(ROOT / "scripts/sweep.py"), *map(str, flags)]


def start(cwd, *flags):
    pipe = subprocess.PIPE
    return subprocess.Popen(command(*flags), cwd=cwd, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True)


def run(cwd, *flags):
    """Run a sweep to its end, in this process; return its exit status, output and errors."""
    handlers = {signum: signal.getsignal(signum) for signum in hesscale_run.SIGNALS}
    try:
        with mock.patch.dict(os.environ, ENVIRONMENT, clear=True):
            return run_script(cwd, "scripts/sweep.py", *flags)
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def runs(cwd):
    """The states of the runs in a folder, {folder: state}."""
    return {f: s["state"] for f in glob.glob(f"{cwd}/runs/*") if (s := hesscale_run.read_status(f))}


def outcomes(cwd):
    """What came of each finished run, {key: outcome}."""
    finished = [folder for folder, state in runs(cwd).items() if state == "finished"]
    keys = [hesscale_run.identity(status(f)["script"], status(f)["args"]) for f in finished]
    assert len(set(keys)) == len(keys), "a cell was run twice"
    return {key: outcome(folder) for key, folder in zip(keys, finished, strict=True)}


# ---- the grid ----------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_and_the_first_seeds_come_first():
    cells = list(read_cells([], {"agent": ["ppo", "a2c"], "seed": [3, 1], "optimizer": ["adam", "sgd"]}).values())
    what = [(agent_name(c.script), c.args.seed, c.args.optimizer, c.args.learning_rate) for c in cells]
    ppo, a2c = (load_agent(name).LEARNING_RATES for name in ("ppo", "a2c"))
    assert what == [
        (agent, seed, optimizer, rates[optimizer])
        for agent, rates in (("ppo", ppo), ("a2c", a2c))
        for seed, optimizer in itertools.product((3, 1), ("adam", "sgd"))
    ]


def test_the_papers_grids_are_9000_runs():
    performance, robustness = read_cells(["performance"]), read_cells(["robustness"])
    both = read_cells(["performance", "robustness"])
    assert (len(performance), len(robustness), len(both)) == (5400, 7200, 9000)
    assert both.keys() == performance.keys() | robustness.keys()
    values = lambda name: {getattr(cell.args, name) for cell in both.values()}  # noqa: E731
    assert [len(values(name)) for name in ("env_id", "optimizer", "learning_rate", "seed")] == [10, 5, 9, 10]
    steps = {
        (agent_name(c.script), c.args.env_id.startswith("Humanoid"), c.args.total_timesteps) for c in both.values()
    }
    assert steps == {("ppo", a, 10**6) for a in (True, False)} | {("a2c", True, 10**7), ("a2c", False, 2 * 10**6)}


@pytest.mark.parametrize("path", sorted((ROOT / "scripts/grids").glob("*.toml")), ids=lambda path: path.stem)
def test_every_grid_that_comes_along_can_be_run(path):
    assert read_cells([path.stem]).keys() == read_cells([str(path)]).keys() != set()


def test_flags_replace_the_files_values():
    cells = read_cells(["quick"], {"seed": [7], "num_envs": [1, 2]}).values()
    assert len(cells) == 8 and {(cell.args.seed, cell.args.num_envs) for cell in cells} == {(7, 1), (7, 2)}


UNUSUAL = {
    "norm_obs": [False], "norm_adv": [True, False], "max_grad_norm": [0.5], "learning_rate": [1], "track": [True],
    "betas": [[0.9, 0.9]],
    "wandb_entity": ["a b's"], "env_id": ["toy_envs:Drift-v0", "Hopper-v4"], "save_model": [True], "delta": [1e-5],
    "exp_name": ["-x"],
}  # fmt: skip


def test_a_cells_command_line_gives_the_cells_arguments(monkeypatch):
    for cell in read_cells([], UNUSUAL | {"agent": ["ppo"]}).values():
        monkeypatch.setattr(sys, "argv", ["ppo_hesscale.py", *cell.flags()])
        assert parse_args(load_agent("ppo").Args) == cell.args


@pytest.mark.parametrize(
    "given, betas",
    [
        ("[0.9, 0.9]", [(0.9, 0.9)]),
        ("[0, 0.9]", [(0.0, 0.9)]),
        ("[[0.9, 0.9], [0.9, 0.999]]", [(0.9, 0.9), (0.9, 0.999)]),
        ("[[0, 0.9]]", [(0.0, 0.9)]),
    ],
)
def test_pairs_are_the_same_cells_from_a_file_and_a_command_line(tmp_path, monkeypatch, given, betas):
    (tmp_path / "grid.toml").write_text(f"{GRID}betas = {given}\n")
    keys = [*read_cells([str(tmp_path / "grid.toml")])]
    words = [str(beta) for pair in betas for beta in pair]
    monkeypatch.setattr(sys, "argv", ["sweep.py", "--agent", "ppo", "--betas", *words])
    parsed = parse_args(dataclasses.make_dataclass("Args", sweep.sweep_flags(), bases=(sweep.Sweep,)))
    assert parsed.betas == tuple(betas) and [*read_cells([], {"agent": ["ppo"], "betas": parsed.betas})] == keys
    # JSON has no tuples, and tells 0 from 0.0
    assert [json.dumps(json.loads(key)[1]["betas"]) for key in keys] == [json.dumps(pair) for pair in betas]


def test_a_file_may_write_flags_and_whole_numbers_as_the_command_line_does(tmp_path):
    (tmp_path / "grid.toml").write_text(f"{GRID}env-id = 'Ant-v4'\ntotal-timesteps = 1e6\nseed = [1, 2.0]\n")
    cells = read_cells([str(tmp_path / "grid.toml")])
    values = {"agent": ["ppo"], "env_id": ["Ant-v4"], "total_timesteps": [1_000_000], "seed": [1, 2]}
    assert [*cells] == [*read_cells([], values)]


def test_a_cells_words_tell_it_from_all_others_of_its_grid():
    given = {"delta": [1e-8, 1e-5], "env_kwargs": ["", "x=1"], "num_steps": [64, 128], "total_timesteps": [128, 256]}
    words = [str(cell) for cell in read_cells([], given | {"agent": ["a2c"], "norm_obs": [False]}).values()]
    assert len({*words}) == 16
    assert words[0].endswith(" seed 1, delta 1e-08, env_kwargs '', num_steps 64, total_timesteps 128")
    assert all(
        str(cell).endswith(f" seed {cell.args.seed}") for cell in read_cells(["quick"]).values()
    )  # of two agents


def test_written_cells_are_read_as_they_were(tmp_path):
    cells = read_cells([], UNUSUAL | {"agent": ["ppo"]})
    write_cells(tmp_path / "cells.toml", cells.values())
    again = read_cells([str(tmp_path / "cells.toml")])
    assert [cell.args for cell in again.values()] == [cell.args for cell in cells.values()] and len(again) == 4


def test_a_grid_may_have_a_mark_before_it_and_any_letter_in_it(tmp_path):
    cells = read_cells([], {"agent": ["ppo"], "exp_name": ["\N{ROCKET}"]})
    write_cells(tmp_path / "cells.toml", cells.values())
    text = (tmp_path / "cells.toml").read_text("utf-8")
    (tmp_path / "cells.toml").write_text(text, "utf-8-sig")
    assert read_cells([str(tmp_path / "cells.toml")]).keys() == cells.keys()


@pytest.mark.parametrize(
    "grid, flags, message",
    [
        ("", "", "error: an empty grid: name a grid file (a2c_agents, figure7, "),
        ("", "nothing", "nothing: there is no such grid file; name a TOML file or one of a2c_agents, figure7, "),
        ("", "--env-id Hopper-v4", "--agent is missing: name ppo, a2c or the path of a script"),
        ("", "--agent dqn", "--agent dqn: choose ppo, a2c or the path of a script"),
        ("", "--agent ../conftest.py", "--agent ../conftest.py: choose ppo, a2c or the path"),
        ("", "--agent hesscale_core.py", "hesscale_core.py: the script has no Args and LEARNING_RATES"),
        ("", "--agent ppo ppo_hesscale.py", "--agent ppo ppo_hesscale.py: names a script twice, or two with one name"),
        ("", "--agent ppo --optimizer adan", "--optimizer adan: choose one of sgd, adam, "),
        ("", "--agent ppo --env-id Hoper-v4", "--env-id Hoper-v4: Environment `Hoper` doesn't exist"),
        ("", "--agent ppo --seed 1 2 1", "--seed 1 2 1: names a value twice"),
        ("", "--agent ppo --seed one", "(see sweep.py --help)"),
        ("", "--agent ppo --learning-rate 0.1 -1", "--learning-rate -1.0: must be a number above 0"),
        ("", "--agent ppo a2c --clip-coef 0.1", "--clip-coef: is not a flag that a sweep of a2c_hesscale.py can have"),
        ("", "--agent ppo --num-minibatches 32 33", "--num-minibatches 33: must divide the batch"),
        ("", "--agent ppo --checkpoint-interval 1 2", "has two values of checkpoint_interval, which do not make two"),
        ("", "--agent ppo --local 0", "--local 0: must be at least 1"),
        ("", "--agent ppo --local 2 --slurm", "--local 2: the runs go here or to SLURM, not both"),
        ("", "--agent ppo --runs-per-task 4", "--runs-per-task 4: is for --slurm, which is missing"),
        (GRID + "seed = []", "grid.toml", "grid.toml: --seed has no values"),
        (GRID + "seeds = [1]", "grid.toml", "grid.toml: --seeds: is not a flag that a sweep of ppo_hesscale.py can"),
        (GRID + "resume = 'auto'", "grid.toml", "grid.toml: --resume: is not a flag that a sweep of"),
        (GRID + "seed = [1, '2']", "grid.toml", "grid.toml: --seed '2': must be of type int"),
        (GRID + "seed = [1, 1.0]", "grid.toml", "grid.toml: --seed 1 1: names a value twice"),
        (GRID + "seed = [1, 1.5]", "grid.toml", "grid.toml: --seed 1.5: must be of type int"),
        (GRID + "num-envs = 1\nnum_envs = 2", "grid.toml", "num-envs: is there with _ too; name a flag once"),
        (GRID + "norm_obs = 1", "grid.toml", "grid.toml: --norm-obs 1: must be of type bool"),
        (GRID + "betas = 0.9", "grid.toml", "grid.toml: --betas [0.9]: must be of type tuple[float, float]"),
        (GRID + "betas = [0.9, 0.9, 0.9]", "grid.toml", "--betas [0.9, 0.9, 0.9]: must be of type tuple[float, float]"),
        (GRID + "betas = [[0.9, 0.9], [0.9]]", "grid.toml", "--betas [0.9]: must be of type tuple[float, float]"),
        (GRID + "betas = [['a', 0.9]]", "grid.toml", "grid.toml: --betas 'a': must be of type float"),
        (GRID + "betas = [0.9, [0.9, 0.9]]", "grid.toml", "grid.toml: --betas [0.9, 0.9]: must be of type float"),
        (GRID + "betas = [[0, 0.9], [0.0, 0.9]]", "grid.toml", "--betas (0.0, 0.9) (0.0, 0.9): names a value twice"),
        (GRID + "selection = [true, false]", "grid.toml", "grid.toml: selection True False: must be one value"),
        (GRID + "name = 3", "grid.toml", "grid.toml: name 3: must be of type str"),
        (GRID + "\n" + GRID + 'name = "other"', "grid.toml", "has two names, '' and 'other'"),
        ("agent = 'ppo'", "grid.toml", "grid.toml: must consist of [[grid]] tables, not of agent"),
        ("[grid]\nagent = 'ppo'", "grid.toml", "grid.toml: must consist of [[grid]] tables"),
        ("[[grid]\n", "grid.toml", "grid.toml: can't be read as TOML"),
    ],
)
def test_a_grid_that_cannot_be_meant_is_one_line(tmp_path, monkeypatch, capsys, grid, flags, message):
    (tmp_path / "grid.toml").write_text(grid)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sweep.py", *flags.split()])
    with pytest.raises(SystemExit) as end:
        sweep.main()
    assert end.value.code.startswith("error: ") and message in end.value.code and "\n" not in end.value.code
    assert "".join(capsys.readouterr()) == "" and os.listdir(tmp_path) == ["grid.toml"]


# ---- here, N at a time -------------------------------------------------------------------------------------


def test_a_sweep_that_is_stopped_and_killed_is_completed_by_the_same_command(tmp_path):
    """Ctrl-C once, then SIGKILL to all of it; the ends are bit for bit those of a sweep that nothing stopped."""
    flags = ["--agent", "a2c", *DRIFT, "--optimizer", "adam", "adahesscale", "--seed", 1, 2, "--local", 2]
    flags += ["--total-timesteps", 12_288]  # long enough that none ends between its first checkpoint and the signal
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    code, out, err = run(whole, *flags)
    assert code == 0 and err == "", err
    assert "4 runs: 4 finished;" in out.splitlines()[-1]

    begun = lambda n: len(glob.glob(f"{broken}/runs/*/checkpoint.pt")) >= n  # noqa: E731
    process = start(broken, *flags)
    wait_for(lambda: begun(1), process)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and out.endswith("the same command goes on from here\n")
    assert "finished" not in runs(broken).values() and "interrupted" in runs(broken).values()

    process = start(broken, *flags)
    wait_for(lambda: any(status(f)["resumed_at"] for f in runs(broken)), process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert len(children) == 2
    for pid in [process.pid, *map(int, children)]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    kept = [os.path.dirname(file) for file in glob.glob(f"{broken}/runs/*/checkpoint.pt")]
    assert kept  # who was killed before the first checkpoint begins anew, in another folder

    code, out, _ = run(broken, *flags)
    assert code == 0, out
    assert outcomes(broken) == outcomes(whole) and len(outcomes(whole)) == 4
    assert {runs(broken)[folder] for folder in kept} == {"finished"}  # each went on in its folder

    before = {f: os.stat(f"{f}/status.json").st_mtime_ns for f in runs(broken)}
    code, out, _ = run(broken, *flags)
    assert code == 0 and out == "4 runs: 4 finished\n"
    assert before == {f: os.stat(f"{f}/status.json").st_mtime_ns for f in runs(broken)}


def test_what_diverges_is_counted_and_what_fails_is_told_and_tried_again(tmp_path):
    grid = ["--agent", "a2c", "--env-id", "toy_envs:Shapes-v0", "toy_envs:Raises-v0", "--optimizer", "adam"]
    grid += ["--learning-rate", "1e-3", "1e30", "--total-timesteps", "640"]
    code, out, _ = run(tmp_path, *grid, "--local", "2")
    assert code == 1
    assert "4 runs: not begun" not in out
    states = {re.search(r"\] (.*): (\w+)", text).groups() for text in out.splitlines() if text.startswith("[")}
    where = "a2c toy_envs:{} adam {} seed 1"
    assert states == {
        (where.format("Shapes-v0", "0.001"), "finished"),
        (where.format("Shapes-v0", "1e+30"), "diverged"),
        (where.format("Raises-v0", "0.001"), "failed"),
        (where.format("Raises-v0", "1e+30"), "diverged"),
    }
    assert "error: --env-id toy_envs:Raises-v0: the environment raised in step" in out
    code, again, _ = run(tmp_path, *grid)
    assert code == 1 and "1 finished" in again.splitlines()[-1]
    assert len([text for text in again.splitlines() if text.startswith("[")]) == 1  # the failed one alone

    code, listed, _ = run(tmp_path, *grid, "--dry-run")
    assert code == 0
    assert sorted(text.split()[0] for text in listed.splitlines()[:4]) == ["diverged", "diverged", "failed", "finished"]
    assert listed.splitlines()[-1].startswith("4 runs: 2 diverged, 1 ")


def test_a_listed_command_is_the_cells_own(tmp_path):
    """What --dry-run lists, typed by hand, is what the sweep then takes for done."""
    grid = ["--agent", "a2c", *DRIFT, "--optimizer", "adam", "sgd", "--total-timesteps", "640", "--norm-obs", "False"]
    _, listed, _ = run(tmp_path, *grid, "--dry-run")
    assert not (tmp_path / "runs").exists()
    command = shlex.split(listed.splitlines()[0].removeprefix("not begun "))
    assert (
        subprocess.run([sys.executable, *command], cwd=tmp_path, env=ENVIRONMENT, capture_output=True).returncode == 0
    )
    _, listed, _ = run(tmp_path, *grid, "--dry-run")
    assert [text.split("  ")[0] for text in listed.splitlines()[:2]] == ["finished", "not begun"]
    assert "2 runs: 1 finished, 1 not begun; left: about" in listed


def test_two_sweeps_in_a_folder_share_the_work(tmp_path):
    flags = ["--agent", "a2c", *DRIFT, "--seed", "1", "2", "3", "4", "--total-timesteps", "5120", "--local", "1"]
    both = [start(tmp_path, *flags) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and "4 runs: 4 finished" in out.splitlines()[-1], out + err
    assert len(outcomes(tmp_path)) == len(glob.glob(f"{tmp_path}/runs/*")) == 4


def test_runs_are_one_thread_each_and_no_more_than_asked_for(tmp_path, monkeypatch):
    script = (ROOT / "a2c_hesscale.py").read_text()
    told = "import os, sys, time\nprint('warning:', os.environ['OMP_NUM_THREADS'], time.time(), file=sys.stderr)\n"
    ended = told.replace("import os", "    import os").replace("\nprint", "\n    print")
    (tmp_path / "own.py").write_text(script.replace('"""\n\nimport ', f'"""\n{told}import ', 1) + ended)
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    monkeypatch.setitem(ENVIRONMENT, "OMP_NUM_THREADS", "7")
    grid = ["--agent", "own.py", "--env-id", "toy_envs:Toggle-v0", "--seed", 1, 2, 3, 4, "--total-timesteps", 5]
    code, out, err = run(tmp_path, *grid, "--local", "2")
    assert code == 0, out + err
    told = re.findall(r"warning: (\d+) ([\d.]+)", out)
    assert len(told) == 8 and {threads for threads, _ in told} == {"1"}
    begins_and_ends = sorted((float(at), 1 - 2 * (n % 2)) for n, (_, at) in enumerate(told))
    assert max(itertools.accumulate(change for _, change in begins_and_ends)) == 2


def own_agent(folder, monkeypatch, *lines):
    """Write own.py, A2C that runs these lines at its end."""
    script = (ROOT / "a2c_hesscale.py").read_text()
    (folder / "own.py").write_text(script + "".join(f"    {line}\n" for line in lines))
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    return ["--agent", "own.py", "--env-id", "toy_envs:Toggle-v0", "--total-timesteps", 5, "--local", 1]


def test_a_process_that_outlives_its_run_does_not_hold_up_the_sweep(tmp_path, monkeypatch):
    """As W&B's does, which inherits the run's stderr."""
    leave = "open('left', 'w').write(str(subprocess.Popen(['sleep', '600']).pid))"
    process = start(tmp_path, *own_agent(tmp_path, monkeypatch, "import subprocess", leave))
    try:
        out, err = process.communicate(timeout=60)
    finally:
        os.kill(int((tmp_path / "left").read_text()), signal.SIGKILL)
    assert process.returncode == 0 and "1 runs: 1 finished" in out, out + err


def test_a_run_whose_sweep_is_killed_can_still_warn(tmp_path, monkeypatch):
    wait = "while not os.path.exists('killed'): time.sleep(0.1)"
    lines = "import sys", "open('begun', 'w')", wait, "print('late', file=sys.stderr, flush=True)", "open('end', 'w')"
    process = start(tmp_path, *own_agent(tmp_path, monkeypatch, *lines))
    wait_for((tmp_path / "begun").exists, process)
    process.kill()
    process.communicate()
    (tmp_path / "killed").touch()
    wait_until((tmp_path / "end").exists, 20)


def test_the_time_left_is_judged_by_the_runs_most_alike():
    (cell,) = read_cells([], {"agent": ["ppo"], "optimizer": ["adam"], "total_timesteps": [10_000]}).values()

    def ended(env_id, optimizer, seconds, script="ppo_hesscale.py", state="finished", resumed_at=()):
        args = {"env_id": env_id, "optimizer": optimizer}
        end = f"2026-01-01T00:{seconds // 60:02}:{seconds % 60:02}+00:00"
        status = {"script": script, "args": args, "total_timesteps": 1000, "resumed_at": resumed_at}
        return state, "", status | {"start": "2026-01-01T00:00:00+00:00", "end": end}

    runs = []
    for run, seconds in [
        (ended("Hopper-v4", "adam", 1, resumed_at=[500]), None),  # began in another process
        (ended("Hopper-v4", "adam", 1, state="diverged"), None),
        (ended("Hopper-v4", "adam", 70, script="a2c_hesscale.py"), 700),
        (ended("Ant-v4", "sgd", 50), 500),
        (ended("Ant-v4", "adam", 30), 300),
        (ended("Hopper-v4", "adam", 10), 100),
        (ended("Hopper-v4", "adam", 20), 150),
        (ended("Hopper-v4", "sgd", 60), 150),
    ]:
        runs.append(run)
        assert estimate([cell], runs) == (seconds and pytest.approx(seconds))
        assert estimate([cell] * 3, runs) == (seconds and pytest.approx(3 * seconds))
    words = [duration(s) for s in (None, 99, 600, 7260, 1e7)]
    assert words == ["unknown", "99 s", "10 min", "2 h 1 min", "2,777 h"]


def test_a_folder_that_is_no_run_is_passed_over(tmp_path, monkeypatch):
    whole = {"state": "finished", "step": 1, "script": "ppo_hesscale.py", "args": {}, "versions": {}, "start": ""}
    whole |= {"resumed_at": []}
    for i, text in enumerate(["", "[]", "{}", "\0", json.dumps(whole | {"state": "odd"}), json.dumps(whole)]):
        (tmp_path / f"runs/{i}").mkdir(parents=True)
        (tmp_path / f"runs/{i}/status.json").write_text(text)
    (tmp_path / "runs/empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert [folder for _, folder, _ in find_runs().values()] == ["runs/5"]


def test_a_run_whose_lock_is_another_users_is_running(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/a").mkdir(parents=True)
    status = {"state": "running", "step": 1, "script": "ppo_hesscale.py", "args": {}, "start": ""}
    status |= {"versions": {}, "resumed_at": []}
    (tmp_path / "runs/a/status.json").write_text(json.dumps(status))
    states = lambda: [state for state, *_ in find_runs().values()]  # noqa: E731
    assert states() == ["killed"]
    (tmp_path / "runs/a/lock").unlink()
    (tmp_path / "runs/a/lock").mkdir()  # which can't be opened, whoever asks
    assert states() == ["running"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_does_without(tmp_path, monkeypatch, number):
    def no_locks(*args):
        raise OSError(number, "no locks here")

    monkeypatch.chdir(tmp_path)
    (cell,) = read_cells([], {"agent": ["ppo"]}).values()
    sweep.Local({cell.key: cell}, {}, 1)
    monkeypatch.setattr(filelock._unix, "lock_fd_nonblocking", no_locks)
    assert hesscale_run.lock(tmp_path) is not None and sweep.claim(cell) is not None
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").mkdir()
    with pytest.raises(OSError):  # which is another matter
        hesscale_run.lock(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("seed = -1", "--seed -1: must be in"),
        ("num_minibatches = [32, 3]", "--num-minibatches 3: "),
        ("optimizer = 'Adam'", "--optimizer Adam: choose one of"),
        ("agent = 'dqn'", "--agent dqn: choose"),
    ],
)
def test_a_value_that_a_grid_file_has_is_told_with_the_file(tmp_path, text, message):
    (tmp_path / "mine.toml").write_text(f"[[grid]]\n{text}\n" + "agent = 'ppo'\n" * ("agent" not in text))
    with pytest.raises(SystemExit, match=f"^error: {tmp_path}/mine.toml: {message}"):
        read_cells([str(tmp_path / "mine.toml")])


def test_a_script_of_another_folder_finds_the_core(tmp_path):
    (tmp_path / "mine.py").write_text((ROOT / "a2c_hesscale.py").read_text())
    code, out, err = run(tmp_path, "--agent", "mine.py", "--env-id", "toy_envs:Drift-v0", "--total-timesteps", 64)
    assert code == 0 and "1 runs: 1 finished" in out, err


def test_a_script_of_another_folder_does_not_pass_for_one_of_ours(tmp_path, capsys):
    """Its runs would be taken for done where an archive has ours."""
    (tmp_path / "ppo_hesscale.py").write_text((ROOT / "ppo_hesscale.py").read_text())
    with pytest.raises(SystemExit) as end:
        read_cells([], {"agent": [str(tmp_path / "ppo_hesscale.py")]})
    assert "ppo_hesscale.py is the name of a script of this repository; give it another one" in str(end.value)


def test_without_locks_a_run_is_known_by_its_process(tmp_path, monkeypatch):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "no locks here")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(filelock._unix, "lock_fd_nonblocking", no_locks)
    (tmp_path / "runs/a").mkdir(parents=True)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    hour, here = datetime.timedelta(hours=1), socket.gethostname()
    now = datetime.datetime.now().astimezone()
    for pid, host, updated, state in (
        (os.getpid(), here, now - 2 * hour, "running"),
        (ended.pid, here, now, "killed"),
        (None, here, now, "killed"),
        (ended.pid, "another", now, "running"),
        (os.getpid(), "another", now - 2 * hour, "killed"),
    ):
        status = {"state": "running", "step": 1, "script": "ppo_hesscale.py", "args": {}, "start": "", "versions": {}}
        status |= {"resumed_at": [], "pid": pid, "host": host, "updated": updated.isoformat(timespec="seconds")}
        (tmp_path / "runs/a/status.json").write_text(json.dumps(status))
        assert [found for found, *_ in find_runs().values()] == [state], (pid, host)


def test_a_cell_is_claimed_by_one_sweep_at_a_time_and_claims_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = read_cells([], {"agent": ["ppo"], "seed": [1, 2]})
    sweep.Local(cells, {}, 1)
    first, second = cells.values()
    held, other = sweep.claim(first), sweep.claim(second)
    assert held is not None and other is not None and sweep.claim(first) is None and sweep.claim(second) is None
    sweep.release(held)
    held = sweep.claim(first)
    assert held is not None and sweep.claim(second) is None
    for one in held, other, None:
        sweep.release(one)
    assert os.listdir("runs/.claims") == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "runs").touch()
    code, _, err = run(tmp_path, "--agent", "a2c", "--env-id", "CartPole-v1")
    assert code == 1 and err.startswith("error: the runs can't be written here: ") and err.count("\n") == 1


# ---- on SLURM ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A SLURM of the tests' own, with arrays of three elements at most; a function that runs its commands."""
    if reason := slurm_node.install():
        pytest.skip(reason)
    with slurm_node.slurm(tmp_path_factory.mktemp("slurm"), cpus=2, max_array_size=3) as environment:
        ENVIRONMENT.update(environment)
        yield lambda *command: subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True).stdout
        ENVIRONMENT.pop("SLURM_CONF")


def wait_until(condition, seconds=600):  # of a machine that has other work
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(0.1)


def test_slurm_with_a_requeue_ends_as_the_local_sweep(tmp_path, slurm):
    """Of four elements in two arrays one is preempted and one comes to its time limit, and both go on."""
    grid = ["--agent", "a2c", "ppo", "--env-id", "Hopper-v4", "--optimizer", "adam", "scaled-adahesscale"]
    grid += ["--total-timesteps", 16_384, "--checkpoint-interval", 1024, "--save-model", "True"]
    here, there = tmp_path / "local", tmp_path / "slurm"
    here.mkdir(), there.mkdir()
    assert run(here, *grid, "--local", 2)[0] == 0

    code, out, err = run(there, *grid, "--slurm", "--time", "00:10:00", "--mem", "600M", "--sbatch=--comment='a b'")
    assert code == 0, err
    jobs = re.findall(r"job (\d+): (\d) elements of 1 runs, logs in slurm/", out)
    assert [elements for _, elements in jobs] == ["3", "1"]
    first = jobs[0][0]
    assert "Comment=a b" in slurm("scontrol", "show", "job", first)
    _, out, _ = run(there, *grid, "--slurm", "--mem", "600M")
    assert "not begun" not in out and "queued" in out and out.endswith("nothing to submit\n")

    begun = lambda: [f for f in runs(there) if glob.glob(f"{f}/checkpoint.pt")]  # noqa: E731
    wait_until(lambda: len(begun()) == 2)
    interrupted = begun()
    slurm("scontrol", "requeue", f"{first}_0")
    # what SLURM sends when the time limit is near; scancel sends it again and again while other elements are pending
    slurm("timeout", "2", "scancel", "--signal=USR1", "--batch", f"{first}_1")
    wait_until(lambda: not slurm("squeue", "-h"))
    assert outcomes(there) == outcomes(here) and len(outcomes(here)) == 4
    assert all(status(folder)["resumed_at"] for folder in interrupted), "it was no interruption"
    for element in (0, 1):
        (log,) = (path.read_text() for path in there.glob(f"slurm/*/{first}_{element}.log"))
        assert ": interrupted" in log and "the same command goes on from here" in log and ": finished" in log
    _, out, _ = run(there, *grid, "--slurm")
    assert out == "4 runs: 4 finished\n"


def test_an_element_can_have_several_runs_and_an_end_in_failure(tmp_path, slurm):
    grid = ["--agent", "a2c", "--env-id", "toy_envs:Toggle-v0", "toy_envs:Raises-v0", "--seed", 1, 2]
    grid += ["--total-timesteps", 640]
    code, out, err = run(tmp_path, *grid, "--slurm", "--runs-per-task", 3, "--cpus-per-task", 2, "--mem", "600M")
    assert code == 0 and "2 elements of 3 runs" in out, err
    wait_until(lambda: not slurm("squeue", "-h"))
    assert sorted(runs(tmp_path).values()) == ["failed", "failed", "finished", "finished"]
    (log,) = (path.read_text() for path in tmp_path.glob("slurm/*/*_0.log"))
    assert "3 runs: " in log and "the environment raised in step" in log


def test_what_slurm_refuses_is_one_line(tmp_path, slurm, monkeypatch):
    grid = ["--agent", "a2c", "--env-id", "CartPole-v1", "--slurm"]
    for flags, message in (
        (["--sbatch=--partition=nowhere"], "nowhere"),
        (["--time", "soon"], "Invalid --time specification"),
        (["--mem", "900T"], "sbatch: error: "),
    ):
        code, _, err = run(tmp_path, *grid, *flags)
        assert code == 1 and message in line(err) and not glob.glob(f"{tmp_path}/slurm/*"), err
    monkeypatch.setitem(ENVIRONMENT, "PATH", str(tmp_path))
    code, _, err = run(tmp_path, *grid)
    assert line(err) == "error: --slurm: there is no scontrol here; run this where SLURM is, or use --local"


# ---- W&B ---------------------------------------------------------------------------------------------------


def test_the_wandb_sweep_gives_the_agent_command_lines_that_it_reads(monkeypatch):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    config = yaml.safe_load((ROOT / "scripts/wandb_sweep.yaml").read_text())
    assert config["method"] == "grid" and config["command"][-2:] == ["--track", "${args}"]
    axes = {name: axis.get("values", [axis.get("value")]) for name, axis in config["parameters"].items()}
    for values in itertools.product(*axes.values()):
        args = {name: {"value": value} for name, value in zip(axes, values, strict=True)}
        flags = create_sweep_command_args({"args": args})["args"]  # what takes the place of ${args}
        monkeypatch.setattr(sys, "argv", [config["program"], "--track", *flags])
        parsed = dataclasses.asdict(parse_args(load_agent("ppo").Args))
        assert parsed["track"] and {k.replace("-", "_"): v["value"] for k, v in args.items()}.items() <= parsed.items()
        if values[-1] != 1:  # a few are enough, for it is slow
            break
    robustness = next(t for t in tomllib.loads((ROOT / "scripts/grids/robustness.toml").read_text())["grid"])
    assert axes["optimizer"] == robustness["optimizer"] and axes["seed"] == robustness["seed"]


def test_the_time_left_is_shared_by_the_runs_at_a_time_and_counts_what_has_passed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = read_cells([], {"agent": ["ppo"], "seed": [1, 2, 3, 4], "total_timesteps": [10_000]})
    first, *_ = cells.values()
    about = {"script": "ppo_hesscale.py", "args": vars(first.args), "total_timesteps": 10_000, "seconds": 600.0}
    local = sweep.Local(cells, {first.key: ("finished", "", about)}, 2)
    local.running = {"process": (local.pending.popleft(), time.time() - 300)}
    assert local.left() == "1 running; 12 min left"  # (300 + 2 * 600) / 2 s are 12.5 min
    local.pending.clear()
    assert local.left() == "1 running; 5 min left"  # nobody else can help it


def test_each_environments_arguments_are_tried_before_a_sweep_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "--agent ppo --env-id Pendulum-v1 --env-kwargs colour=red g=9.8 --dry-run"
    monkeypatch.setattr(sys, "argv", ["sweep.py", *words.split()])
    with pytest.raises(SystemExit, match=r"--env-kwargs colour=red: "):
        sweep.main()
