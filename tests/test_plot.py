"""The pictures' numbers are those of the runs: against runs with known returns, and statistics done by hand."""

import csv
import itertools
import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import asdict

import numpy as np
import pytest
from conftest import ROOT
from torch.utils.tensorboard import SummaryWriter

sys.path.insert(0, str(ROOT / "scripts"))
import plot
import sweep

from hesscale_core import OPTIMIZERS

TOTAL = 10_000  # so a bin has 100 steps


def flat(value, start=None, end=TOTAL):
    """An episode in each bin until `end`: the first returns `start`, the others `value`."""
    return [(step, value if start is None or step > 100 else start) for step in range(100, end + 1, 100)]


def log(folder, episodes, **options):
    writer = SummaryWriter(folder, **options)
    for step, value in episodes:
        writer.add_scalar("charts/episodic_return", value, step)
    writer.close()


def make_run(folder, episodes, seed=1, state="finished", step=None, agent="ppo", **args):
    """A run's folder in `folder`, as the agents make it."""
    module = sweep.load_agent(agent)
    args = asdict(module.Args()) | {"seed": seed, "env_id": "Hopper-v4", "optimizer": "adam"} | args
    args = {"total_timesteps": TOTAL} | args | {"total_timesteps": args.get("total", TOTAL)}
    args["learning_rate"] = args["learning_rate"] or module.LEARNING_RATES[args["optimizer"]]
    args.pop("total", None)
    name = f"{args['env_id']}__{args['exp_name']}__{args['optimizer']}__{seed}__{args['learning_rate']:g}"
    path = folder / f"{name}{args['num_steps']}"
    log(path, episodes)
    status = {"state": state, "step": episodes[-1][0] if step is None else step, "args": args, "commit": "abc"}
    status |= {"script": f"{agent}_hesscale.py", "versions": {}, "start": "2026-01-01", "resumed_at": []}
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
            patch.setattr(plot, "write_figure", lambda prefix, figure: plot.plt.close(figure))
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        plot.main(args)


def rows(folder, what, **wanted):
    with open(folder / f"out/p_{what}.csv", newline="") as file:
        found = list(csv.DictReader(file))
    return [row for row in found if all(row[name] == str(value) for name, value in wanted.items())]


def number(folder, what, column, **wanted):
    (row,) = rows(folder, what, **wanted)
    return float(row[column])


def table(folder):
    """PREFIX_table.md as {row's name: {column's name: cell}}, and the lines below."""
    lines = (folder / "out/p_table.md").read_text().splitlines()
    head, _, *body = [line.strip("|").split(" | ") for line in lines if line.startswith("|")]
    names = [name.strip() for name in head[1:]]
    cells = {line[0].strip(): dict(zip(names, map(str.strip, line[1:]), strict=True)) for line in body}
    return cells, [line for line in lines if line and not line.startswith("|")]


def fails(folder, capsys, *what, **options):
    """The one line that a call ends with; it must have written nothing."""
    with pytest.raises(SystemExit) as exit:
        draw(folder, *what, **options)
    assert not list(folder.glob("out*"))
    assert exit.value.code.startswith("error: ") and "\n" not in exit.value.code
    return exit.value.code


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


# ---- reading -----------------------------------------------------------------------------------------------


def test_a_curve_has_the_mean_of_the_episodes_that_ended_in_each_bin(runs, tmp_path):
    make_run(runs, [(50, 1.0), (100, 3.0), (101, 4.0), (450, 10.0), (8000, 20.0), (9201, 30.0)], step=9750)
    draw(tmp_path, "curves")
    found = {float(row["step"]): float(row["return"]) for row in rows(tmp_path, "curves")}
    known = [(0, 2.0), (1, 4.0), (4, 10.0), (79, 20.0), (92, 30.0)]  # the first step is 1: bin 0 has steps 1 to 100
    bins = np.arange(93)  # the last that is logged is in bin 92
    assert found == pytest.approx({(i + 0.5) * 100: np.interp(i, *zip(*known, strict=True)) for i in bins}, rel=1e-5)
    (row,) = rows(tmp_path, "curves", step=50)
    assert row["low"] == row["high"] == "" and row["runs"] == row["runs_there"] == "1"


