"""Statistics against examples worked by hand, scipy, and what rliable gave."""

import math
import sys

import numpy as np
import pytest
import scipy.stats
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import stats


def test_a_mean_has_students_interval():
    # mean 4, s^2 = 4, standard error 2 / sqrt(3), t(0.975, 2) = 4.302653
    assert stats.mean([np.array([2.0, 4.0, 6.0])]) == pytest.approx((4, 4 - 4.968276, 4 + 4.968276), rel=1e-6)


def test_a_difference_has_welchs_interval():
    x, y = np.array([3.0, 5.0, 10.0, 2.0]), np.array([1.0, 1.5, 0.5])
    value, low, high = stats.difference([x], [y])
    expected = scipy.stats.ttest_ind(x, y, equal_var=False).confidence_interval()
    assert (value, low, high) == pytest.approx((4.0, expected.low, expected.high))


def test_a_difference_over_environments_by_hand():
    # environment 1: 3 - 1 = 2, variances 2/2 + 2/2 = 2; environment 2: 10 - 4 = 6, variances 8/2 + 0/2 = 4.
    # mean of differences 4; variance (1 + 1 + 4) / 4 = 1.5; freedom 1.5^2 / ((1/4)^2 + (1/4)^2 + 1^2) = 2
    samples, baseline = [np.array([2.0, 4.0]), np.array([8.0, 12.0])], [np.array([0.0, 2.0]), np.array([4.0, 4.0])]
    half = scipy.stats.t.ppf(0.975, 2) * np.sqrt(1.5)
    assert stats.difference(samples, baseline) == pytest.approx((4, 4 - half, 4 + half))


def test_environments_count_alike_whatever_their_numbers_of_runs():
    assert stats.mean([np.array([0.0, 0.0, 0.0, 0.0]), np.array([3.0, 3.0])])[0] == 1.5
    assert stats.improvement(np.array([1.0, 1, 1, 1]), np.array([0.0]), np.array([0.0]), np.array([1.0])) == 0.5


def test_intervals_have_the_shape_of_the_points_and_are_missing_for_one_run():
    value, low, high = stats.mean([np.arange(12.0).reshape(4, 3)])
    assert value.tolist() == [1, 4, 7, 10] and low.shape == high.shape == (4,) and (low < value).all()
    value, low, high = stats.mean([np.array([5.0])])
    assert value == 5 and np.isnan(low) and np.isnan(high)
    assert stats.mean([np.array([2.0, 2.0, 2.0])]) == (2, 2, 2)


@pytest.mark.parametrize("n, bootstraps", [(3, 0.73), (5, 0.83), (10, 0.90)])
def test_coverage_at_few_runs(n, bootstraps):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4000, n))
    _, low, high = stats.mean([x])
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(0.95, abs=0.01)
    means = np.take_along_axis(x[:, None], rng.integers(n, size=(4000, 400, n)), 2).mean(2)
    low, high = np.percentile(means, [2.5, 97.5], axis=1)
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(bootstraps, abs=0.025)


@pytest.mark.parametrize("n, bootstraps", [(3, 0.90), (10, 0.95)])
def test_coverage_of_the_probability_of_improvement(n, bootstraps):
    """Over 3 and 5 environments, for equal runs and for better ones; of 3 runs it is a little short."""
    rng, covered = np.random.default_rng(4), []
    for environments in 3, 5:
        for shift, true in (0, 0.5), (1, scipy.stats.norm.cdf(1 / np.sqrt(2))):
            runs = rng.normal(size=(2 * environments, 400, 1, n))
            runs[:environments] += shift
            drawn = [np.take_along_axis(x, rng.integers(n, size=(400, 200, n)), 2) for x in runs]
            low, high = np.percentile(stats.improvement(*drawn), [2.5, 97.5], axis=1)
            covered.append(np.mean((low <= true) & (true <= high)))
    assert np.mean(covered) == pytest.approx(bootstraps, abs=0.025)


