"""experiments/stability.py: what counts as a loss, on curves whose losses are known, and its files."""

import sys

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from conftest import ROOT, read_csv
from test_plot import TOTAL, change, make_run

sys.path.insert(0, str(ROOT / "scripts"))
sys.path.insert(0, str(ROOT / "experiments"))
import stability
import stats

# ---- intervals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count, n", [(0, 10), (4, 10), (10, 10), (1, 3), (17, 34)])
def test_wilsons_interval_is_scipys(count, n):
    expected = scipy.stats.binomtest(count, n).proportion_ci(method="wilson")
    assert stats.wilson(count, n) == pytest.approx((count / n, expected.low, expected.high), abs=1e-12)


def test_wilsons_interval_by_hand():
    # 0 of n: from 0 to z^2 / (n + z^2), with z^2 = 3.841459
    assert stats.wilson(0, 10) == pytest.approx((0, 0, 3.841459 / 13.841459), abs=1e-7)


# ---- losses ------------------------------------------------------------------------------------------------


def steps(*levels):
    """A curve of 100 bins that is each of these levels for as many bins."""
    return np.repeat(np.array(levels, float), 100 // len(levels))


def first(lost):
    return int(lost.argmax()) if lost.any() else None


def test_a_smoothed_curve_by_hand():
    assert stability.smooth(np.array([0.0, 2.0, 4.0, 6.0, 8.0, 10.0])).tolist() == [0, 1, 2, 3, 4, 6]


def test_a_curve_that_never_falls_has_no_loss():
    lost, kept, peak = stability.losses(np.linspace(-50.0, 300.0, 100), -50.0)
    assert not lost.any() and kept == 1 and peak == pytest.approx(np.linspace(-50, 300, 100)[-5:].mean())


@pytest.mark.parametrize("untrained, level, bin_of_loss", [
    # 100 to 70 is 30 of a height of 100: a fifth of the height, 20, is lost where 4 bins of 5 are at 70 (24 below)
    (0.0, 70.0, 53),
    (0.0, 79.0, 54),  # 21: not before all 5 bins are
    (0.0, 81.0, None),
    (50.0, 88.0, 54),  # 12 of a height of 50
    (50.0, 91.0, None),
    (-100.0, 70.0, None),  # 30 of 200
    (-100.0, 59.0, 54),  # 41 of 200
])  # fmt: skip
def test_a_loss_is_a_fifth_of_the_height_above_the_untrained_return(untrained, level, bin_of_loss):
    lost, kept, peak = stability.losses(steps(100, level), untrained)
    assert first(lost) == bin_of_loss and peak == 100
    assert lost[-1] == (bin_of_loss is not None) and kept == pytest.approx((level - untrained) / (100 - untrained))


def test_losses_of_negative_returns():
    # from -100 to -10 and back to -39: 29 of 90; a fifth is 18; 3 of 5 bins make 17.4, and 4 make 23.2
    assert first(stability.losses(steps(-100, -10, -39, -39), -100.0)[0]) == 53
    assert first(stability.losses(steps(-100, -10, -25, -25), -100.0)[0]) is None  # 15 of 90


def test_a_loss_may_be_made_up_for():
    lost, kept, _ = stability.losses(steps(0, 100, 50, 100), 0.0)
    assert lost[25:50].sum() == 0 and lost[54:75].all() and not lost[79:].any() and kept == 1


def test_a_loss_is_measured_by_the_peak_so_far_and_not_by_one_to_come():
    # 14 of the first peak's 60, more than its fifth of 12 and less than the later peak's of 20
    assert first(stability.losses(steps(0, 60, 46, 100), 0.0)[0]) == 54


def test_noise_on_the_first_rise_is_no_loss():
    """A peak counts once it is half as high as the highest."""
    assert not stability.losses(steps(0, 49, 20, 100), 0.0)[0].any()
    assert stability.losses(steps(0, 51, 20, 100), 0.0)[0].any()


def test_a_run_that_is_never_better_than_untrained_has_nothing_to_lose():
    lost, kept, _ = stability.losses(steps(-5, -10), 0.0)
    assert not lost.any() and np.isnan(kept)


def test_a_run_that_diverged_has_lost_everything():
    curve = np.where(np.arange(100) < 60, 100.0, np.nan)
    lost, kept, peak = stability.losses(curve, 0.0, diverged=True)
    assert first(lost) == 60 and lost[60:].all() and kept == 0 and peak == 100


# ---- files -------------------------------------------------------------------------------------------------


def curve(*levels):
    return [(step, value) for step, value in zip(range(100, TOTAL + 1, 100), steps(*levels), strict=True)]


def test_runs_of_several_settings_are_never_one_curve(tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    for seed, levels in (1, (0, 100, 50, 50)), (2, (0, 100)):
        make_run(tmp_path / "runs", curve(*levels), seed, anneal_lr=seed == 2)
    table = f'[[grid]]\nagent = "ppo"\nenv_id = "Hopper-v4"\noptimizer = "adam"\ntotal_timesteps = {TOTAL}\n'
    names = ('name = "a"\nseed = 1\n', 'name = "b"\nseed = 2\nanneal_lr = true\n')
    args = stability.Args((str(tmp_path / "grid.toml"),), str(tmp_path / "o"), (str(tmp_path / "runs"),))
    (tmp_path / "grid.toml").write_text(table + "seed = [1, 2]\nanneal_lr = [false, true]")
    with pytest.raises(SystemExit, match=r"runs differ in --anneal-lr \(False True\) too, which no curve tells apart"):
        stability.main(args)
    (tmp_path / "grid.toml").write_text("".join(table + name for name in names))
    stability.main(args)
    found = {row["series"]: row["lost a fifth"] for row in read_csv(f"{tmp_path}/o_table.csv")}
    assert found == {"Adam, a": "1", "Adam, b": "0"}


def test_the_table_and_the_shares_are_those_of_the_runs(tmp_path, capsys):
    """Adam loses in two runs of four, after 5,200 and 7,700 steps, one of them for good; Scaled Adam in none of two."""
    (tmp_path / "runs").mkdir()

    def make(seed, *levels, **flags):
        path = make_run(tmp_path / "runs", curve(*levels), seed, **flags)
        change(path, start="2026-01-01T10:00:00+00:00", end="2026-01-01T10:01:30+00:00", total_timesteps=TOTAL)

    for seed, levels in enumerate([(0, 100, 50, 100), (0, 100, 100, 50), (0, 100), (0, 50, 100, 100)], 1):
        make(seed, *levels)
    for seed in (1, 2):
        make(seed, 0, 80, optimizer="scaled-adam")
    make(9, 0, 1)  # not in the grid
    (tmp_path / "grid.toml").write_text(
        f'[[grid]]\nagent = "ppo"\nenv_id = "Hopper-v4"\noptimizer = ["adam", "scaled-adam"]\nseed = [1, 2, 3, 4]\n'
        f"total_timesteps = {TOTAL}\n"
    )
    out = tmp_path / "out/stability"
    args = stability.Args((str(tmp_path / "grid.toml"),), str(out), (str(tmp_path / "runs"),))
    stability.main(args)
    printed = capsys.readouterr()
    assert "2 of the grid's 8 runs are missing" in printed.err
    adam, scaled = read_csv(f"{out}_table.csv")
    # 100 to 50 in 5 bins: 20 below after 2 bins, the 52nd and the 77th
    about = {"setting": "Hopper-v4", "series": "Adam", "runs": "4", "diverged": "0", "lost a fifth": "2",
             "share": "0.5", "earliest": "5200", "median": "6450", "lost at the end": "1"}  # fmt: skip
    assert {name: adam[name] for name in about} == about
    low, high = scipy.stats.binomtest(2, 4).proportion_ci(method="wilson")
    assert float(adam["share_low"]) == pytest.approx(low, rel=1e-5)
    assert float(adam["share_high"]) == pytest.approx(high, rel=1e-5)
    assert float(adam["share of the height kept"]) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert (scaled["series"], scaled["runs"], scaled["lost a fifth"], scaled["median"]) == ("Scaled Adam", "2", "0", "")
    assert "Hopper-v4, Adam: 2 of 4 runs lost a fifth, first after 5,200 steps\n" in printed.out
    shares = [float(row["share"]) for row in read_csv(f"{out}_share.csv") if row["series"] == "Adam"]
    assert shares == [0.0] * 51 + [0.25] * 25 + [0.5] * 24
    assert (tmp_path / "out/stability.png").stat().st_size > 5000 and (tmp_path / "out/stability.pdf").exists()


def test_the_signs_of_a_collapse_are_those_of_the_runs(tmp_path):
    """Two runs of Adam log a KL of 1 and 3, in the first bin 2 and 8; Scaled Adam alone has an eta."""
    (tmp_path / "runs").mkdir()
    grid = tmp_path / "grid.toml"
    grid.write_text(
        f'[[grid]]\nagent = "ppo"\nenv_id = "Hopper-v4"\noptimizer = ["adam", "scaled-adam"]\nseed = [1, 2]\n'
        f"stability = true\ntotal_timesteps = {TOTAL}\n"
    )
    for optimizer, seed, first, kl in (("adam", 1, 2, 1), ("adam", 2, 8, 3), ("scaled-adam", 1, 5, 5)):
        signs = {"stability/kl": [(50, 0.5 * first), (100, 1.5 * first), *((k, kl) for k in range(200, TOTAL, 100))]}
        if optimizer != "adam":
            signs["hesscale/eta_actor"] = [(TOTAL, 0.25)]
        make_run(tmp_path / "runs", curve(0, 100), seed, optimizer=optimizer, stability=True, signs=signs)
    args = stability.Args((str(grid),), str(tmp_path / "out"), (str(tmp_path / "runs"),))
    stability.main(args)
    rows = read_csv(f"{tmp_path}/out_signs.csv")
    values = ("series", "runs", "tag", "step", "value", "least", "most")
    kl = [tuple(map(row.get, values)) for row in rows if row["tag"] == "stability/kl"]
    assert kl[:2] == [
        ("Adam", "2", "stability/kl", "100", "5", "2", "8"),
        ("Adam", "2", "stability/kl", "200", "2", "1", "3"),
    ]
    assert len(kl) == 200 and kl[100] == ("Scaled Adam", "1", "stability/kl", "100", "5", "5", "5")
    eta = [row for row in rows if row["tag"] == "hesscale/eta_actor"]
    assert {(row["series"], row["value"]) for row in eta} == {("Scaled Adam", "0.25")} and len(rows) == 300
    assert (tmp_path / "out_signs.png").stat().st_size > 5000

    make_run(tmp_path / "runs", curve(0, 100), 2, optimizer="scaled-adam", stability=True)
    (tmp_path / "out_signs.csv").unlink()
    from_archive = stability.read_all(args.runs, [])
    from_archive.loc[from_archive["seed"] == 2, "source"] = f"{ROOT}/results/a/runs.csv.gz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stability, "read_all", lambda *_: from_archive)
        stability.main(args)
    assert not (tmp_path / "out_signs.csv").exists(), "runs that an archive holds were left out in silence"


def test_series_are_told_apart_by_what_differs():
    import pandas as pd

    flags = dict(learning_rate=3e-4, betas=(0.9, 0.999), delta=1e-8)
    rows = pd.DataFrame([
        flags | {"optimizer": "adam"}, flags | {"optimizer": "adam", "betas": (0.99, 0.99)},
        flags | {"optimizer": "scaled-adam", "delta": 3e-7}, flags | {"optimizer": "scaled-adam"},
    ])  # fmt: skip
    assert stability.describe_optimizers(rows).tolist() == [
        "Adam, $\\beta$ 0.9 0.999", "Adam, $\\beta$ 0.99 0.99",
        "Scaled Adam, $\\Delta$ 3e-07", "Scaled Adam, $\\Delta$ 1e-08",
    ]  # fmt: skip


def test_what_is_missing_is_one_line(tmp_path):
    def error(*args):
        with pytest.raises(SystemExit) as end:
            stability.main(stability.Args(*args))
        return str(end.value)

    assert error().startswith("error: GRIDS is missing")
    assert error(("figure7",)).startswith("error: --out is missing")
    grid = tmp_path / "grid.toml"  # of a run that no archive has
    grid.write_text('[[grid]]\nagent = "ppo"\nenv_id = "Hopper-v4"\nseed = 987654\n')
    text = error((str(grid),), str(tmp_path / "x"), (str(tmp_path),))
    assert text == f"error: {grid}: none of the grid's 1 runs has ended; scripts/sweep.sh makes them"


def test_the_grids_are_those_of_the_figure_and_of_agents_left_running():
    from collections import Counter

    def cells(name):
        return [cell.args for cell in stability.read_cells((name,)).values()]

    figure = Counter((a.optimizer, a.delta if a.optimizer != "adam" else None) for a in cells("figure7"))
    assert figure == {("adam", None): 10, ("scaled-adam", 1e-8): 10, ("scaled-adam", 1e-7): 10}
    pressure = {(a.num_steps, a.num_steps // a.num_minibatches, a.update_epochs) for a in cells("figure7_pressure")}
    assert pressure == {(256, 64, 10), (512, 8, 10), (2048, 64, 20)} and len(cells("figure7_pressure")) == 90
    for args in cells("figure7") + cells("figure7_pressure"):
        assert (args.env_id, args.total_timesteps) == ("experiments.ur_reacher:UR-Reacher-v0", 300_000)
        assert args.state_std and args.stability and not args.anneal_lr and args.learning_rate == 3e-4
    left = cells("left_running")
    rivals = {(a.optimizer, a.betas, a.update_epochs) for a in left}
    assert len(left) == 24 and len(rivals) == 8 and ("adam", (0.99, 0.99), 20) in rivals
    assert {(a.env_id, a.total_timesteps, a.anneal_lr) for a in left} == {("Hopper-v4", 5_000_000, False)}


@pytest.fixture(scope="module")
def of_two_environments(tmp_path_factory):
    """Two runs of Hopper, untrained at -100 and 60, and one of Ant, untrained at -1000; their table."""
    tmp_path = tmp_path_factory.mktemp("two")
    (tmp_path / "runs").mkdir()
    for seed, env_id, levels in (
        (1, "Hopper-v4", (-100, 100, 50, 80)),
        (2, "Hopper-v4", (60, 100)),
        (1, "Ant-v4", (-1000, 0, 0, -100)),
    ):
        make_run(tmp_path / "runs", curve(*levels), seed, env_id=env_id)
    (tmp_path / "grid.toml").write_text(
        f'[[grid]]\nagent = "ppo"\nenv_id = ["Hopper-v4", "Ant-v4"]\noptimizer = "adam"\nseed = [1, 2]\n'
        f"total_timesteps = {TOTAL}\n"
    )
    stability.main(stability.Args((str(tmp_path / "grid.toml"),), str(tmp_path / "o"), (str(tmp_path / "runs"),)))
    return {row["setting"]: row for row in read_csv(f"{tmp_path}/o_table.csv")}


def test_untrained_returns_are_means_over_the_runs_of_an_environment(of_two_environments):
    found = of_two_environments
    assert float(found["Hopper-v4"]["share of the height kept"]) == pytest.approx((100 / 120 + 1) / 2)
    assert float(found["Ant-v4"]["share of the height kept"]) == pytest.approx(0.9)


def test_peaks_and_final_returns_are_told(of_two_environments):
    found = of_two_environments
    assert [float(found[env_id]["peak"]) for env_id in ("Hopper-v4", "Ant-v4")] == [100, 0]
    finals = [float(found[env_id]["final return"]) for env_id in ("Hopper-v4", "Ant-v4")]
    assert finals == [((50 + 80) / 2 + 100) / 2, -50]  # the last 50 episodes are half of the bins


def test_the_picture_shows_smoothed_runs_with_a_cross_at_the_first_loss_and_how_many_lost():
    about, found = dict(series="Adam", optimizer="adam", state="finished", total_timesteps=TOTAL), []
    for setting, *runs in ("Hopper-v4", (0, 100, 50, 100), (0, 100)), ("Ant-v4", (0, 100), (0, 100)):
        for levels in runs:
            lost, kept, peak = stability.losses(steps(*levels), 0.0)
            found.append(about | dict(setting=setting, curve=steps(*levels), lost=lost, kept=kept, peak=peak))
    figure = stability.draw(pd.DataFrame(found), stability.shares(pd.DataFrame(found)))
    hopper, hopper_share, ant, ant_share = figure.axes
    assert [axis.get_title() for axis in (hopper, ant)] == ["Adam\n1 of 2 lost a fifth", "Adam\n0 of 2 lost a fifth"]
    first, cross, second = hopper.lines
    np.testing.assert_allclose(first.get_ydata(), stability.smooth(found[0]["curve"]))
    np.testing.assert_allclose(second.get_ydata(), stability.smooth(found[1]["curve"]))
    np.testing.assert_allclose(cross.get_xydata(), [[5.2, stability.smooth(found[0]["curve"])[51]]])  # in thousands
    assert hopper_share.lines[0].get_ydata()[-1] == 0.5 and ant_share.lines[0].get_ydata()[-1] == 0