def test_a_run_goes_on_to_its_last_log_and_starts_with_its_first_episode(runs, tmp_path):
    path = make_run(runs, [(350, 1.0), (5000, 2.0)], step=7010)
    writer = SummaryWriter(path)
    writer.add_scalar("charts/SPS", 1.0, 7010)
    writer.close()
    draw(tmp_path, "curves")
    found = [float(row["return"]) for row in rows(tmp_path, "curves")]
    assert len(found) == 71 and found[:4] == [1.0] * 4 and found[49:] == [2.0] * 22


def test_what_a_resumed_run_has_logged_again_is_void(runs, tmp_path, capsys):
    path = make_run(runs, flat(1.0, end=6000), step=TOTAL)  # killed there; its checkpoint was of step 3000
    log(path, [(3001, 1e6)])
    time.sleep(1.1)  # as starting a process takes; event files are read in the order of their seconds
    log(path, flat(2.0)[30:], purge_step=3001)
    draw(tmp_path, "curves")
    assert [float(row["return"]) for row in rows(tmp_path, "curves")] == [1.0] * 30 + [2.0] * 70
    assert rows(tmp_path, "runs")[0]["episodes"] == "100"
    assert capsys.readouterr().err.count("warning: ") == 1  # of the single seed


def test_the_final_return_is_that_of_the_last_50_episodes(runs, tmp_path):
    for seed, offset in (1, 0.0), (2, 30.0), (3, 90.0):
        make_run(runs, [(100 * (i + 1), offset + i) for i in range(60)], seed)  # 34.5 + offset
    draw(tmp_path, "table")
    assert [float(row["final_return"]) for row in rows(tmp_path, "runs")] == [34.5, 64.5, 124.5]
    error = np.sqrt(((34.5 - 74.5) ** 2 + (64.5 - 74.5) ** 2 + (124.5 - 74.5) ** 2) / 2 / 3)
    cells, notes = table(tmp_path)
    assert cells == {"PPO, Hopper-v4": {"Adam": f"74.5 ± {error:.1f}"}}
    assert "over 3 seeds" in notes[0]


def test_evaluations_are_drawn_instead_where_asked_for(runs, tmp_path):
    for seed in (1, 2):
        path = make_run(runs, flat(5.0), seed)
        writer = SummaryWriter(path)
        for step, value in (50, 1.0), (5050, 2.0), (9950, 3.0 + seed):
            writer.add_scalar("eval/episodic_return", value, step)
        writer.close()
    draw(tmp_path, "curves", "table", evaluations=True)
    found = {float(row["step"]): float(row["return"]) for row in rows(tmp_path, "curves")}
    assert (found[50], found[5050], found[9950]) == (1.0, 2.0, 4.5) and 1 < found[2550] < 2
    assert [float(row["final_return"]) for row in rows(tmp_path, "runs")] == [4.0, 5.0]  # the last evaluation's


