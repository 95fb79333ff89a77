"""The pictures' numbers are those of the runs: against runs with known returns, and statistics done by hand."""

import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from conftest import ROOT, read_csv, table_cells
from torch.utils.tensorboard import SummaryWriter

sys.path.insert(0, str(ROOT / "scripts"))
import archive
import done
import drawing
import plot
import reading
import stats
from grid import load_agent

from hesscale_core import OPTIMIZERS

TOTAL = 10_000  # so a bin has 100 steps


def flat(value, start=None, end=TOTAL):
    """An episode in each bin until `end`: the first returns `start`, the others `value`."""
    return [(step, value if start is None or step > 100 else start) for step in range(100, end + 1, 100)]


def log(folder, episodes, signs=(), **options):
    writer = SummaryWriter(folder, **options)
    for tag, points in {"charts/episodic_return": episodes, **dict(signs)}.items():
        for step, value in points:
            writer.add_scalar(tag, value, step)
    writer.close()


def make_run(folder, episodes, seed=1, state="finished", step=None, agent="ppo", signs=(), **args):
    """A run's folder in `folder`, as the agents make it; `signs` is what else it logs, {tag: points}."""
    module = load_agent(agent)
    args = asdict(module.Args()) | {"seed": seed, "env_id": "Hopper-v4", "optimizer": "adam"} | args
    args = {"total_timesteps": TOTAL} | args | {"total_timesteps": args.get("total", TOTAL)}
    args["learning_rate"] = args["learning_rate"] or module.LEARNING_RATES[args["optimizer"]]
    args.pop("total", None)
    name = f"{args['env_id']}__{args['exp_name']}__{args['optimizer']}__{seed}__{args['learning_rate']:g}"
    path = folder / f"{name}{args['num_steps']}{'annealed' * args['anneal_lr']}"
    log(path, episodes, signs)
    status = {"state": state, "step": episodes[-1][0] if step is None else step, "args": args, "commit": "abc"}
    status |= {"script": f"{agent}_hesscale.py", "versions": {}, "start": "2026-01-01", "resumed_at": []}
    status |= {"end": "2026-01-01", "total_timesteps": args["total_timesteps"]}
    (path / "status.json").write_text(json.dumps(status))
    return path


def change(path, **changes):
    status = json.loads((path / "status.json").read_text())
    (path / "status.json").write_text(json.dumps(status | changes))


def draw(folder, *what, grids=(), pictures=False, **options):
    """Draw the runs in `folder` to folder/out/p_*; whatever numpy, scipy or matplotlib complain of is an error.

    Without `pictures` none is rendered, which takes the most time.
    """
    args = plot.Args(out=str(folder / "out/p"), runs=(str(folder / "runs"),), what=what, grids=grids, **options)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        if not pictures:
            patch.setattr(drawing, "write_figure", lambda prefix, figure: drawing.plt.close(figure))
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        plot.main(args)


def rows(folder, what, **wanted):
    found = read_csv(folder / f"out/p_{what}.csv")
    return [row for row in found if all(row[name] == str(value) for name, value in wanted.items())]


def numbers(row, *names):
    return [float(row[name] or "nan") for name in names]


def number(folder, what, column, **wanted):
    (row,) = rows(folder, what, **wanted)
    return float(row[column])


def cell(folder, env_id, series, column=3):
    """A cell of PREFIX_table.md, by default the final return."""
    lines = map(table_cells, (folder / "out/p_table.md").read_text().splitlines())
    (found,) = [line[column] for line in lines if line[:2] == [env_id, series]]
    return found


def fails(folder, capsys, *what, **options):
    """The one line that a call ends with; it must have written nothing."""
    with pytest.raises(SystemExit) as exit:
        draw(folder, *what, **options)
    assert not list(folder.glob("out*"))
    assert exit.value.code.startswith("error: ") and "\n" not in exit.value.code
    return exit.value.code


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(done, "ARCHIVES", f"{tmp_path}/results/*/runs.csv.gz")
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def make_all(folder, finals, untrained=0.0, **options):
    """Runs whose first bin is `untrained` and whose later episodes all have one return; None for one that diverged.

    finals: {(env_id, optimizer, step size): returns of seeds 1, 2, ...}
    """
    for (env_id, optimizer, lr), returns in finals.items():
        for seed, value in enumerate(returns, 1):
            state = "diverged" if value is None else "finished"
            episodes = flat(float(1e4 if value is None else value), untrained)
            run = {"env_id": env_id, "optimizer": optimizer, "learning_rate": lr}
            make_run(folder, episodes, seed, state, **run | options)


# ---- reading -----------------------------------------------------------------------------------------------


def test_a_curve_has_the_mean_of_the_episodes_that_ended_in_each_bin(runs, tmp_path):
    make_run(runs, [(50, 1.0), (100, 3.0), (101, 4.0), (450, 10.0), (8000, 20.0), (9201, 30.0)], step=9750)
    draw(tmp_path, "curves")
    found = {float(row["step"]): float(row["value"]) for row in rows(tmp_path, "curves")}
    known = [(0, 2.0), (1, 4.0), (4, 10.0), (79, 20.0), (92, 30.0)]  # the first step is 1: bin 0 has steps 1 to 100
    bins = np.arange(93)  # the last that is logged is in bin 92
    assert found == pytest.approx({(i + 0.5) * 100: np.interp(i, *zip(*known, strict=True)) for i in bins}, rel=1e-5)
    (row,) = rows(tmp_path, "curves", step="50")
    assert row["value_low"] == row["value_high"] == "" and row["runs"] == "1"


def test_a_run_goes_on_to_its_last_log_and_starts_with_its_first_episode(runs, tmp_path):
    path = make_run(runs, [(350, 1.0), (5000, 2.0)], step=7010)
    writer = SummaryWriter(path)
    writer.add_scalar("charts/SPS", 1.0, 7010)
    writer.close()
    draw(tmp_path, "curves")
    found = [float(row["value"]) for row in rows(tmp_path, "curves")]
    assert len(found) == 71 and found[:4] == [1.0] * 4 and found[49:] == [2.0] * 22


def test_what_a_resumed_run_has_logged_again_is_void(runs, tmp_path, capsys):
    path = make_run(runs, flat(1.0, end=6000), step=TOTAL)  # killed there; its checkpoint was of step 3000
    log(path, [(3001, 1e6)])
    time.sleep(1.1)  # as starting a process takes; event files are read in the order of their seconds
    log(path, flat(2.0)[30:], purge_step=3001)
    draw(tmp_path, "curves")
    assert [float(row["value"]) for row in rows(tmp_path, "curves")] == [1.0] * 30 + [2.0] * 70
    assert "warning" not in capsys.readouterr().err


def evaluate(path, *evaluations):
    writer = SummaryWriter(path)
    for step, value in evaluations:
        writer.add_scalar("eval/episodic_return", value, step)
    writer.close()


def test_evaluations_are_drawn_instead_where_asked_for(runs, tmp_path, capsys):
    for seed in (1, 2):
        evaluate(make_run(runs, flat(5.0), seed), (0, seed - 2.5), (50, 1.0), (5050, 2.0), (9950, 3.0 + seed))
    evaluate(make_run(runs, flat(5.0, end=3000), 3, "interrupted"), (0, 0.0))  # not yet evaluated in training
    draw(tmp_path, "curves", "table", evaluations=True)
    found = {float(row["step"]): float(row["value"]) for row in rows(tmp_path, "curves")}
    assert found == {0: -1.0, 50: 1.0, 5050: 2.0, 9950: 4.5}
    assert number(tmp_path, "table", "final") == 4.5 and number(tmp_path, "table", "mean") == 2.5
    assert "left out, without an evaluation: 1 runs" in capsys.readouterr().err


def test_an_evaluations_score_is_0_for_the_policy_before_it_trained(runs, tmp_path, capsys):
    """Ant's most likely actions stand still at first and earn 1000, where sampled ones fall."""
    for optimizer, final in ("adam", 3000.0), ("adahesscale", 500.0), ("scaled-adam", 2000.0):
        for env_id in "Ant-v4", "Hopper-v4":
            path = make_run(runs, flat(5.0, start=-100.0), optimizer=optimizer, env_id=env_id)
            untrained = [(0, 1000.0)] * (optimizer != "scaled-adam")  # as of a run of an older commit
            evaluate(path, *untrained, (9950, final))
    make_run(runs, flat(5.0), optimizer="sgd", env_id="Ant-v4", state="diverged")
    draw(tmp_path, "aggregate", "table", evaluations=True)
    score = lambda series: number(tmp_path, "table", "final", env_id="all, score", series=series)  # noqa: E731
    assert [score(s) for s in ("adam", "adahesscale", "scaled-adam")] == [1, -0.25, 0.5]
    assert number(tmp_path, "table", "final", env_id="Ant-v4", series="sgd") == 1000

    other = tmp_path / "other"
    evaluate(make_run(other / "runs", flat(5.0), env_id="Ant-v4"), (9950, 2.0))
    error = fails(other, capsys, "table", evaluations=True)
    assert "no run of ppo on Ant-v4 was evaluated before it trained" in error and error.endswith(
        "\"env_id != 'Ant-v4'\""
    )


