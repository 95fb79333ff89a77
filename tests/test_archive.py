"""An archive holds what its runs came to, and outlives them."""

import csv
import glob
import gzip
import json
import shutil
import sys
from unittest import mock

import numpy as np
import pytest
from conftest import ROOT
from test_plot import TOTAL, change, flat, make_run
from test_runs import ENVIRONMENT

sys.path.insert(0, str(ROOT / "scripts"))
import archive
import done
import reading
import sweep
from done import read_archives
from grid import read_cells

GRID = f"""
[[grid]]
agent = "ppo"
env_id = "Hopper-v4"
optimizer = "adam"
seed = [1, 2, 3, 4]
total_timesteps = {TOTAL}
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A folder with runs/ and a grid of four seeds, in which the repository's archives lie too."""
    monkeypatch.setattr(archive, "ROOT", tmp_path)
    monkeypatch.setattr(done, "ARCHIVES", f"{tmp_path}/results/*/runs.csv.gz")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "grid.toml").write_text(GRID)
    return tmp_path


def make(study, seed, **options):
    path = make_run(study / "runs", flat(10.0 * seed, start=-1.0), seed, **options)
    change(path, start="2026-01-01T10:00:00+00:00", end="2026-01-01T10:01:30+00:00", total_timesteps=TOTAL)
    return path


def add(study):
    archive.main(archive.Args("mine", (str(study / "grid.toml"),), (str(study / "runs"),)))


def table(study):
    archives = glob.glob(f"{study}/results/*/runs.csv.gz")
    return reading.read_all([str(study / "runs")], archives).sort_values("seed", ignore_index=True)


def test_a_row_says_what_a_run_came_to(study, capsys):
    make(study, 1, delta=1e-5)
    (study / "grid.toml").write_text(GRID + "delta = 1e-5\n")
    add(study)
    assert "0 runs before, 1 added, 3 of the grid's 4 missing" in capsys.readouterr().out
    shutil.rmtree(study / "runs")
    (row,) = table(study).to_dict("records")
    about = {name: row[name] for name in ("agent", "env_id", "optimizer", "seed", "delta", "state", "step", "episodes")}
    assert about == {
        "agent": "ppo", "env_id": "Hopper-v4", "optimizer": "adam", "seed": 1, "delta": 1e-5,
        "state": "finished", "step": TOTAL, "episodes": 100,
    }  # fmt: skip
    assert row["final_return"] == 10 and row["mean_return"] == pytest.approx((99 * 10 - 1) / 100)
    assert row["curve"].tolist() == [-1.0] + [10.0] * 99 and row["seconds"] == 90 and row["commit"] == "abc"
    assert row["source"] == str(study / "results/mine/runs.csv.gz")


def test_a_study_that_has_a_grid_takes_no_other_runs(study, capsys):
    make(study, 1)
    with pytest.raises(SystemExit, match=r"^error: STUDY quick: its grid is .*quick\.toml, which has not all runs of"):
        archive.main(archive.Args("quick", (str(study / "grid.toml"),)))
    assert not (study / "results").exists()


def test_evaluations_are_kept(study):
    from torch.utils.tensorboard import SummaryWriter

    path = make(study, 1)
    writer = SummaryWriter(path)
    for step, value in (2000, float("nan")), (5000, 1.5), (10_000, 2.5):
        writer.add_scalar("eval/episodic_return", value, step)
    writer.close()
    add(study)
    shutil.rmtree(study / "runs")
    assert table(study)["evaluations"][0] == {5000: 1.5, 10000: 2.5}


def test_entropy_and_kl_are_kept_and_an_archive_of_before_them_is_read(study, capsys):
    signs = {"losses/entropy": [(1000 * k, -float(k)) for k in range(1, 31)], "losses/approx_kl": [(1, 0.5), (2, 0.25)]}
    make(study, 1, signs=signs)
    add(study)
    shutil.rmtree(study / "runs")
    (row,) = table(study).to_dict("records")
    assert (row["entropy"], row["approx_kl"]) == (-20.5, 0.375)
    path = study / "results/mine/runs.csv.gz"
    before = reading.pd.read_csv(path).drop(columns=reading.POLICY)
    before.to_csv(path, index=False)
    (study / "runs").mkdir()
    make(study, 2, signs=signs)
    add(study)
    assert "1 runs before, 1 added" in capsys.readouterr().out
    shutil.rmtree(study / "runs")
    assert table(study)["entropy"].isna().tolist() == [True, False]