def test_half_written_event_files_are_drawn_as_far_as_they_go(runs, tmp_path, capsys):
    cut = make_run(runs, flat(1.0))
    (events,) = cut.glob("events*")
    os.truncate(events, events.stat().st_size * 6 // 10)
    garbage = make_run(runs, flat(1.0), seed=2)
    (events,) = garbage.glob("events*")
    events.write_bytes(b"\xff" * 1000)
    stopped = make_run(runs, flat(1.0, end=5000), seed=3, state="interrupted", step=5900)
    draw(tmp_path, "curves", "table")
    drawn = rows(tmp_path, "curves", runs_there=1)
    assert 55 < float(drawn[-1]["step"]) / 100 < 65
    assert [row["episodes"] for row in rows(tmp_path, "runs", seed=2)] == ["0"]
    errors = capsys.readouterr().err
    assert f"{cut.name} (ends at step {int(drawn[-1]['step'][:2]) + 1}00 of 10000)" in errors
    assert f"{garbage.name} (ends at step 0 of 10000)" in errors
    assert "without an episode's end in its event files: 1 run: ppo Hopper-v4 adam, seed 2" in errors
    assert "interrupted, and drawn as far as it went: 1 run: ppo Hopper-v4 adam, seed 3" in errors
    assert stopped.name not in errors  # 900 steps are what A2C may not have logged yet


def test_returns_that_are_not_finite_are_named(runs, tmp_path, capsys):
    path = make_run(runs, [*flat(1.0)[:-1], (TOTAL, float("inf"))])
    draw(tmp_path, "table")
    assert table(tmp_path)[0]["PPO, Hopper-v4"]["Adam"] == "1.00"
    assert f"{path.name} (1 of 100 returns not finite, and left out)" in capsys.readouterr().err


# ---- statistics --------------------------------------------------------------------------------------------


def all_resamples(values):
    return np.array(list(itertools.product(values, repeat=len(values))))


@pytest.mark.parametrize("values", [(0.0, 3.0, 12.0), (0.0, 1.0, 2.0, 4.0, 40.0)])
def test_the_interval_is_the_exact_bootstrap(runs, tmp_path, values):
    for seed, value in enumerate(values):
        make_run(runs, flat(value), seed)
    draw(tmp_path, "curves")
    exact = np.sort(all_resamples(values).mean(axis=1))  # 27 and 3125 of them
    for row in rows(tmp_path, "curves")[::33]:
        assert float(row["return"]) == pytest.approx(np.mean(values))
        for column, share in ("low", 0.025), ("high", 0.975):
            least, greatest = np.quantile(exact, [share - 0.008, share + 0.008], method="inverted_cdf")
            assert least - 1e-4 <= float(row[column]) <= greatest + 1e-4


def test_the_standard_error_is_the_papers(runs, tmp_path):
    for seed, value in enumerate((0.0, 3.0, 12.0)):
        make_run(runs, flat(value), seed)
    draw(tmp_path, "curves", interval="stderr")
    (row,) = rows(tmp_path, "curves", step=50)
    error = np.sqrt((25 + 4 + 49) / 2 / 3)
    assert [float(row[k]) for k in ("return", "low", "high")] == pytest.approx([5, 5 - error, 5 + error], rel=1e-4)


@pytest.fixture
def two_environments(runs, tmp_path):
    """Adam's scores are .25 .5 .75 and 1 1 1; AdaHesScale's .5 1 1.5 and .5 .6 0, of a run that diverged."""
    finals = {
        ("Hopper-v4", "adam"): (10, 20, 30),
        ("Hopper-v4", "adahesscale"): (20, 40, 60),  # mean 40 is the best
        ("Ant-v4", "adam"): (-400, -400, -400),  # the best, too
        ("Ant-v4", "adahesscale"): (-450, -440, None),
    }
    for (env_id, optimizer), returns in finals.items():
        untrained = {"Hopper-v4": 0.0, "Ant-v4": -500.0}[env_id]
        for seed, value in enumerate(returns):
            end, state = (TOTAL, "finished") if value is not None else (5050, "diverged")
            # an episode before the last 50 alone is of the untrained policy
            episodes = flat(float(value if value is not None else 1e4), untrained, end)
            make_run(runs, episodes, seed, state, env_id=env_id, optimizer=optimizer, step=episodes[-1][0])
    draw(tmp_path)
    return tmp_path


SCORES = {
    "adam": [(0.25, 0.5, 0.75), (1, 1, 1)],
    "adahesscale": [(0.5, 1, 1.5), (0.5, 0.6, 0)],
}


def test_the_interquartile_mean_is_that_of_scores_over_runs_and_environments(two_environments):
    iqm = lambda optimizer, column: number(  # noqa: E731
        two_environments, "aggregate", column, optimizer=optimizer, quantity="interquartile mean"
    )
    assert iqm("adam", "value") == pytest.approx((0.5 + 0.75 + 1 + 1) / 4)
    assert iqm("adahesscale", "value") == pytest.approx((0.5 + 0.5 + 0.6 + 1) / 4)
    # stratified: Ant's resamples are all 1 1 1, Hopper's are 27, and IQM is the mean of all but least and greatest
    exact = [np.mean(sorted([*some, 1, 1, 1])[1:-1]) for some in all_resamples(SCORES["adam"][0])]
    assert iqm("adam", "low") == pytest.approx(min(exact))  # at 1/27 each, both are beyond 2.5%
    assert iqm("adam", "high") == pytest.approx(max(exact))


def test_the_probability_of_improvement_is_that_of_all_pairs(two_environments):
    for x, y in ("adahesscale", "adam"), ("adam", "adahesscale"):
        pairs = [itertools.product(*both) for both in zip(SCORES[x], SCORES[y], strict=True)]
        wanted = np.mean([np.mean([(a > b) + (a == b) / 2 for a, b in of]) for of in pairs])
        where = dict(optimizer=x, over=y, quantity="probability of improvement over")
        assert number(two_environments, "aggregate", "value", **where) == pytest.approx(wanted, rel=1e-5)
    assert wanted == pytest.approx(1 - 7.5 / 18)
    # Ant's are 0 or 1/6 in any resample; Hopper's least is that of .5 .5 .5 against .75 .75 .75
    assert 0 <= number(two_environments, "aggregate", "low", **where) <= wanted
    assert wanted <= number(two_environments, "aggregate", "high", **where) <= 1


def test_the_performance_profile_is_the_share_of_runs_above(two_environments):
    for optimizer, scores in SCORES.items():
        points = rows(two_environments, "aggregate", optimizer=optimizer, quantity="share of runs above")
        assert len(points) == 101 and float(points[0]["over"]) == 0 and float(points[-1]["over"]) == 1.5
        assert float(points[0]["value"]) == pytest.approx({"adam": 1, "adahesscale": 5 / 6}[optimizer], rel=1e-5)
        thresholds = np.array([float(row["over"]) for row in points])
        clear = np.abs(thresholds[:, None] - np.concatenate(scores)).min(axis=1) > 1e-3  # of six digits in the CSV
        wanted = [np.mean(np.concatenate(scores) > t) for t in thresholds]
        assert np.array([float(row["value"]) for row in points])[clear] == pytest.approx(
            np.array(wanted)[clear], rel=1e-4
        )
        assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in points)