def test_a_difference_of_nothing_clears_zero_in_one_of_twenty():
    rng = np.random.default_rng(2)
    samples = [rng.normal(size=(4000, 10)), rng.normal(3, 5, size=(4000, 10))]
    baseline = [rng.normal(0, 4, size=(4000, 10)), rng.normal(3, 1, size=(4000, 10))]
    _, low, high = stats.difference(samples, baseline)
    assert np.mean((low > 0) | (high < 0)) == pytest.approx(0.05, abs=0.01)


def test_the_interquartile_mean_by_hand():
    # sorted 0 1 2 3 4 5 6 99: the middle half is 2 3 4 5
    assert stats.interquartile_mean(np.array([99.0, 0, 3, 2]), np.array([1.0, 6, 5, 4])) == 3.5


def test_the_probability_of_improvement_by_hand():
    # environment 1: (2 > 1) (2 = 2) (4 > 1) (4 > 2): 3.5 of 4; environment 2: 0 of 1
    assert stats.improvement(np.array([2.0, 4]), np.array([0.0]), np.array([1.0, 2]), np.array([5.0])) == 0.4375


def test_an_interval_is_of_percentiles_of_samples_drawn_apart():
    x, y = np.array([0.0, 1, 5, 30, 31]), np.array([2.0, 3, 4, 29, 50])
    rng = np.random.default_rng(1)
    low, high = np.percentile(stats.improvement(*(rng.choice(s, (20_000, 5)) for s in (x, y))), [2.5, 97.5])
    assert stats.bootstrap(stats.improvement, [x, y]) == pytest.approx((stats.improvement(x, y), low, high), abs=0.05)
    skewed = np.array([0.0, 0, 0, 1, 10, 50])
    low, high = np.percentile(rng.choice(skewed, (20_000, 6)).mean(1), [2.5, 97.5])
    assert stats.bootstrap(stats.share, [skewed]) == pytest.approx((skewed.mean(), low, high), rel=0.1, abs=0.5)


# ---- sensitivity -------------------------------------------------------------------------------------------


def one(*values):
    return {10.0**-i: np.array([v, v]) for i, v in enumerate(reversed(values))}


def test_phi_by_hand():
    """21 levels 0, 5, ..., 100 in each environment: p5 is 5 and p95 is 95, so Gamma is (p - 5) / 90."""
    fill = {"fill": {e: {float(i): np.array([v] * 2) for i, v in enumerate(range(0, 101, 5))} for e in "ab"}}
    # the step sizes 0.01, 0.1, 1 give 95, 50, 5 in a and 5, 50, 95 in b: tuned 1 and 1, for all 0.5: phi 0.5
    tuned = {"tuned": {"a": one(95.0, 50.0, 5.0), "b": one(5.0, 50.0, 95.0)}}
    # 50, 50, 50 everywhere: phi 0, best 0.5
    level = {"flat": {"a": one(50.0, 50.0, 50.0), "b": one(50.0, 50.0, 50.0)}}
    # those of `tuned` lie evenly at 5, 50, 95, those of `flat` in the middle: the percentiles stay 5 and 95
    found = stats.sensitivity(fill | tuned | level, resamples=10)
    assert found["tuned"]["phi"] == pytest.approx((0.5,) * 3) and found["tuned"]["best"] == pytest.approx((1,) * 3)
    assert found["tuned"]["step_size"] in (0.01, 0.1, 1.0)  # all are 0.5 on average
    assert found["flat"]["phi"] == pytest.approx((0,) * 3) and found["flat"]["best"] == pytest.approx((0.5,) * 3)