def test_of_two_folders_with_a_run_the_further_is_kept(study, capsys):
    """An interrupted run may have been gone on with elsewhere."""
    path = make(study, 1)
    shutil.copytree(study / "runs", study / "scratch")
    change(path, state="interrupted", step=TOTAL // 2)
    for folders in ("runs", "scratch"), ("scratch", "runs"):
        archive.main(archive.Args("mine", (str(study / "grid.toml"),), tuple(str(study / name) for name in folders)))
        assert "0 runs before, 1 added" in capsys.readouterr().out
        shutil.rmtree(study / "results")


def test_an_archive_that_can_not_be_written_is_one_line(study, monkeypatch):
    make(study, 1)
    add(study)
    before = table(study)
    make(study, 2)
    monkeypatch.setattr(archive, "write_atomically", mock.Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(
        SystemExit, match=r"^error: .*runs.csv.gz: can't be written .*No space.*; what was there is as it"
    ):
        add(study)
    assert len(read_archives()) == 1 and len(before) == 1


def test_what_another_process_adds_meanwhile_stays(study, monkeypatch, capsys):
    make(study, 1), make(study, 2)
    read = archive.read_runs

    def slowly(folders, wanted):
        rows = read(folders, wanted)
        monkeypatch.setattr(archive, "read_runs", read)
        add(study)  # of another process
        return rows[rows["key"].str.contains('"seed": 1')]

    monkeypatch.setattr(archive, "read_runs", slowly)
    add(study)
    assert "0 runs before, 2 added" in capsys.readouterr().out and table(study)["seed"].tolist() == [1, 2]
    assert len(reading.read_archive(study / "results/mine/runs.csv.gz")) == 2


def test_an_archive_loses_its_runs_and_grows(study, capsys):
    for seed in (1, 2):
        make(study, seed)
    add(study)
    before = (study / "results/mine/runs.csv.gz").read_bytes()
    shutil.rmtree(study / "runs")
    (study / "runs").mkdir()
    add(study)
    assert (study / "results/mine/runs.csv.gz").read_bytes() == before  # the same rows are the same bytes
    make(study, 3)
    add(study)
    assert "2 runs before, 1 added, 1 of the grid's 4 missing" in capsys.readouterr().out
    found = table(study)
    assert found["seed"].tolist() == [1, 2, 3] and found["final_return"].tolist() == [10, 20, 30]
    assert [source.endswith(".gz") for source in found["source"]] == [True, True, False]  # a run on disk comes first


def test_what_has_not_ended_or_is_damaged_or_of_another_grid_stays_out(study, capsys):
    make(study, 1, state="interrupted")
    change(make(study, 2), step=2 * TOTAL)  # its event file ends early
    make(study, 7)
    make(study, 3, state="diverged")
    add(study)
    out, err = capsys.readouterr()
    assert "0 runs before, 1 added, 3 of the grid's 4 missing" in out
    assert "warning: left out, for damaged event files: " in err
    shutil.rmtree(study / "runs")
    assert table(study)[["seed", "state"]].to_numpy().tolist() == [[3, "diverged"]]


def test_a_run_of_before_a_flag_has_its_default(study):
    path = make(study, 1)
    args = json.loads((path / "status.json").read_text())["args"]
    change(path, args={name: value for name, value in args.items() if name != "state_std"})
    add(study)
    shutil.rmtree(study / "runs")
    assert not table(study)["state_std"][0]


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden"])
def test_a_study_is_the_name_of_a_folder(study, name):
    with pytest.raises(SystemExit, match=r"STUDY .*must be the name of a folder"):
        archive.main(archive.Args(name))


def test_without_an_ended_run_no_archive_is_made_or_named(study, capsys):
    make(study, 1, state="interrupted")
    add(study)
    assert (
        capsys.readouterr().out == f"no archive is made: {study}/runs has none of the grid's 4 runs ended and whole\n"
    )
    assert not (study / "results").exists()
    with pytest.raises(SystemExit, match=r"--runs nodir: there is no such folder; name one that holds"):
        archive.main(archive.Args("mine", ("grid.toml",), ("runs", "nodir")))


def test_a_damaged_archive_is_one_line_and_stays(study):
    make(study, 1)
    path = study / "results/mine/runs.csv.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nonsense")
    with pytest.raises(SystemExit, match=r"runs\.csv\.gz: is not an archive that can be read"):
        add(study)
    assert path.read_bytes() == b"nonsense"


def test_the_mean_return_is_that_of_the_steps_that_were_made(study):
    curve = reading.bin_returns(np.array([100, 300]), np.array([1.0, 3.0]), 1000, 500)
    assert curve[:50].tolist() == pytest.approx([*np.interp(np.arange(50), [9, 29], [1.0, 3.0])])
    assert np.isnan(curve[50:]).all()


# ---- a sweep takes what an archive holds as done -----------------------------------------------------------


def dry_run(monkeypatch, capsys, *flags):
    """Return what a dry run of the study's grid says, without the list of commands' arguments."""
    monkeypatch.setattr(sys, "argv", ["sweep.py", "grid.toml", "--dry-run", *flags])
    capsys.readouterr()
    assert sweep.main() == 0
    *commands, last = capsys.readouterr().out.splitlines()
    return [command.split("  ")[0].strip() for command in commands], last


def test_a_sweep_finds_half_its_cells_in_the_archive(study, monkeypatch, capsys):
    for seed in (1, 3):
        make(study, seed)
    add(study)
    shutil.rmtree(study / "runs")
    states, last = dry_run(monkeypatch, capsys)
    assert states == ["finished", "not begun", "finished", "not begun"]
    archived = "2 finished in results/mine/runs.csv.gz"
    assert last.startswith("4 runs: ") and archived in last and "2 not begun" in last
    assert last.endswith("left: about 3 min on one core")  # 90 s each, as the archived ones took
    states, last = dry_run(monkeypatch, capsys, "--no-archive")
    assert states == ["not begun"] * 4 and "archive" not in last and "runs.csv.gz" not in last
    make(study, 3)
    make(study, 4, state="interrupted")
    _, last = dry_run(monkeypatch, capsys)
    assert all(f"1 {text}" in last for text in ("finished in results", "finished, ", "interrupted", "not begun"))


def test_a_study_that_has_lost_its_runs_goes_on_with_more_seeds(study, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    grid = GRID.replace("Hopper-v4", "toy_envs:Toggle-v0").replace(
        str(TOTAL), "256\nnum_steps = 64\nnum_minibatches = 4"
    )
    (study / "grid.toml").write_text(grid.replace("[1, 2, 3, 4]", "[1, 2]"))
    monkeypatch.setattr(sys, "argv", ["sweep.py", "grid.toml", "--local", "2"])
    assert sweep.main() == 0
    add(study)
    shutil.rmtree(study / "runs")
    (study / "grid.toml").write_text(grid)
    assert sweep.main() == 0
    seeds = sorted(json.loads(path.read_text())["args"]["seed"] for path in study.glob("runs/*/status.json"))
    assert seeds == [3, 4] and "4 runs: 4 finished" in capfd.readouterr().out
    add(study)
    shutil.rmtree(study / "runs")
    assert table(study)["seed"].tolist() == [1, 2, 3, 4]
    assert sweep.main() == 0 and not list(study.glob("runs/*"))


@pytest.mark.parametrize(
    "content", [b"nonsense", gzip.compress(b"key,state,seconds\n[],finished,1\n"), b""], ids=["text", "row", "empty"]
)
def test_a_damaged_archive_ends_a_sweep_before_it_begins(study, monkeypatch, content):
    path = study / "results/mine/runs.csv.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["sweep.py", "grid.toml"])
    with pytest.raises(SystemExit, match=r"runs\.csv\.gz: is not an archive that can be read .*--no-archive"):
        sweep.main()
    assert path.read_bytes() == content and not list(study.glob("runs/*"))


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_a_damaged_byte_of_an_archive_is_one_line(study, at):
    make(study, 1)
    add(study)
    path = study / "results/mine/runs.csv.gz"
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(SystemExit, match=r"runs\.csv\.gz: is not an archive that can be read .*--no-archive"):
        read_archives()


def rewrite(study, **columns):
    """Change columns of all rows of the archive."""
    path = study / "results/mine/runs.csv.gz"
    with gzip.open(path, "rt", newline="") as file:
        rows = [row | columns for row in csv.DictReader(file)]
    with gzip.open(path, "wt", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_an_archived_run_may_have_any_number_of_evaluations(study):
    make(study, 1)
    add(study)
    rewrite(study, evaluations=json.dumps({1000 * i: -1234.5 for i in range(10_000)}))
    ((state, _, status),) = read_archives().values()
    assert state == "finished" and status["seconds"] == 90


def test_an_archived_run_of_before_a_flag_is_done(study, monkeypatch, capsys):
    make(study, 1)
    add(study)
    shutil.rmtree(study / "runs")
    ((key, _),) = read_archives().items()
    script, args = json.loads(key)
    rewrite(study, key=json.dumps([script, {name: value for name, value in args.items() if name != "betas"}]))
    states, _ = dry_run(monkeypatch, capsys)
    assert states == ["finished"] + ["not begun"] * 3


def test_a_dry_run_tells_the_cost_of_each_table(study, monkeypatch, capsys):
    """An archived run took 90 s; left are three more of them, and two of twice as many steps."""
    make(study, 1)
    add(study)
    shutil.rmtree(study / "runs")
    longer = GRID.replace("[1, 2, 3, 4]", "[5, 6]").replace(str(TOTAL), str(2 * TOTAL))
    (study / "grid.toml").write_text(GRID + longer + GRID.replace("[1, 2, 3, 4]", "1"))  # the third has nothing left
    states, last = dry_run(monkeypatch, capsys)
    assert [text.split(": left ")[-1] for text in states if " runs as " in text] == [
        "about 4 min on one core", "about 6 min on one core",
    ]  # fmt: skip
    assert [text.split()[0] for text in states if " runs as " in text] == ["4", "2"]
    assert last.endswith("left: about 10 min on one core")


def test_an_archived_run_that_has_not_ended_is_not_done(study, monkeypatch, capsys):
    make(study, 1)
    add(study)
    shutil.rmtree(study / "runs")
    rewrite(study, state="interrupted")
    states, last = dry_run(monkeypatch, capsys)
    assert states == ["not begun"] * 4 and last.startswith("4 runs: 4 not begun; left: ")


@pytest.mark.parametrize("role", ["true", "false"])
def test_a_cell_has_one_role(study, role):
    both = f"{GRID}selection = true\n{GRID.replace('[1, 2, 3, 4]', '[4, 5]')}selection = {role}\n"
    (study / "grid.toml").write_text(both)
    if role == "true":
        assert [cell.selection for cell in read_cells(["grid.toml"]).values()] == [True] * 5
    else:
        with pytest.raises(SystemExit, match=r"adam 0.0003 seed 4 is for selection and for the report too"):
            read_cells(["grid.toml"])
    (study / "grid.toml").write_text(f"{GRID}selection = 1\n")
    with pytest.raises(SystemExit, match=r"selection 1: must be of type bool"):
        read_cells(["grid.toml"])
    assert not next(iter(read_cells([], {"agent": ["ppo"]}).values())).selection


def test_returns_keep_their_digits(study):
    path = make_run(study / "runs", flat(1234.5, start=-987.6), 1)
    change(path, start="2026-01-01T10:00:00+00:00", end="2026-01-01T10:01:30+00:00", total_timesteps=TOTAL)
    (here,) = table(study).to_dict("records")
    add(study)
    path.rename(study / "gone")
    (row,) = table(study).to_dict("records")
    for name in "final_return", "mean_return":
        assert row[name] == pytest.approx(here[name], rel=1e-5)
    np.testing.assert_allclose(row["curve"], here["curve"], rtol=1e-4)