def test_a_diverged_run_ends_its_curve_with_a_cross_and_is_counted_in_the_table(two_environments):
    ant = dict(env_id="Ant-v4", optimizer="adahesscale")
    (cross,) = rows(two_environments, "curves", point="diverged", **ant)
    assert cross["step"] == "4950" and float(cross["return"]) == 1e4
    assert number(two_environments, "curves", "return", step=4950, point="mean", **ant) == pytest.approx(
        9110 / 3, rel=1e-5
    )
    after = rows(two_environments, "curves", step=5150, **ant)
    assert [(float(row["return"]), row["runs_there"], row["diverged"]) for row in after] == [(-445, "2", "1")]
    cells, _ = table(two_environments)
    assert cells["PPO, Ant-v4"]["AdaHesScale"] == "-445 ± 5 (1 of 3 diverged)"


def test_everything_is_there_as_png_and_pdf_with_fonts_as_truetype(two_environments):
    draw(two_environments, pictures=True)
    names = {"curves": "png pdf csv", "aggregate": "png pdf csv", "table": "md", "runs": "csv"}
    files = {f"p_{name}.{kind}" for name, kinds in names.items() for kind in kinds.split()}
    assert {path.name for path in (two_environments / "out").iterdir()} == files
    for path in (two_environments / "out").glob("*.p*"):
        assert path.stat().st_size > 8000
    for path in (two_environments / "out").glob("*.pdf"):
        assert b"/CIDFontType2" in path.read_bytes() and b"/Type3" not in path.read_bytes()