def test_half_written_event_files_are_drawn_as_far_as_they_go(runs, tmp_path, capsys):
    cut = make_run(runs, flat(1.0))
    (events,) = cut.glob("events*")
    os.truncate(events, events.stat().st_size * 6 // 10)
    garbage = make_run(runs, flat(1.0), seed=2)
    (events,) = garbage.glob("events*")
    events.write_bytes(b"\xff" * 1000)
    make_run(runs, flat(1.0, end=5000), seed=3, state="interrupted", step=5900)
    draw(tmp_path, "curves", "table")
    errors = capsys.readouterr().err
    assert 55 < float(rows(tmp_path, "curves")[-1]["step"]) / 100 < 65
    assert "ends at step 0 of 10000" in errors and "of 10000): 2 runs: ppo Hopper-v4 adam, seeds 1 2" in errors
    assert "left out, without the end of an episode: 1 runs: ppo Hopper-v4 adam, seeds 2" in errors
    assert "unfinished, and drawn as far as they went: 1 runs: ppo Hopper-v4 adam, seeds 3" in errors


def test_a_run_that_diverged_is_whole_to_the_line_that_says_so(runs, tmp_path, capsys):
    path = make_run(runs, flat(1.0, end=5000), state="diverged", step=5900)
    draw(tmp_path, "table")
    assert "ends at step 5000 of 5900" in capsys.readouterr().err
    with SummaryWriter(path) as writer:
        writer.add_text("diverged", "x", 5900)
    draw(tmp_path, "table")
    assert "damaged" not in capsys.readouterr().err


def test_all_episodes_of_a_long_run_are_read(runs):
    """TensorBoard keeps 10,000 points unless it is told otherwise."""
    log(runs / "run", [(i + 1, float(i)) for i in range(10_001)])
    scalars, _ = reading.read_events(str(runs / "run"))
    assert len(scalars["charts/episodic_return"]) == 10_001


def test_steps_in_hundredths_may_be_more_than_32_bits_hold(runs):
    total = 40_000_000
    path = make_run(runs, [(30_000_000, 1.0), (total, 2.0)], total=total)
    curve = reading.read_run("key", "finished", str(path), done.read_status(path))["curve"]
    assert curve[74] == 1 and curve[99] == 2


def test_the_mean_return_counts_bins_alike(runs, tmp_path):
    make_run(runs, [(s, 1.0) for s in range(10, 5001, 10)] + [(s, 3.0) for s in range(5100, 10_001, 100)])
    draw(tmp_path, "table")
    assert number(tmp_path, "table", "mean") == pytest.approx(2)


def test_returns_that_are_not_finite_are_named(runs, tmp_path, capsys):
    make_run(runs, [*flat(1.0)[:-1], (TOTAL, float("inf"))])
    draw(tmp_path, "table")
    assert cell(tmp_path, "PPO, Hopper-v4", "Adam") == "1.00"
    assert "damaged (1 of 100 returns not finite, and left out): 1 runs" in capsys.readouterr().err


def test_runs_come_from_archives_where_a_folder_has_them_no_more(runs, tmp_path, capsys):
    make_all(runs, {("Hopper-v4", "adam", 3e-4): (10, 20, 30)})
    (tmp_path / "grid.toml").write_text(GRID)
    archived = reading.read_runs([str(runs)], lambda key, state: json.loads(key)[1]["seed"] < 3)
    archive.write_archive(f"{tmp_path}/results/mine/runs.csv.gz", archived)
    for path in list(runs.iterdir())[1:]:
        path.rename(tmp_path / path.name)
    draw(tmp_path, "table", grids=(str(tmp_path / "grid.toml"),))
    out, errors = capsys.readouterr()
    here = len(list(runs.iterdir()))
    kept = len({path.name for path in runs.iterdir()} | {*archived["source"].map(os.path.basename)})
    assert f"{here} runs from runs/" in out and f"{kept - here} runs from " in out and "mine/runs.csv.gz" in out
    assert f"{6 - kept} of the grid's 6 runs are missing" in errors


def test_runs_of_several_versions_of_mujoco_are_named(runs, tmp_path, capsys):
    for seed, version in (1, "3.2.7"), (2, "3.8.0"):
        change(make_run(runs, flat(1.0), seed), versions={"mujoco": version})
    draw(tmp_path, "table")
    assert "of several versions of MuJoCo (3.2.7 3.8.0): 2 runs" in capsys.readouterr().err


# ---- the table: means, differences, scores ----------------------------------------------------------------


def test_final_and_mean_returns_have_students_interval(runs, tmp_path):
    for seed, offset in (1, 0.0), (2, 30.0), (3, 90.0):
        make_run(runs, [(100 * (i + 1), offset + i) for i in range(60)], seed, step=6000)
    draw(tmp_path, "table")
    (row,) = rows(tmp_path, "table")
    half = scipy.stats.t.ppf(0.975, 2) * np.sqrt((40**2 + 10**2 + 50**2) / 2 / 3)
    # the last 50 episodes have 10, 11, ..., 59; the 60 bins that were reached 0, 1, ..., 59
    assert numbers(row, "final", "final_low", "final_high") == pytest.approx([74.5, 74.5 - half, 74.5 + half], rel=1e-5)
    assert numbers(row, "mean", "mean_low", "mean_high") == pytest.approx([69.5, 69.5 - half, 69.5 + half], rel=1e-5)
    assert row["runs"] == "3" and row["seeds"] == "1 2 3"
    assert cell(tmp_path, "PPO, Hopper-v4", "Adam") == f"74 ± {half:.0f}"


@pytest.mark.parametrize(
    "adam, other, shown, difference",
    [
        ((1234.0, 1236.0), (1234.7, 1234.7), "1235 ± 13", "0 (-13 to 12)"),  # t(0.975, 1) = 12.7; no "-0"
        ((41.25, 41.75), (43.0, 44.0), "41.5 ± 3.2", "2.0"),
        ((1.0, 1.5), (2.0, 2.5), "1.25 ± 3.18", "1.00 (-0.52 to 2.52)"),  # t(0.975, 2) = 4.3027
        ((0.0625, 0.0625), (0.03125, 0.03125), "0.062 ± 0.000", "-0.031 (-0.031 to -0.031)"),
        ((0.0, 0.0), (0.5, 0.5), "0.00 ± 0.00", "**0.50 (0.50 to 0.50)**"),
    ],
)
def test_a_row_has_as_many_decimals_as_its_size_needs(runs, tmp_path, adam, other, shown, difference):
    for seed, (a, b) in enumerate(zip(adam, other, strict=True), 1):
        make_run(runs, flat(a), seed)
        make_run(runs, flat(b), seed, optimizer="adahesscale")
    draw(tmp_path, "table")
    assert cell(tmp_path, "PPO, Hopper-v4", "Adam") == shown
    assert cell(tmp_path, "PPO, Hopper-v4", "AdaHesScale", 4).startswith(difference)


ADAM, OTHER = (100.0, 104.0, 96.0, 108.0), (140.0, 160.0, 148.0)


@pytest.mark.parametrize("sign, bold", [(1, True), (-1, False)])
def test_a_difference_has_welchs_interval_and_is_bold_where_it_is_above_zero(runs, tmp_path, sign, bold):
    shift = 0 if sign > 0 else 60
    other = tuple(x - shift for x in OTHER)
    make_all(runs, {("Hopper-v4", "adam", 3e-4): ADAM, ("Hopper-v4", "adahesscale", 3e-4): other})
    draw(tmp_path, "table")
    (row,) = rows(tmp_path, "table", series="adahesscale")
    welch = scipy.stats.ttest_ind(other, ADAM, equal_var=False).confidence_interval()
    found = numbers(row, "final_difference", "final_difference_low", "final_difference_high")
    assert found == pytest.approx([np.mean(other) - np.mean(ADAM), welch.low, welch.high], rel=1e-4)
    assert (welch.low > 0) == bold == cell(tmp_path, "PPO, Hopper-v4", "AdaHesScale", 4).startswith("**")
    (row,) = rows(tmp_path, "table", series="adam")
    assert row["final_difference"] == row["final_difference_low"] == ""
    draw(tmp_path, "table", baseline="adahesscale")
    assert number(tmp_path, "table", "final_difference", series="adam") == pytest.approx(
        np.mean(ADAM) - np.mean(other), rel=1e-4
    )


TWO = {
    ("Ant-v4", "adam", 3e-4): (1, 1),
    ("Ant-v4", "adahesscale", 3e-4): (2, 2, 2, 2),
    ("Hopper-v4", "adam", 3e-4): (10, 30),  # mean 20
    ("Hopper-v4", "adahesscale", 3e-4): (40, 10),  # scores 2 and 0.5
}


def test_scores_over_all_are_means_of_means_and_have_welchs_interval_too(runs, tmp_path):
    """Scores of Ant are 1 1 and 2 2 2 2, of Hopper 0.5 1.5 and 2 0.5: the means over both are 1 and 1.625."""
    make_all(runs, TWO)
    draw(tmp_path, "table")
    (row,) = rows(tmp_path, "table", series="adahesscale", env_id="all, score")
    assert numbers(row, "final", "final_difference") == pytest.approx([(2 + 1.25) / 2, 0.625])
    # variances of the two means over seeds: 0.75^2 * 2 / 2 = 0.5625 of (2, 0.5), and 0.5^2 * 2 / 2 = 0.25 of (.5, 1.5);
    # each with weight 1/4 and 1 degree of freedom
    parts = np.array([0.5625, 0.25]) / 4
    half = scipy.stats.t.ppf(0.975, parts.sum() ** 2 / (parts**2).sum()) * np.sqrt(parts.sum())
    low_high = numbers(row, "final_difference_low", "final_difference_high")
    assert low_high == pytest.approx([0.625 - half, 0.625 + half], rel=1e-4)
    assert row["runs"] == "6"


def test_the_table_begins_with_an_overview_of_each_agent(runs, tmp_path):
    """A line for each series and a column for each environment; bold is what is clearly above the baseline."""
    make_all(runs, {("Ant-v4", "adam", 3e-4): (1, 3), ("Hopper-v4", "adam", 3e-4): (10, 10)})
    make_all(runs, {("Hopper-v4", "sgd", 3e-4): (20, 20)})
    make_all(runs, {("Ant-v4", "adam", 3e-4): (5,), ("Ant-v4", "sgd", 3e-4): (7,)}, agent="a2c")
    draw(tmp_path, "table")
    half = scipy.stats.t.ppf(0.975, 1) * 1  # of a deviation of sqrt(2) over sqrt(2)
    lines = (tmp_path / "out/p_table.md").read_text().splitlines()
    assert lines[:9] == [
        "| A2C, final return | Ant-v4 |",
        "| --- | --- |",
        "| SGD | 7.00 |",
        "| Adam | 5.00 |",
        "",
        "| PPO, final return | Ant-v4 | Hopper-v4 | all, score | minus Adam's |",
        "| --- | --- | --- | --- | --- |",
        "| SGD |  | **20.0 ± 0.0** |  |  |",
        f"| Adam | 2.0 ± {half:.1f} | 10.0 ± 0.0 | 1.00 ± {half / 4:.2f} |  |",
    ]
    assert any(line.startswith("| A2C, Ant-v4 | SGD | 1 | 7.00 | 2.00 |") for line in lines)  # one run is not clear


def test_a_score_is_0_for_an_untrained_policy_and_1_for_the_baseline(runs, tmp_path):
    """The mean over the run has its own upper end: that of the baseline's mean return."""
    make_all(runs, {("Hopper-v4", "adam", 3e-4): (-300, -100), ("Ant-v4", "adam", 3e-4): (0, 0)}, untrained=-500.0)
    make_all(runs, {("Hopper-v4", "sgd", 3e-4): (None, 100), ("Ant-v4", "sgd", 3e-4): (0, 0)}, untrained=-500.0)
    draw(tmp_path, "table", "aggregate")
    # a run that diverged counts as untrained: scores 0 and 600 / 300 in Hopper, 1 and 1 in Ant
    assert number(tmp_path, "table", "final", series="sgd", env_id="all, score") == pytest.approx(1.0)
    assert number(tmp_path, "table", "mean", series="adam", env_id="all, score") == pytest.approx(1.0)
    assert number(tmp_path, "table", "final", series="sgd", env_id="Hopper-v4") == pytest.approx(-200)
    assert number(tmp_path, "table", "diverged", series="sgd", env_id="Hopper-v4") == 1


def test_environments_may_have_lengths_of_their_own(runs, tmp_path, capsys):
    """As the paper's Humanoid has; within one they may not."""
    for total, env_id in (TOTAL, "Hopper-v4"), (2 * TOTAL, "Humanoid-v4"):
        for optimizer in "adam", "sgd":
            make_run(runs, flat(5.0, start=0.0, end=total), optimizer=optimizer, env_id=env_id, total=total)
    draw(tmp_path)
    assert number(tmp_path, "table", "final", series="sgd", env_id="all, score") == 1
    assert max(float(row["step"]) for row in rows(tmp_path, "curves", env_id="Hopper-v4")) < TOTAL
    make_run(runs, flat(5.0, end=2 * TOTAL), seed=2, total=2 * TOTAL)
    shutil.rmtree(tmp_path / "out")
    assert re.search(r"--total-timesteps \d+ \d+: ppo has runs with each", fails(tmp_path, capsys))


def test_an_environment_without_the_baseline_has_no_score(runs, tmp_path, capsys, monkeypatch):
    """It counts nowhere over all; and an agent without the baseline is held against its own best series."""
    make_all(runs, {(env_id, "adam", 3e-4): (10, 10) for env_id in ("Ant-v4", "Hopper-v4")})
    make_all(runs, {(f"{name}-v4", "sgd", 3e-4): (v, v) for name, v in (("Ant", 5), ("Hopper", 20), ("Walker2d", 7))})
    make_all(runs, {(f"{name}-v4", "sgd", 3e-4): (8, 8) for name in ("Ant", "Hopper")}, agent="a2c")
    said = notes(monkeypatch)
    draw(tmp_path, "table", "aggregate", pictures=True)
    score = lambda agent: number(tmp_path, "table", "final", agent=agent, series="sgd", env_id="all, score")  # noqa: E731
    assert score("ppo") == 1.25 and score("a2c") == 1
    assert number(tmp_path, "table", "final", agent="ppo", series="sgd", env_id="Walker2d-v4") == 7
    means = rows(tmp_path, "aggregate", quantity="interquartile mean")
    assert {(row["agent"], row["series"], row["value"]) for row in means} == {
        ("ppo", "adam", "1"), ("ppo", "sgd", "1.25"), ("a2c", "sgd", "1")
    }  # fmt: skip
    warning = "it has no score and counts nowhere over all, for adam is missing there: 2 runs: ppo Walker2d-v4 sgd"
    assert warning in capsys.readouterr().err
    assert "1 Adam (A2C: the best series in each environment);" in " ".join(said[0].split())


def test_a_step_size_at_which_runs_diverge_is_the_last_choice(runs, tmp_path):
    """A run that diverged counts as untrained, and an untrained Ant stands still and earns more than many that walk."""
    finals = {("Ant-v4", "adam", 1e-4): (600, 600), ("Ant-v4", "adam", 1e-3): (700, 700)}
    make_all(runs, finals | {("Ant-v4", "adam", 1e-1): (None, 2000)}, untrained=997.0)
    draw(tmp_path, "table", choose_on_reported=True)
    assert number(tmp_path, "table", "step_sizes", series="adam") == 1e-3
    shutil.rmtree(tmp_path / "out")
    draw(tmp_path, "table", choose_on_reported=True, where="learning_rate == 0.1")
    assert number(tmp_path, "table", "final", series="adam") == (997 + 2000) / 2


def test_runs_that_diverged_before_an_episode_ended_are_named_with_what_can_be_done(runs, tmp_path, capsys):
    make_run(runs, flat(5.0))
    make_run(runs, [], env_id="Ant-v4", state="diverged", step=TOTAL)
    error = fails(tmp_path, capsys, "table")
    assert "no run of ppo on Ant-v4 has come to the end of an episode before it diverged" in error
    draw(tmp_path, "table", where=error.split("--where ")[1].strip('"'))


def frame(**columns):
    return plot.pd.DataFrame(columns)


def inside(figure):
    """Whether all that is written lies in the figure."""
    figure.canvas.draw()
    box = figure.bbox
    texts = figure.texts + [a.title for a in figure.axes] + [a.yaxis.label for a in figure.axes]
    texts += [text for legend in figure.legends for text in [legend.get_title(), *legend.get_texts()]]
    texts += [figure._supxlabel, figure._supylabel, *(a.xaxis.label for a in figure.axes if a.get_visible())]
    texts += [text for a in figure.axes if a.get_visible() for text in a.get_yticklabels()]
    texts = [text for text in texts if text is not None and text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    return all(b.x0 >= box.x0 - 2 and b.x1 <= box.x1 + 2 and b.y0 >= -2 and b.y1 <= box.y1 + 2 for b in boxes)


def test_what_is_written_lies_in_the_picture():
    """Also above a single panel, with names of several flags and an environment's of a package."""
    drawing.plt.rcParams |= drawing.RC
    names = [
        f"scaled-adahesscale, delta {d}, update_epochs 10, max_grad_norm {d}, exp_name a_$_long_$_one" for d in (1, 2)
    ]
    interval = dict(value=[1.0, 2.0], value_low=[0.0, 1.0], value_high=[2.0, 3.0])
    for env_id in "Hopper-v4", "gymnasium_robotics:FetchPickAndPlaceDense-v2":
        same = dict(agent="ppo", env_id=env_id, series=names, runs=3, diverged=[0, 1], **interval)
        assert inside(drawing.draw_step_sizes(frame(learning_rate=[1e-3, 1.5e-3], **same), "the best series"))
        assert inside(drawing.draw_curves(frame(step=[1.0, 1.0], **same), ""))
        assert inside(drawing.draw_aggregate(frame(quantity="interquartile mean", over=math.nan, **same), "Adam"))
    drawing.plt.close("all")


def test_many_series_look_different_and_stay_at_their_step_sizes():
    names = [f"adam, delta {i}" for i in range(24)]
    looks = [
        tuple(map(str, (s["color"], s["linestyle"], s["marker"], s["markerfacecolor"])))
        for s in drawing.looks(names).values()
    ]
    assert len({*looks}) == 24
    step_sizes = [1e-3, 1.25e-3, 1.5e-3]
    pairs = [*itertools.product(names, step_sizes)]
    table = frame(
        agent="ppo", env_id="Hopper-v4", series=[p[0] for p in pairs], learning_rate=[p[1] for p in pairs], runs=5,
        diverged=0, value=1.0, value_low=0.0, value_high=2.0,
    )  # fmt: skip
    axis = drawing.draw_step_sizes(table, "Adam").axes[0]
    drawn = [
        np.asarray(line.get_xdata(), float)
        for line in axis.lines
        if line.get_marker() not in ("", "None", "x", "_", "|")
    ]
    assert drawn and all(max(abs(np.log(x / step_sizes))) < np.log(1.2) / 2 for x in drawn if len(x) == 3)
    assert [text.get_text() for text in axis.get_xticklabels()] == ["0.001", "0.00125", "0.0015"]
    drawing.plt.close("all")


def test_curves_of_few_points_have_a_marker_at_each():
    points = frame(
        agent="ppo", env_id="A", series="adam", step=[1.0, 2.0], runs=5, value=1.0, value_low=0.0, value_high=2.0
    )
    (line,) = drawing.draw_curves(points, "").axes[0].lines
    assert line.get_markevery() == 1
    drawing.plt.close("all")


def test_names_may_have_versions_bars_and_dollars(runs, tmp_path):
    for version in "v2.1.0", "a|$b$":
        make_run(runs, flat(5.0), exp_name=version)
    draw(tmp_path, by=("exp_name",), pictures=True)
    text = (tmp_path / "out/p_table.md").read_text()
    assert r"| Adam, exp_name a\|$b$ |" in text and "exp_name v2.1.0 |" in text


def test_a_table_that_can_not_be_written_is_one_line(runs, tmp_path):
    make_run(runs, flat(5.0))
    (tmp_path / "out/p_table.csv").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"^error: --out: .*p_table.csv"):
        draw(tmp_path, "table")


def notes(monkeypatch):
    """What the pictures that are drawn from now on say above and below their panels, as a list that grows."""
    found = []

    def keep(prefix, figure):
        found.extend([figure.get_suptitle(), *(legend.get_title().get_text() for legend in figure.legends)])
        found.extend(axis.get_xlabel() for axis in figure.axes if axis.get_visible())
        drawing.plt.close(figure)

    monkeypatch.setattr(drawing, "write_figure", keep)
    return found


def test_a_picture_says_whose_score_is_1(runs, tmp_path, capsys, monkeypatch):
    """The baseline's; or, where the default one is not drawn, the best series' in each environment."""
    make_all(runs, SWEPT)
    options = dict(choose_on_reported=True, pictures=True)
    said = notes(monkeypatch)
    draw(tmp_path, "step-sizes", "aggregate", **options)
    assert any("score: 0 untrained, 1 Adam at its best step size; 95% t intervals" in text for text in said)
    assert "score: 0 untrained, 1 Adam; 95% bootstrap intervals" in said
    assert "P(better than\nAdam)" in said
    with pytest.raises(SystemExit, match="--baseline nope: no such series; there are adam; adahesscale"):
        draw(tmp_path, baseline="nope", **options)
    make_all(runs, {("Hopper-v4", "sgd", 1e-3): (110, 110), ("Ant-v4", "sgd", 1e-3): (9, 9)})
    said.clear()
    draw(tmp_path, "aggregate", "table", where="optimizer != 'adam'", **options)
    assert "score: 0 untrained, 1 the best series in each environment; 95% bootstrap" in said[0]
    scores = {row["series"]: float(row["final"]) for row in rows(tmp_path, "table", env_id="all, score")}
    assert scores == pytest.approx({"adahesscale": (1 + 6 / 9) / 2, "sgd": (0.5 + 1) / 2}, rel=1e-4)
    assert "counts as 0" not in capsys.readouterr().err and not [text for text in said if "better than" in text]


def test_the_table_has_the_policys_entropy_and_kl_of_the_runs_that_have_not_diverged(runs, tmp_path):
    for seed, state, scale in (1, "finished", 1.0), (2, "finished", 3.0), (3, "diverged", 1e30):
        entropy = [(100 * k, scale * (k if k > 10 else 1e6)) for k in range(1, 31)]  # mean of the last 20: 20.5
        kl = [(100 * k, scale * value) for k, value in enumerate((0.5, 0.01, 0.03))]
        signs = {"losses/entropy": entropy, "losses/approx_kl": kl}
        make_run(runs, flat(1.0), seed, state=state, signs=signs)
        make_run(runs, flat(1.0), seed, state=state, agent="a2c", env_id="Ant-v4", signs={"losses/entropy": entropy})
    make_run(runs, flat(1.0), optimizer="sgd")  # and one that logs neither
    draw(tmp_path, "table")
    assert numbers(rows(tmp_path, "table", series="adam", agent="ppo")[0], "entropy", "approx_kl") == [41, 0.06]
    (row,) = rows(tmp_path, "table", series="adam", agent="a2c")
    assert float(row["entropy"]) == 41 and row["approx_kl"] == ""
    (row,) = rows(tmp_path, "table", series="sgd")
    assert row["entropy"] == row["approx_kl"] == ""
    assert [cell(tmp_path, "PPO, Hopper-v4", "Adam", column) for column in (-2, -1)] == ["41", "0.06"]
    draw(tmp_path, "table", where="optimizer == 'sgd'")
    assert "entropy" not in (tmp_path / "out/p_table.md").read_text() + (tmp_path / "out/p_table.csv").read_text()


def test_cleanrls_returns_stand_where_its_steps_are_matched(runs, tmp_path):
    make_run(runs, flat(1.0), env_id="Hopper-v4")
    draw(tmp_path, "table")
    assert "CleanRL" not in (tmp_path / "out/p_table.md").read_text()
    path = make_run(runs, flat(1.0), env_id="Hopper-v4", total=1_000_000, seed=2)
    change(path, total_timesteps=1_000_000)
    draw(tmp_path, "table", where="total_timesteps == 1000000")
    assert cell(tmp_path, "PPO, Hopper-v4", "CleanRL's PPO") == "2383 ± 676"  # t(0.975, 2) * 272 / sqrt(3)
    assert "Walker2d" not in (tmp_path / "out/p_table.md").read_text()
    evaluate(path, (0, 0.0), (1_000_000, 1.0))
    draw(tmp_path, "table", where="total_timesteps == 1000000", evaluations=True)  # CleanRL's are of training
    assert "CleanRL" not in (tmp_path / "out/p_table.md").read_text()
    a2c = make_run(runs, flat(1.0), env_id="Walker2d-v4", agent="a2c", total=1_000_000)
    change(a2c, total_timesteps=1_000_000)
    draw(tmp_path, "table", where="total_timesteps == 1000000")
    assert "| PPO, Walker2d-v4" not in (tmp_path / "out/p_table.md").read_text()


NAMED = """[[grid]]
agent = "ppo"
env_id = "Hopper-v4"
optimizer = ["adam", "adahesscale"]
seed = [1, 2]
total_timesteps = 10_000

[[grid]]
name = "annealed"
agent = "ppo"
env_id = "Hopper-v4"
optimizer = "adam"
anneal_lr = true
seed = [1, 2]
total_timesteps = 10_000
"""


def test_a_table_with_a_name_is_a_series_of_its_own(runs, tmp_path, capsys):
    for seed, value in (1, 10.0), (2, 20.0):
        make_run(runs, flat(value), seed)
        make_run(runs, flat(value + 5), seed, optimizer="adahesscale")
        make_run(runs, flat(value + 7), seed, anneal_lr=True)
    (tmp_path / "grid.toml").write_text(NAMED)
    draw(tmp_path, "table", grids=(str(tmp_path / "grid.toml"),))
    finals = {row["series"]: float(row["final"]) for row in rows(tmp_path, "table")}
    assert finals == {"adam": 15, "adam, annealed": 22, "adahesscale": 20}
    assert cell(tmp_path, "PPO, Hopper-v4", "Adam, annealed").startswith("22.0 ±")


def test_a_name_allows_its_own_settings_and_no_other_length(runs, tmp_path, capsys):
    for seed in (1, 2):
        make_run(runs, flat(1.0), seed)
        make_run(runs, flat(1.0), seed, anneal_lr=True)
    make_run(runs, flat(1.0), 3, anneal_lr=True, total=20_000)
    grids = (str(tmp_path / "grid.toml"),)
    (tmp_path / "grid.toml").write_text(NAMED.replace('name = "annealed"\n', ""))
    assert "--anneal-lr" in fails(tmp_path, capsys, grids=grids)
    first, second = NAMED.split("\n\n")
    second = second.replace("[1, 2]", "[1, 3]").replace("10_000", "20_000")
    (tmp_path / "grid.toml").write_text(f"{first}\n\n{second}")
    assert "--total-timesteps" in fails(tmp_path, capsys, grids=grids)


# ---- the choice of a step size -----------------------------------------------------------------------------

GRID = """[[grid]]
agent = "ppo"
env_id = "Hopper-v4"
optimizer = ["adam", "adahesscale"]
seed = [1, 2, 3]
total_timesteps = 10_000
"""
ROLES = """[[grid]]
agent = "ppo"
env_id = "Hopper-v4"
optimizer = "adam"
learning_rate = [1e-4, 1e-3]
seed = [1, 2]
total_timesteps = 10_000

[[grid]]
agent = "ppo"
env_id = "Hopper-v4"
optimizer = "adam"
learning_rate = [1e-4, 1e-3]
seed = [101, 102]
total_timesteps = 10_000
selection = true
"""


def make_roles(folder, selected):
    """Reported are 10 and 20 at 1e-4, 30 and 40 at 1e-3; `selected` {step size: return} on seeds 101 and 102."""
    for lr, returns in (1e-4, (10.0, 20.0)), (1e-3, (30.0, 40.0)):
        for seed, value in enumerate(returns, 1):
            make_run(folder / "runs", flat(value, 0.0), seed, learning_rate=lr)
            make_run(folder / "runs", flat(selected[lr], 0.0), 100 + seed, learning_rate=lr)
    (folder / "grid.toml").write_text(ROLES)
    return (str(folder / "grid.toml"),)


@pytest.mark.parametrize(
    "selected, lr, final",
    [
        ({1e-4: 9.0, 1e-3: 8.0}, "0.0001", 15),
        ({1e-4: 8.0, 1e-3: 9.0}, "0.001", 35),
        ({1e-4: 9.0, 1e-3: 9.0}, "0.0001", 15),
    ],
)
def test_the_step_size_is_chosen_on_selection_seeds_and_reported_on_others(runs, tmp_path, selected, lr, final):
    grids = make_roles(tmp_path, selected)
    draw(tmp_path, grids=grids)
    (row,) = rows(tmp_path, "table")
    assert (row["step_sizes"], row["seeds"], float(row["final"])) == (lr, "1 2", final)
    assert {(row["learning_rate"], row["seeds"]) for row in rows(tmp_path, "curves")} == {(lr, "1 2")}
    assert [row["seeds"] for row in rows(tmp_path, "step_sizes")] == ["1 2"] * 2
    score = number(tmp_path, "step_sizes", "value", learning_rate="0.001")
    assert score == pytest.approx(35 / final, rel=1e-5)  # 1 is the baseline at the chosen step size


def test_a_choice_that_is_shown_on_its_own_seeds_is_warned_of(runs, tmp_path, capsys):
    grids, warning = make_roles(tmp_path, {1e-4: 8.0, 1e-3: 9.0}), "the best step sizes are shown on the seeds that"
    draw(tmp_path, "table", grids=grids)
    draw(tmp_path, "step-sizes", grids=grids, where="seed > 100")  # nothing is chosen there
    assert warning not in capsys.readouterr().err
    draw(tmp_path, "table", grids=grids, where="seed > 100")
    assert number(tmp_path, "table", "final") == 9 and f"warning: {warning}" in capsys.readouterr().err


def test_a_seed_has_one_role(runs, tmp_path, capsys):
    grids = make_roles(tmp_path, {1e-4: 9.0, 1e-3: 8.0})
    (tmp_path / "grid.toml").write_text(ROLES.replace("[101, 102]", "[2, 102]").replace("1e-3]", "1e-3]", 1))
    assert "seed 2 is for selection and for the report too" in fails(tmp_path, capsys, grids=grids)
    other = ROLES.replace("[101, 102]", "[2, 102]").split("\n\n")
    (tmp_path / "grid.toml").write_text("\n\n".join([other[0], other[1].replace("[1e-4, 1e-3]", "1e-2")]))
    make_run(runs, flat(1.0), 2, learning_rate=1e-2)
    assert "seed 2: is for selection and for the report too" in fails(tmp_path, capsys, grids=grids)


def test_several_step_sizes_without_a_selection_need_leave(runs, tmp_path, capsys):
    make_roles(tmp_path, {1e-4: 9.0, 1e-3: 8.0})
    assert "several step sizes, and no seeds to choose one on" in fails(tmp_path, capsys, where="seed < 100")
    draw(tmp_path, "step-sizes", "sensitivity", where="seed < 100")
    assert not (tmp_path / "out/p_table.csv").exists()
    draw(tmp_path, "table", where="seed < 100", choose_on_reported=True)
    assert number(tmp_path, "table", "final") == 35


@pytest.mark.parametrize("selected", ["adahesscale", "adam"])
def test_no_series_vanishes_for_want_of_a_choice(runs, tmp_path, capsys, selected):
    """Neither one without selection runs, nor one whose chosen step size was not reported."""
    text = ROLES.replace("[1e-4, 1e-3]\nseed = [101", "1e-2\nseed = [101")
    first, second = text.split("\n\n")
    (tmp_path / "grid.toml").write_text(f"{first}\n\n{second.replace('adam', selected)}")
    make_all(runs, {("Hopper-v4", "adam", lr): (5, 7) for lr in (1e-4, 1e-3)})
    for seed in (101, 102):
        make_run(runs, flat(9.0), seed, optimizer=selected, learning_rate=1e-2)
    grids = (str(tmp_path / "grid.toml"),)
    assert "several step sizes of ppo Hopper-v4 adam, and no seeds" in fails(tmp_path, capsys, grids=grids)
    draw(tmp_path, "table", grids=grids, choose_on_reported=True)
    assert [row["series"] for row in rows(tmp_path, "table")] == ["adam"]


def test_of_equal_step_sizes_the_smaller_is_chosen(runs, tmp_path):
    make_all(runs, {("Hopper-v4", "adam", lr): (5, 7) for lr in (1e-2, 1e-4, 1e-3)})
    draw(tmp_path, "table", choose_on_reported=True)
    assert rows(tmp_path, "table")[0]["step_sizes"] == "0.0001"


# ---- step sizes and sensitivity ----------------------------------------------------------------------------

SWEPT = {
    ("Hopper-v4", "adam", 1e-4): (10, 30),
    ("Hopper-v4", "adam", 1e-3): (100, 140),  # the best but for the one that diverged
    ("Hopper-v4", "adam", 1e-2): (230, None),
    ("Hopper-v4", "adahesscale", 1e-3): (210, 230),
    ("Ant-v4", "adam", 1e-4): (1, 1),
    ("Ant-v4", "adam", 1e-3): (4, 2),
    ("Ant-v4", "adam", 1e-2): (2, 2),
    ("Ant-v4", "adahesscale", 1e-3): (6, 6),
}


def test_scores_over_the_step_size_and_their_mean_over_environments(runs, tmp_path):
    make_all(runs, SWEPT)
    draw(tmp_path, "step-sizes")
    score = lambda env_id, lr: number(tmp_path, "step_sizes", "value", env_id=env_id, learning_rate=lr, series="adam")  # noqa: E731
    assert [score("Hopper-v4", lr) for lr in (0.0001, 0.001, 0.01)] == pytest.approx([20 / 120, 1, 115 / 120], rel=1e-5)
    assert [score("all, score", lr) for lr in (0.0001, 0.001)] == pytest.approx([(1 / 6 + 1 / 3) / 2, 1], rel=1e-5)
    (row,) = rows(tmp_path, "step_sizes", env_id="Hopper-v4", learning_rate="0.01", series="adam")
    assert row["runs"] == "2" and row["diverged"] == "1"


def test_sensitivity_is_that_of_the_mean_return_over_the_run(runs, tmp_path):
    late = "Ant-v4", "adam", 1e-3  # which learns in the second half of the run what others do at its start
    make_all(runs, {cell: returns for cell, returns in SWEPT.items() if cell != late})
    for seed, value in enumerate(SWEPT[late], 1):
        episodes = [(step, value if step > TOTAL / 2 else 0.0) for step in range(100, TOTAL + 1, 100)]
        make_run(runs, episodes, seed, env_id=late[0], optimizer=late[1], learning_rate=late[2])
    draw(tmp_path, "sensitivity")
    mean = lambda value: np.nan if value is None else 0.99 * value  # the first of 100 bins is 0  # noqa: E731
    cells = {}
    for (env_id, optimizer, lr), returns in SWEPT.items():
        cells.setdefault(optimizer, {}).setdefault(env_id, {})[lr] = np.array([*map(mean, returns)])
    cells["adam"]["Ant-v4"][1e-3] = 0.5 * np.array(SWEPT[late])
    expected = stats.sensitivity({"adam": cells["adam"]})["adam"]  # AdaHesScale has one step size
    (row,) = rows(tmp_path, "sensitivity")
    assert numbers(row, "phi", "phi_low", "phi_high") == pytest.approx(expected["phi"], rel=1e-4)
    assert numbers(row, "best", "best_low", "best_high") == pytest.approx(expected["best"], rel=1e-4)
    assert row["series"] == "adam" and float(row["step_size"]) == expected["step_size"]


@pytest.mark.parametrize(
    "hopper, ant",
    [((1e-3, 1e-2), ()), ((1e-3, 1e-2), (1e-2, 1e-1)), ((1e-3, 1e-2), (1e-1, 1.0))],
    ids=["in one environment", "one step size in common", "none"],
)
def test_sensitivity_needs_several_step_sizes_in_all_environments(runs, tmp_path, capsys, hopper, ant):
    """An optimizer that was not swept in all of them would seem to need no tuning."""
    of_sgd = [("Hopper-v4", "sgd", lr) for lr in hopper] + [("Ant-v4", "sgd", lr) for lr in ant]
    make_all(runs, {cell: (i, i + 1) for i, cell in enumerate(of_sgd)})
    draw(tmp_path, "sensitivity", choose_on_reported=True)
    assert "no sensitivity: it needs" in capsys.readouterr().out
    make_all(runs, {cell: values for cell, values in SWEPT.items() if None not in values})
    draw(tmp_path, "sensitivity")
    assert [row["series"] for row in rows(tmp_path, "sensitivity")] == ["adam"]


# ---- the aggregate -----------------------------------------------------------------------------------------


def all_resamples(values):
    return np.array(list(itertools.product(values, repeat=len(values))))


SCORES = {  # by environment: of adam .5 1 1.5 and 1 1 1
    "adam": [(0.5, 1, 1.5), (1, 1, 1)],
    "adahesscale": [(1, 2, 3), (0.5, 0.75, 0)],
}


@pytest.fixture
def aggregate(runs, tmp_path):
    for optimizer, (hopper, ant) in SCORES.items():
        hopper, ant = [20 * x for x in hopper], [100 * x - 500 if x else None for x in ant]
        make_all(runs, {("Hopper-v4", optimizer, 3e-4): hopper})
        make_all(runs, {("Ant-v4", optimizer, 3e-4): ant}, untrained=-500.0)
    draw(tmp_path)
    return tmp_path


def test_the_interquartile_mean_is_that_of_scores_over_runs_and_environments(aggregate):
    iqm = lambda series, column="value": number(  # noqa: E731
        aggregate, "aggregate", column, series=series, quantity="interquartile mean"
    )
    assert iqm("adam") == pytest.approx(1) and iqm("adahesscale") == pytest.approx((0.5 + 0.75 + 1 + 2) / 4)
    # stratified: Ant's resamples are all 1 1 1, Hopper's are 27, and IQM is the mean of all but least and greatest
    exact = [np.mean(sorted([*sample, 1, 1, 1])[1:-1]) for sample in all_resamples(SCORES["adam"][0])]
    assert iqm("adam", "value_low") == pytest.approx(min(exact))  # at 1/27 each, both are beyond 2.5%
    assert iqm("adam", "value_high") == pytest.approx(max(exact))


def test_the_probability_of_improvement_is_that_of_all_pairs(aggregate):
    pairs = [itertools.product(*both) for both in zip(SCORES["adahesscale"], SCORES["adam"], strict=True)]
    wanted = np.mean([np.mean([(a > b) + (a == b) / 2 for a, b in of_env]) for of_env in pairs])
    (row,) = rows(aggregate, "aggregate", quantity="probability of improvement")
    value, low, high = numbers(row, "value", "value_low", "value_high")
    assert row["series"] == "adahesscale" and value == pytest.approx(wanted, rel=1e-5) and low <= value <= high


def test_the_performance_profile_is_the_share_of_runs_above(aggregate):
    for series, scores in SCORES.items():
        points = rows(aggregate, "aggregate", series=series, quantity="share of runs above")
        assert len(points) == 101 and float(points[0]["over"]) == 0 and float(points[-1]["over"]) == 3
        thresholds = np.array([float(row["over"]) for row in points])
        clear = np.abs(thresholds[:, None] - np.concatenate(scores)).min(axis=1) > 1e-3  # of six digits in the CSV
        wanted = np.array([np.mean(np.concatenate(scores) > t) for t in thresholds])
        assert np.array([float(row["value"]) for row in points])[clear] == pytest.approx(wanted[clear], rel=1e-4)


def test_the_aggregate_has_what_ran_in_all_environments(aggregate, runs, tmp_path, capsys):
    before = rows(tmp_path, "aggregate")
    make_all(runs, {("Hopper-v4", "sgd", 3e-4): (1000, 1000)})
    draw(tmp_path, "aggregate")
    assert rows(tmp_path, "aggregate") == before
    warning = "left out of the aggregate, because it is not of all environments: 2 runs: ppo Hopper-v4 sgd, seeds 1 2"
    assert warning in capsys.readouterr().err
    draw(tmp_path, "aggregate", where="optimizer == 'sgd' or (optimizer == 'adahesscale' and env_id == 'Ant-v4')")
    assert "no aggregate: it needs an optimizer with runs in all environments" in capsys.readouterr().out


def test_each_agent_has_its_own_series_with_their_numbers_of_runs():
    def row(agent, series, quantity, value, runs):
        interval = dict(value_low=value, value_high=value)
        return dict(agent=agent, series=series, quantity=quantity, over=0.5, value=value, runs=runs) | interval

    quantities = "interquartile mean", "probability of improvement", "share of runs above"
    one = [row("a2c", series, q, v, 3) for series, v in (("sgd", 0.1), ("scaled-adam", 0.2)) for q in quantities]
    other = [row("ppo", "scaled-adam", q, 0.3, 5) for q in quantities] + [row("ppo", "adam", quantities[0], 0.4, 2)]
    axes = drawing.draw_aggregate(plot.pd.DataFrame([*one, *other]), "Adam").axes
    assert [axis.get_title() for axis in axes[::3]] == ["A2C, n = 3", "PPO"]
    names = [[text.get_text() for text in axis.get_yticklabels()] for axis in axes[::3]]
    assert names == [["SGD", "Scaled Adam"], ["Adam (n = 2)", "Scaled Adam (n = 5)"]]
    drawn = [[tuple(line.get_xydata()[0]) for line in axis.lines if line.get_marker() in "ov"] for axis in axes]
    assert [sorted(points) for points in drawn] == [
        [(0.1, 0), (0.2, 1)], [(0.1, 0), (0.2, 1)], [(0.5, 0.1), (0.5, 0.2)],
        [(0.3, 1), (0.4, 0)], [(0.3, 1)], [(0.5, 0.3)],
    ]  # fmt: skip


# ---- which runs --------------------------------------------------------------------------------------------


def test_series_of_another_flag_are_told_apart_and_sorted_by_number(runs, tmp_path, capsys):
    for delta in (1e-5, 3e-8, 1e-7):
        make_run(runs, flat(1.0), optimizer="scaled-adam", delta=delta).rename(runs / f"{delta}")
    line = fails(tmp_path, capsys)
    assert "--delta" in line and "ppo has runs with each; add --by delta, or --where" in line
    make_run(runs, flat(2.0))
    draw(tmp_path, "table", by=("delta",), baseline="scaled-adam, delta 1e-07")
    names = ["adam", *(f"scaled-adam, delta {delta}" for delta in ("3e-08", "1e-07", "1e-05"))]
    assert [row["series"] for row in rows(tmp_path, "table")] == names
    assert number(tmp_path, "table", "final_difference", series="scaled-adam, delta 1e-05") == 0
    draw(tmp_path, "table", where="delta < 1e-7 and optimizer != 'adam'")
    assert [row["series"] for row in rows(tmp_path, "table")] == ["scaled-adam"]


@pytest.mark.parametrize("where", ["seed", "seed + 1", "'adam'", "1 < 2", "seed.max() > 1", "seed = 1", "nothing > 1"])
def test_what_is_not_true_or_false_of_each_run_is_refused(runs, tmp_path, capsys, where):
    for seed in (1, 2):
        make_run(runs, flat(1.0), seed)
    told = fails(tmp_path, capsys, where=where)
    assert told.startswith(f"error: --where {where}: ") and "it is a condition as" in told


def test_a_curve_is_not_that_of_the_runs_that_did_not_diverge(runs, tmp_path):
    for seed in (1, 2, 3):
        make_run(runs, flat(100.0, start=10.0, end=2000), seed, state="diverged")
    evaluate(make_run(runs, flat(100.0, start=10.0), 4), (0, 2.0), (5000, 40.0), (TOTAL, 50.0))
    evaluate(make_run(runs, flat(100.0, start=10.0, end=2000), 5, state="diverged"), (0, 2.0), (1000, 30.0))
    draw(tmp_path, "curves", where="seed < 5")
    found = {float(row["step"]): float(row["value"]) for row in rows(tmp_path, "curves")}
    assert found[1950] == 100 and found[2050] == found[9950] == (100 + 3 * 10) / 4
    draw(tmp_path, "curves", where="seed > 3", evaluations=True)
    found = {float(row["step"]): float(row["value"]) for row in rows(tmp_path, "curves")}
    assert found == {0: 2, 1000: 30, 5000: (40 + 2) / 2, TOTAL: (50 + 2) / 2}


def test_of_two_folders_with_a_run_the_better_is_drawn(runs, tmp_path):
    make_run(runs, flat(1.0, end=3000), state="failed").rename(runs / "first")
    make_run(runs, flat(2.0))
    draw(tmp_path, "table")
    assert cell(tmp_path, "PPO, Hopper-v4", "Adam") == "2.00"


def test_unknown_optimizers_and_agents_of_ones_own_are_drawn(runs, tmp_path):
    path = make_run(runs, flat(1.0), optimizer="lion", learning_rate=1e-3)
    change(path, script="my_agent.py")
    make_run(runs, flat(2.0))
    draw(tmp_path, "curves", "table")
    assert cell(tmp_path, "my_agent, Hopper-v4", "lion") == "1.00"
    assert cell(tmp_path, "PPO, Hopper-v4", "Adam") == "2.00"


def test_what_can_not_be_drawn_is_one_line(runs, tmp_path, capsys):
    (tmp_path / "grid.toml").write_text(GRID)
    grids = (str(tmp_path / "grid.toml"),)
    assert "has none of these runs; make some" in fails(tmp_path, capsys, where="optimizer == 'adam'", by=("delta",))
    make_run(runs, flat(1.0), env_id="Ant-v4")
    assert "has none of these runs; make some" in fails(tmp_path, capsys, grids=grids)
    assert "there is no such grid file" in fails(tmp_path, capsys, grids=("studdy",))
    assert "--where optimizr == 'adam': name 'optimizr' is not defined" in fails(
        tmp_path, capsys, where="optimizr == 'adam'"
    )
    line = fails(tmp_path, capsys, where="optimizer == 'adma'")
    assert "--where optimizer == 'adma': is true of none of the 1 runs; give another condition" in line
    line = fails(tmp_path, capsys, evaluations=True)
    assert "--evaluations: none of the runs was evaluated as it trained yet; make runs with --eval-interval" in line
    assert "--by detla: no run has such a flag" in fails(tmp_path, capsys, by=("detla",))
    assert "--what step-sizes: no optimizer was run at more than one" in fails(tmp_path, capsys, "step-sizes")
    make_run(runs, flat(1.0), env_id="Ant-v4", total=20_000, seed=2)
    assert "--total-timesteps 10000 20000: ppo has runs with each" in fails(tmp_path, capsys)
    for path in runs.glob("*/events*"):
        path.unlink()
    assert "none of the runs has got as far as" in fails(tmp_path, capsys, where="seed == 1")


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_runs_that_are_all_the_same_are_drawn_without_a_complaint(runs, tmp_path, capsys, value):
    make_all(runs, {("Hopper-v4", "adam", lr): (value, value) for lr in (1e-4, 1e-3)}, untrained=value)
    make_all(runs, {("Hopper-v4", "sgd", lr): (None, None) for lr in (1e-4, 1e-3)}, untrained=value)
    make_all(runs, {("Ant-v4", "adam", 1e-4): (value,)}, untrained=value)
    draw(tmp_path, pictures=value == 0, choose_on_reported=True)
    assert number(tmp_path, "table", "final", series="sgd") == value
    assert {row["value"] for row in rows(tmp_path, "step_sizes")} == {"0"}
    assert (
        "counts as 0, for adam or, without it, the best series is no better than an untrained policy: 9 runs"
        in capsys.readouterr().err
    )


def test_everything_is_there_as_png_and_pdf_with_fonts_as_truetype(runs, tmp_path):
    make_all(runs, SWEPT)
    draw(tmp_path, pictures=True, choose_on_reported=True)
    pictures = "curves", "step_sizes", "sensitivity", "aggregate"
    files = {f"p_{name}.{kind}" for name in pictures for kind in ("png", "pdf", "csv")} | {"p_table.md", "p_table.csv"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    assert all(path.stat().st_size > 8000 for path in (tmp_path / "out").glob("*.p*"))
    for path in (tmp_path / "out").glob("*.pdf"):
        assert b"/CIDFontType2" in path.read_bytes() and b"/Type3" not in path.read_bytes()


def test_the_command_line(runs, tmp_path):
    for seed, optimizer in itertools.product((1, 2), ("adam", "adahesscale")):
        make_run(runs, flat(float(seed)), seed, optimizer=optimizer)
    (tmp_path / "grid.toml").write_text(GRID)
    command = [
        sys.executable,
        ROOT / "scripts/plot.py",
        "grid.toml",
        "--out",
        "pictures/p",
        "--what",
        "curves",
        "table",
    ]
    done = subprocess.run([*command, "--where", "optimizer == 'adam'"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "2 of the grid's 6 runs are missing" in done.stderr, done.stderr
    files = ["curves.png", "curves.pdf", "curves.csv", "table.md", "table.csv"]
    assert done.stdout.splitlines() == ["2 runs from runs/", *(f"pictures/p_{name}" for name in files)]
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {f"p_{name}" for name in files}


@pytest.mark.parametrize(
    "flags, message",
    [
        ("", "--out is missing: must be how the files' names begin, as --out results/study"),
        ("--out p --what curve", "--what"),
        ("--out nowhere/", "--out nowhere/: must be how the files' names begin"),
        ("--out file/p", "file is not a folder that can be written to"),
        ("--out p --runs nowhere", "--runs nowhere: there is no such folder"),
    ],
)
def test_a_command_line_that_is_invalid_is_one_line(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["plot.py", *flags.split()])
    with pytest.raises(SystemExit) as exit:
        plot.main(plot.parse_args(plot.Args))
    assert exit.value.code.startswith("error: ") and message in exit.value.code and "\n" not in exit.value.code
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def test_every_optimizer_has_a_look_of_its_own():
    assert set(drawing.STYLES) == set(OPTIMIZERS)
    styles = list(drawing.STYLES.values())
    assert len({color for _, color, _, _ in styles}) == len(styles)
    assert len({(str(line), marker, label[:6] == "Scaled") for label, _, line, marker in styles}) == len(styles)
    study = ["adam", "adahessian", "adahesscale", "scaled-adam", "scaled-adahesscale"]
    channels = [[int(drawing.STYLES[name][1][i : i + 2], 16) for i in (1, 3, 5)] for name in study]
    grey = np.sort(np.array(channels) @ [0.299, 0.587, 0.114])
    assert np.diff(grey).min() > 20  # of 255


@pytest.mark.parametrize(
    "flag, values, condition",
    [
        ("exp_name", ("ppo_hesscale", "mine"), "exp_name == 'ppo_hesscale'"),
        ("max_grad_norm", (None, 0.5), "max_grad_norm.isna()"),
        ("betas", ([0.9, 0.999], [0.9, 0.9]), "betas.astype('str') == '(0.9, 0.999)'"),
        ("env_kwargs", ("", "a=1"), "env_kwargs == ''"),
        ("clip_vloss", (False, True), "clip_vloss == False"),
        ("total_timesteps", (10_000, 20_000), "total_timesteps == 10000"),
    ],
)
def test_what_is_advised_where_runs_differ_in_a_flag_can_be_done(runs, tmp_path, capsys, flag, values, condition):
    total = dict(total=values[1]) if flag == "total_timesteps" else {}
    make_run(runs, flat(1.0), **({} if total else {flag: values[0]})).rename(runs / "first")
    make_run(runs, flat(2.0), 1, **total or {flag: values[1]})
    line = fails(tmp_path, capsys)
    (advice,) = re.findall(r'or --where "(.*)"$', line)
    assert f"add --by {flag}, or" in line and advice == condition
    draw(tmp_path, "table", where=advice)
    assert [row["final"] for row in rows(tmp_path, "table")] == ["1"]
    draw(tmp_path, by=(flag,), baseline=rows(tmp_path, "table")[0]["series"])
    names = [row["series"] for row in rows(tmp_path, "table")]
    assert len(names) == 2 and not any("nan" in name for name in names)


def test_a_run_whose_status_is_damaged_is_named(runs, tmp_path, capsys):
    make_run(runs, flat(1.0))
    (make_run(runs, flat(2.0), 2) / "status.json").write_text("{")
    draw(tmp_path, "table")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "status.json" in line]
    assert line.startswith("warning: left out, because their status.json can't be read: ") and line.endswith("32048")


def test_each_agents_aggregate_is_beside_its_own_baseline(runs, tmp_path):
    """A2C's SGD is better than both runs of its Adam, and than three quarters of both agents'."""
    for env_id in "Ant-v4", "Hopper-v4":
        make_all(runs, {(env_id, "adam", 3e-4): (1, 19), (env_id, "sgd", 3e-4): (20, 20)})
        make_all(runs, {(env_id, "adam", 3e-4): (9, 11), (env_id, "sgd", 3e-4): (15, 15)}, agent="a2c")
    draw(tmp_path, "aggregate")
    found = rows(tmp_path, "aggregate", quantity="probability of improvement")
    assert [(row["agent"], row["value"]) for row in found] == [("a2c", "1"), ("ppo", "1")]


def test_all_environments_are_those_of_the_agent(runs, tmp_path):
    make_all(runs, {("Ant-v4", "adam", 3e-4): (1, 3), ("Hopper-v4", "adam", 3e-4): (1, 3)})
    make_all(runs, {("Ant-v4", "adam", 3e-4): (1, 3)}, agent="a2c")
    draw(tmp_path, "aggregate")
    assert {row["agent"] for row in rows(tmp_path, "aggregate")} == {"a2c", "ppo"}


def test_sensitivity_counts_the_series_own_runs(runs, tmp_path):
    make_all(runs, {cell: (i, i + 1) for i, cell in enumerate(SWEPT)})
    draw(tmp_path, "sensitivity")
    assert [(row["series"], row["runs"]) for row in rows(tmp_path, "sensitivity")] == [("adam", "12")]


def test_the_untrained_return_of_the_report_is_that_of_its_own_seeds(runs, tmp_path):
    grids = make_roles(tmp_path, {1e-4: 8.0, 1e-3: 9.0})
    for path in runs.glob("*__10[12]__*"):
        for events in path.glob("events*"):
            events.unlink()
        lr = 1e-4 if "0.0001" in path.name else 1e-3
        make_run(runs, flat({1e-4: 8.0, 1e-3: 9.0}[lr], -100.0), int(path.name.split("__")[3]), learning_rate=lr)
    draw(tmp_path, "step-sizes", "table", grids=grids)
    assert number(tmp_path, "step_sizes", "value", learning_rate="0.0001") == pytest.approx(15 / 35, rel=1e-5)


def test_a_step_size_of_some_environments_has_no_score_over_all(runs, tmp_path):
    make_all(runs, {cell: values for cell, values in SWEPT.items() if None not in values})  # 1e-2 is Ant's alone
    draw(tmp_path, "step-sizes")
    over_all = rows(tmp_path, "step_sizes", env_id="all, score", series="adam")
    assert [row["learning_rate"] for row in over_all] == ["0.0001", "0.001"]


def bars(axis):
    """The intervals that are drawn, [(colour, x and y of both ends), ...]."""
    return [
        (drawing.matplotlib.colors.to_hex(lines.get_color()[0]), np.round(lines.get_segments()[0], 6).tolist())
        for container in axis.containers
        for lines in container.lines[2]
    ]


def look(optimizer):
    return drawing.STYLES[optimizer][1].lower()


def test_curves_and_their_intervals_are_drawn_where_they_are_and_named_in_their_colours():
    names, found = ("sgd", "adam", "adahesscale"), []
    for i, series in enumerate(names):
        for env_id, runs in ("Ant-v4", 3), ("Hopper-v4", 5):
            for k in range(1, 4):
                value = 10 * i + k + 100 * (runs == 5)
                row = dict(agent="ppo", env_id=env_id, series=series, runs=runs, step=2000 * k, value=value)
                found.append(row | dict(value_low=value - 1, value_high=value + 2))
    figure = drawing.draw_curves(pd.DataFrame(found), "Adam")
    for axis, base, env_id in zip(figure.axes, (0, 100), ("Ant-v4", "Hopper-v4"), strict=True):
        assert axis.get_title() == f"PPO, {env_id}"
        for i, (line, band) in enumerate(zip(axis.lines, axis.collections, strict=True)):
            assert line.get_color().lower() == look(names[i])
            np.testing.assert_allclose(line.get_xydata(), [[2 * k, base + 10 * i + k] for k in (1, 2, 3)])
            y = band.get_paths()[0].vertices[:, 1]
            assert (y.min(), y.max()) == (base + 10 * i + 1 - 1, base + 10 * i + 3 + 2)
    (legend,) = figure.legends
    assert figure.get_supxlabel() == "environment steps (thousands)"
    assert legend.get_title().get_text() == "n = 3\N{EN DASH}5; 95% t intervals"
    labels = {handle.get_label(): handle.get_color().lower() for handle in legend.legend_handles}
    assert labels == {drawing.STYLES[name][0]: look(name) for name in names}


def test_step_sizes_are_drawn_with_their_intervals_and_a_cross_where_runs_diverged():
    about = dict(agent="ppo", env_id="Ant-v4", series="adam", runs=3)
    points = [(1e-4, 0.5, 0.4, 0.9, 0), (1e-3, 1.0, 0.7, 1.1, 0), (1e-2, 0.2, 0.1, 0.6, 2)]
    names = "learning_rate", "value", "value_low", "value_high", "diverged"
    (axis,) = drawing.draw_step_sizes(
        pd.DataFrame([about | dict(zip(names, p, strict=True)) for p in points]), "Adam"
    ).axes
    (crosses,) = [line for line in axis.lines if line.get_marker() == "x"]
    np.testing.assert_allclose(crosses.get_xydata(), [[1e-2, 0]])
    (lines,) = axis.containers[0].lines[2]
    assert [segment[:, 1].tolist() for segment in lines.get_segments()] == [
        pytest.approx([low, high]) for _, _, low, high, _ in points
    ]


def test_sensitivity_is_drawn_over_the_performance():
    row = dict(agent="ppo", series="adam", runs=3, phi=0.3, phi_low=0.2, phi_high=0.5, step_size=1e-3)
    found = pd.DataFrame([row | dict(best=0.8, best_low=0.7, best_high=0.85)])
    (axis,) = drawing.draw_sensitivity(found, "Adam").axes
    assert axis.get_xlabel() == "performance at tuned step sizes" and axis.get_ylabel().startswith("sensitivity")
    assert {tuple(line.get_xydata()[0]) for line in axis.lines if line.get_marker() == "o"} == {(0.8, 0.3)}
    assert bars(axis) == [
        (look("adam"), [[0.8, 0.2], [0.8, 0.5]]), (look("adam"), [[0.7, 0.3], [0.85, 0.3]]),
    ]  # fmt: skip