def test_a_step_size_that_diverged_anywhere_is_not_the_one_for_all():
    a, b = one(0.0, 40.0, 100.0), one(0.0, 40.0, 100.0)
    b[1.0] = np.array([100.0, np.nan])
    found = stats.sensitivity({"adam": {"a": a, "b": b}}, resamples=10)["adam"]
    # p5, p95 of (0, 40, 100) are 4 and 94; of (0, 40) 2 and 38. Best: 96/90 in a and 38/36 in b; for all: 0.1
    best, for_all = (96 / 90 + 38 / 36) / 2, (36 / 90 + 38 / 36) / 2
    assert found["best"][0] == pytest.approx(best) and found["phi"][0] == pytest.approx(best - for_all)
    assert found["step_size"] == 0.1
    b |= {h: np.array([np.nan, 1.0]) for h in b}
    found = stats.sensitivity({"adam": {"a": a, "b": b}}, resamples=10)["adam"]
    assert np.isnan([found["phi"][0], found["best"][0], found["step_size"]]).all()


def test_phi_is_unknown_where_no_step_size_is_for_all():
    nan = np.full(2, np.nan)
    a, b = {0.1: np.ones(2), 1.0: nan}, {0.1: nan, 1.0: 2 * np.ones(2)}
    others = {"sgd": {e: one(0.0, 1.0, 3.0) for e in "ab"}}
    found = stats.sensitivity(others | {"adam": {"a": a, "b": b}}, resamples=10)["adam"]
    assert np.isfinite(found["best"]).all() and np.isnan(found["phi"]).all() and np.isnan(found["step_size"])


def test_phi_of_single_runs_has_no_interval():
    found = stats.sensitivity({"adam": {e: {0.1: np.array([1.0]), 1.0: np.array([3.0])} for e in "ab"}}, resamples=10)
    for value, low, high in (found["adam"][name] for name in ("phi", "best")):
        assert math.isfinite(value) and math.isnan(low) and math.isnan(high)


def test_an_environment_that_tells_nothing_is_left_out_of_phi():
    cells = {"a": one(0.0, 40.0, 100.0), "b": one(100.0, 40.0, 0.0)}
    without = stats.sensitivity({"adam": cells}, resamples=10)
    assert stats.sensitivity({"adam": cells | {"flat": one(-200.0, -200.0, -200.0)}}, resamples=10) == without
    nothing = stats.sensitivity({"adam": {"flat": one(1.0, 1.0)}}, resamples=10)["adam"]
    assert np.isnan([*nothing["phi"], *nothing["best"], nothing["step_size"]]).all()


def test_phis_interval_is_of_resampled_runs():
    rng = np.random.default_rng(3)
    cells = {e: {h: rng.normal(m, 1, 10) for h, m in zip((0.1, 1.0), ms, strict=True)}
             for e, ms in {"a": (0, 10), "b": (10, 0)}.items()}  # fmt: skip
    value, low, high = stats.sensitivity({"adam": cells})["adam"]["phi"]
    assert low < value < high and 0.02 < high - low < 0.2
    fewer = stats.sensitivity({"adam": {e: {h: runs[:3] for h, runs in of.items()} for e, of in cells.items()}})
    assert fewer["adam"]["phi"][2] - fewer["adam"]["phi"][1] > high - low


def test_phi_and_its_interval_are_their_definition():
    rng = np.random.default_rng(3)
    cells = {e: {h: rng.normal(m, 1, 9) ** 3 for h, m in zip((0.1, 1.0), ms, strict=True)}
             for e, ms in {"a": (0, 2), "b": (2, 0)}.items()}  # fmt: skip
    means = {e: {h: runs.mean() for h, runs in of.items()} for e, of in cells.items()}
    ends = {e: np.percentile([*of.values()], [5, 95]) for e, of in means.items()}

    def phi(means):
        gamma = np.array([[(means[e][h] - ends[e][0]) / (ends[e][1] - ends[e][0]) for h in (0.1, 1.0)] for e in "ab"])
        return gamma.max(1).mean(0) - gamma.mean(0).max(0)

    rng = np.random.default_rng(4)
    drawn = {e: {h: rng.choice(runs, (20_000, 9)).mean(1) for h, runs in of.items()} for e, of in cells.items()}
    expected = phi(means), *np.percentile(phi(drawn), [2.5, 97.5])
    assert stats.sensitivity({"adam": cells})["adam"]["phi"] == pytest.approx(expected, rel=0.03)