@pytest.fixture
def step_sizes(runs, tmp_path, capsys):
    finals = {
        ("adam", 1e-4): (10, 30),
        ("adam", 1e-3): (100, 140),
        ("adam", 1e-2): (230, None),
        ("adam", 1e-1): (None, None),
        ("adahesscale", 1e-3): (210, 230),
    }
    for (optimizer, lr), returns in finals.items():
        for seed, value in enumerate(returns):
            state = "finished" if value is not None else "diverged"
            episodes = flat(float(value or 500), 0.0)
            make_run(runs, episodes, seed, state, optimizer=optimizer, learning_rate=lr)
    draw(tmp_path)
    return tmp_path


def test_step_sizes_are_normalized_between_the_averages_drawn_and_diverged_runs_are_the_least(step_sizes):
    # least average 20, greatest 220: of 1e-2's runs one counts 230 and the other 20
    wanted = {1e-4: (0, 0, 20), 1e-3: (0.5, 0, 120), 1e-2: ((230 - 20) / 200 / 2, 1, 230), 1e-1: (0, 2, None)}
    for lr, (score, diverged, average) in wanted.items():
        (row,) = rows(step_sizes, "step_sizes", optimizer="adam", learning_rate=f"{lr:g}")
        assert float(row["normalized_return"]) == pytest.approx(score) and row["diverged"] == str(diverged)
        assert row["runs"] == "2" and row["seeds"] == "0 1"
        assert (float(row["mean_return"]) if row["mean_return"] else None) == average
    assert number(step_sizes, "step_sizes", "normalized_return", optimizer="adahesscale") == 1
    (row,) = rows(step_sizes, "step_sizes", optimizer="adam", learning_rate="0.001")
    assert (float(row["low"]), float(row["high"])) == pytest.approx((0.4, 0.6))


def test_elsewhere_the_best_step_size_is_drawn_and_named(step_sizes, capsys):
    # 1e-2 would be the best but for the run that diverged, which counts as untrained, 0
    drawn = {(row["optimizer"], row["learning_rate"], row["of_step_sizes"]) for row in rows(step_sizes, "curves")}
    assert drawn == {("adam", "0.001", "4"), ("adahesscale", "0.001", "1")}
    cells, notes = table(step_sizes)
    assert cells["PPO, Hopper-v4"]["Adam"] == "120 ± 20"
    assert notes[-1].endswith("PPO Hopper-v4 Adam 0.001.")
    draw(step_sizes, "step-sizes", pictures=True)
    assert (step_sizes / "out/p_step_sizes.png").stat().st_size > 8000
    assert "ppo Hopper-v4 adam at 0.001, best of 4 step sizes: seeds 0 1, return 120 ± 20" in capsys.readouterr().out


def test_over_several_environments_step_sizes_have_a_mean(runs, tmp_path):
    for env_id, factor in ("Hopper-v4", 1), ("Ant-v4", 10):
        for lr, value in (1e-4, 10), (1e-3, 20), (1e-2, 14 if env_id == "Ant-v4" else 12):
            for seed in 1, 2:
                make_run(runs, flat(float(value * factor)), seed, env_id=env_id, learning_rate=lr)
    draw(tmp_path, "step-sizes")
    mean = rows(tmp_path, "step_sizes", env_id="mean of 2 environments")
    assert [float(row["normalized_return"]) for row in mean] == pytest.approx([0, 1, 0.3])


def cells_of(folder, runs, finals, **options):
    for optimizer, returns in finals.items():
        for seed, value in enumerate(returns):
            state = "diverged" if value < 0 else "finished"
            make_run(runs, flat(abs(float(value))), seed, state, optimizer=optimizer)
    draw(folder, "table", **options)
    return table(folder)[0]["PPO, Hopper-v4"]


@pytest.mark.parametrize(
    "adam, other, bold",
    [
        ((100, 102, 104), (110, 112, 114), True),
        ((100, 102, 104), (104, 115, 115), False),  # touch
        ((100, 102, 104), (112,), False),  # a single seed has no interval
        ((100,), (110, 112, 114), False),
        ((100, 102, 104), (110, 112, 114, -500), False),  # one of them diverged
        ((100, 102, 104, -500), (110, 112, 114), True),
    ],
)
def test_the_best_is_bold_only_where_the_intervals_part(runs, tmp_path, adam, other, bold):
    cells = cells_of(tmp_path, runs, {"adam": adam, "scaled-adam": other})
    assert not cells["Adam"].startswith("**")
    assert cells["Scaled Adam"].startswith("**112 ± 1**" if bold else "11")


def test_bold_goes_by_the_interval_asked_for(runs, tmp_path):
    cells = cells_of(tmp_path, runs, {"adam": (100, 101, 102), "sgd": (101, 107, 107)}, interval="stderr")
    assert cells == {"SGD": "**105 ± 2**", "Adam": "101 ± 1"}


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_runs_that_are_all_the_same_are_drawn_without_a_complaint(runs, tmp_path, capsys, value):
    for seed, lr in itertools.product((1, 2), (1e-4, 1e-3)):
        make_run(runs, flat(value), seed, learning_rate=lr)
        make_run(runs, flat(value), seed, "diverged", optimizer="sgd", learning_rate=lr)
    make_run(runs, flat(value), env_id="Ant-v4")
    draw(tmp_path)
    assert {row["normalized_return"] for row in rows(tmp_path, "step_sizes", optimizer="adam")} == {"1"}
    assert {row["normalized_return"] for row in rows(tmp_path, "step_sizes", optimizer="sgd")} == {"0"}
    assert {row["value"] for row in rows(tmp_path, "aggregate", quantity="interquartile mean")} == {"0"}
    (mean,) = rows(tmp_path, "aggregate", optimizer="adam", quantity="interquartile mean")
    assert mean["low"] == mean["high"] == "" and mean["runs"] == "3"  # a single one of them on Ant
    errors = capsys.readouterr().err
    assert "aggregate: ppo Hopper-v4: nothing beats an untrained policy" in errors
    assert "without an interval, for one seed has none: 1 run: ppo Ant-v4 adam, seed 1" in errors
    assert "aggregate: ppo sgd has Hopper-v4 alone of Ant-v4 Hopper-v4" in errors


# ---- which runs --------------------------------------------------------------------------------------------

GRID = """[[grid]]
agent = "ppo"
env_id = "Hopper-v4"
optimizer = ["adam", "adahesscale"]
seed = [1, 2, 3]
total_timesteps = 10_000
"""


@pytest.fixture
def grid(tmp_path):
    (tmp_path / "grid.toml").write_text(GRID)
    return (str(tmp_path / "grid.toml"),)


def test_a_grid_chooses_the_runs_and_what_it_misses_is_named(runs, tmp_path, grid, capsys):
    for seed in 1, 2, 3:
        make_run(runs, flat(1.0), seed)
        make_run(runs, flat(7.0), seed, num_steps=1024)  # not of the grid
    make_run(runs, flat(3.0), optimizer="adahesscale")
    draw(tmp_path, "table", grids=grid)
    out, errors = capsys.readouterr()
    assert "4 runs, of 6 asked for" in out and "ppo Hopper-v4 adam at 0.0003: seeds 1 2 3, return 1 ± 0" in out
    assert "missing from the grid: 2 runs: ppo Hopper-v4 adahesscale, seeds 2 3" in errors
    assert "seeds differ between curves: usual are 1 2 3, not so 1 run: ppo Hopper-v4 adahesscale, seed 1" in errors
    assert table(tmp_path)[0]["PPO, Hopper-v4"] == {"Adam": "1.00 ± 0.00 (n = 3)", "AdaHesScale": "3.00 (n = 1)"}
    assert [row["state"] for row in rows(tmp_path, "runs")] == ["finished"] * 4 + ["missing"] * 2


def test_where_chooses_too(runs, tmp_path, grid, capsys):
    for seed, num_steps in itertools.product((1, 2), (1024, 2048)):
        make_run(runs, flat(1.0), seed, num_steps=num_steps)
    draw(tmp_path, "table", where=("num_steps=1024", "seed=1", "seed=2"))
    assert len(rows(tmp_path, "runs")) == 2
    draw(tmp_path, "table", grids=grid, where=("learning-rate=3e-4", "optimizer=adam"))
    assert "missing from the grid: 1 run: ppo Hopper-v4 adam, seed 3" in capsys.readouterr().err


def test_of_two_folders_with_a_run_the_better_is_drawn(runs, tmp_path, capsys):
    make_run(runs, flat(1.0, end=3000), state="failed").rename(runs / "first")
    make_run(runs, flat(2.0))
    draw(tmp_path, "table")
    assert table(tmp_path)[0]["PPO, Hopper-v4"]["Adam"] == "2.00"
    assert "left out, for another folder holds the same run and got as far: first" in capsys.readouterr().err


def test_runs_of_other_versions_are_named(runs, tmp_path, capsys):
    make_run(runs, flat(1.0))
    lacking, unknown, old = (make_run(runs, flat(2.0), seed) for seed in (2, 3, 4))
    args = json.loads((lacking / "status.json").read_text())["args"]
    change(lacking, args={name: value for name, value in args.items() if name != "delta"}, commit="0123456789")
    change(unknown, args=args | {"seed": 3, "vf_coef": 0.5})
    change(old, state="done")
    (runs / "empty").mkdir()
    draw(tmp_path, "table")
    errors = capsys.readouterr().err
    assert f"of another version, without --delta, for which the default is taken: {lacking.name}" in errors
    assert f"of another version, for ppo_hesscale.py has no --vf-coef now: {unknown.name}" in errors
    assert f"left out, for want of a status.json and lock that can be read: {old.name} empty" in errors
    assert "the runs are of several commits: 1 of abc, 1 of 0123456" in errors
    assert [row["seed"] for row in rows(tmp_path, "runs")] == ["1", "2"]


def test_unknown_optimizers_and_agents_of_ones_own_are_drawn(runs, tmp_path):
    path = make_run(runs, flat(1.0), optimizer="lion", learning_rate=1e-3)
    change(path, script="my_agent.py")
    make_run(runs, flat(1.0))
    draw(tmp_path, "curves", "table")
    assert table(tmp_path)[0] == {
        "my_agent, Hopper-v4": {"Adam": "—", "lion": "1.00"}, "PPO, Hopper-v4": {"Adam": "1.00", "lion": "—"}
    }  # fmt: skip


def test_no_runs_no_folder_and_unknown_names_are_one_line(runs, tmp_path, capsys, grid):
    assert "holds no run that can be read" in fails(tmp_path, capsys)
    make_run(runs, flat(1.0), env_id="Ant-v4")
    assert "holds none of the grid's 6 runs; scripts/sweep.sh makes them" in fails(tmp_path, capsys, grids=grid)
    assert "there is no such grid file" in fails(tmp_path, capsys, grids=("studdy",))
    assert "--where optimizr=adam: no run has a optimizr; choose one of" in fails(
        tmp_path, capsys, where=("optimizr=adam",)
    )
    assert "--where optimizer=adma: leaves no run; choose of optimizer adam" in fails(
        tmp_path, capsys, where=("optimizer=adma",)
    )
    assert "--where adam: must be name=value" in fails(tmp_path, capsys, where=("adam",))
    assert "--what step-sizes: no optimizer was run at more than one" in fails(tmp_path, capsys, "step-sizes")
    make_run(runs, flat(1.0), env_id="Ant-v4", total=20_000, seed=2)
    line = fails(tmp_path, capsys)
    assert "--total-timesteps 10000 and 20000: ppo has runs with each" in line
    assert "choose with a grid file, or --where total_timesteps=10000" in line


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "must consist of [[grid]] tables"),
        ("[[grid]]\nagent = 'ppo'\nseed = []", "--seed has no values"),
        ("[[grid]]\nagent = 'ppo'\noptimizer = 'adma'", "--optimizer adma: choose one of"),
        ("[[grid]]\nagent = 'ppo'\nlr = 1e-3", "--lr: is not a flag"),
        ("[[grid]]\nagent = 'ppo'\nnum_steps = [1024, 2048]", "--num-steps 1024 and 2048: ppo has runs with each"),
    ],
)
def test_an_empty_or_contradictory_grid_is_one_line(runs, tmp_path, capsys, text, message):
    make_run(runs, flat(1.0))
    (tmp_path / "bad.toml").write_text(text)
    assert message in fails(tmp_path, capsys, grids=(str(tmp_path / "bad.toml"),))


def test_runs_without_an_episode_are_one_line(runs, tmp_path, capsys):
    for path in (make_run(runs, flat(1.0), seed) for seed in (1, 2)):
        next(path.glob("events*")).unlink()
    assert "none of the 2 runs has logged an episode's end" in fails(tmp_path, capsys)


def test_the_command_line(runs, tmp_path, grid):
    for seed, optimizer in itertools.product((1, 2), ("adam", "adahesscale")):
        make_run(runs, flat(float(seed)), seed, optimizer=optimizer)
    command = [sys.executable, ROOT / "scripts/plot.py", *grid, "--out", "pictures/p"]
    flags = "--what curves table --interval stderr --where optimizer=adam seed=1 seed=2".split()
    done = subprocess.run([*command, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    files = ["curves.png", "curves.pdf", "curves.csv", "table.md", "runs.csv"]
    assert done.stdout.splitlines()[-5:] == [f"pictures/p_{name}" for name in files]
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {f"p_{name}" for name in files}


@pytest.mark.parametrize(
    "flags, message",
    [
        ("", "--out is missing: say how the files' names begin, as --out results/study"),
        ("--out p --what curve", "--what"),
        ("--out p --interval 95", "--interval"),
        ("--out nowhere/", "--out nowhere/: must be how the files' names begin"),
        ("--out file/p", "file is not a folder that can be written to"),
        ("--out p --runs nowhere", "--runs nowhere: there is no such folder"),
    ],
)
def test_a_command_line_that_can_not_be_meant_is_one_line(tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["plot.py", *flags.split()])
    with pytest.raises(SystemExit) as exit:
        plot.main(plot.parse_args(plot.Args))
    assert exit.value.code.startswith("error: ") and message in exit.value.code and "\n" not in exit.value.code
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def test_every_optimizer_has_a_look_of_its_own():
    assert set(plot.STYLES) == set(OPTIMIZERS)
    looks = list(plot.STYLES.values())
    assert len({color for _, color, _, _ in looks}) == len(looks)
    assert len({(str(line), marker, label[:6] == "Scaled") for label, _, line, marker in looks}) == len(looks)
    study = ["adam", "adahessian", "adahesscale", "scaled-adam", "scaled-adahesscale"]
    channels = [[int(plot.STYLES[name][1][i : i + 2], 16) for i in (1, 3, 5)] for name in study]
    grey = np.sort(np.array(channels) @ [0.299, 0.587, 0.114])
    assert np.diff(grey).min() > 20  # of 255
