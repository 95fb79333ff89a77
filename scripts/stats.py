"""Statistics of runs, without drawing: means and differences with intervals, scores, sensitivity to the step size.

A sample is an array with the runs on its last axis.
"""

import numpy as np
import scipy.stats

RESAMPLES = 2000


def contrast(samples, weights):
    """Return a weighted sum of means and the ends of its 95% t interval: Welch's, for unequal variances.

    One sample with weight 1 gives a mean, two with 1 and -1 a difference, E with 1/E each a mean over E environments,
    and 2 E a difference of such means. The variance v is the sum of w^2 s^2 / n, and its degrees of freedom are
    v^2 / sum of (w^2 s^2 / n)^2 / (n - 1) (Welch 1947, "The generalization of Student's problem"). Such an interval
    covers 95% from two runs on if returns are normal; a percentile bootstrap's of 3, 5 or 10 runs covers about 73, 83
    or 90% (tests/test_stats.py).

    Args:
        samples: list of arrays [..., runs], whose numbers of runs may differ.
        weights: a number for each sample.

    Returns:
        value, low, high: each [...]; low and high are NaN where a sample has a single run.
    """
    value = sum(w * np.mean(x, -1) for x, w in zip(samples, weights, strict=True))
    numbers = [np.shape(x)[-1] for x in samples]
    if min(numbers) < 2:
        return value, *np.full((2, *np.shape(value)), np.nan)
    parts = [w**2 * np.var(x, -1, ddof=1) / n for x, w, n in zip(samples, weights, numbers, strict=True)]
    variance = sum(parts)
    below = sum(part**2 / (n - 1) for part, n in zip(parts, numbers, strict=True))
    freedom = np.divide(variance**2, below, out=np.full(np.shape(below), np.inf), where=below > 0)
    half = scipy.stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    return value, value - half, value + half


def mean(samples):
    """Return the mean over environments of the mean over runs, and its interval; a sample for each environment."""
    return contrast(samples, [1 / len(samples)] * len(samples))


def difference(samples, baseline):
    """Return by how much the mean over environments exceeds the baseline's, and the interval of that difference."""
    weights = [1 / len(samples)] * len(samples)
    return contrast([*samples, *baseline], [*weights, *(-w for w in weights)])


def wilson(count, n):
    """Return the share count / n, and the ends of its 95% score interval (Wilson 1927).

    It is for shares of few runs, as 0 of 10, where a bootstrap has no width; it covers close to 95% on average (Brown,
    Cai and DasGupta 2001, "Interval Estimation for a Binomial Proportion").
    """
    z2, value = scipy.stats.norm.ppf(0.975) ** 2, np.divide(count, n)
    center = (value + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * value * (1 - value) / n + (z2 / (2 * n)) ** 2) / (1 + z2 / n)
    return value, center - half, center + half


def interquartile_mean(*samples, axis=-1):
    """Return the mean of the middle half of all runs of all environments (Agarwal et al. 2021, Section 4.3)."""
    return scipy.stats.trim_mean(np.concatenate(samples, axis), 0.25, axis)


def share(*samples, axis=-1):
    """Return the mean of all runs of all environments: of runs above a score, their share (performance profile)."""
    return np.mean(np.concatenate(samples, axis), axis)


def improvement(*samples, axis=-1):
    """Return P(X > Y) + P(X = Y) / 2 over pairs of runs, averaged over environments (Section 4.3 there).

    Args:
        samples: X's runs in each environment, then Y's.
        axis: -1, that of the runs.
    """
    half, total = len(samples) // 2, 0.0
    for x, y in zip(samples[:half], samples[half:], strict=True):
        x, y = x[..., :, None], y[..., None, :]
        total += np.mean(x > y, axis=(-2, -1)) + np.mean(x >= y, axis=(-2, -1))
    return total / (2 * half)


def bootstrap(statistic, samples):
    """Return a statistic and the ends of its 95% percentile interval, each environment's runs resampled for themselves.

    This is Agarwal et al. 2021's stratified bootstrap (Section 4.1), for statistics that have no t interval.

    Args:
        statistic: function of samples and axis.
        samples: list of arrays [..., runs], one for each environment.

    Returns:
        value, low, high: of the statistic's shape; low and high are NaN where an environment has a single run.
    """
    value = statistic(*samples, axis=-1)
    if min(sample.shape[-1] for sample in samples) < 2:
        return value, *np.full((2, *np.shape(value)), np.nan)
    options = dict(n_resamples=RESAMPLES, vectorized=True, axis=-1, method="percentile", rng=0)
    return value, *scipy.stats.bootstrap(samples, statistic, **options).confidence_interval


def sensitivity(performance, resamples=10_000):
    """Return what tuning the step size wins over one step size for all environments (Adkins et al. 2024).

    For each environment e, performance p, the mean return over a run, is normalized to (p - p5) / (p95 - p5), with
    the percentiles of all optimizers' and step sizes' means over runs; Gamma[e, h] is that of step size h. Then
    Phi = mean_e max_h Gamma - max_h mean_e Gamma ("A Method for Evaluating Hyperparameter Sensitivity in Reinforcement
    Learning", Section 3), and the best performance is mean_e max_h Gamma. A step size at which a run diverged is the
    best of no environment, and an environment in which all means are equal is left out. Ends of intervals are
    percentiles over resampled runs of each cell; NaN where one has a single run.

    Args:
        performance: {optimizer: {env_id: {step size: array [runs], NaN where a run diverged}}}. Step sizes that an
            optimizer does not have in each environment are left out.
        resamples: bootstrap samples.

    Returns:
        {optimizer: {"phi": (value, low, high), "best": (value, low, high), "step_size": that of max_h mean_e Gamma}};
        all are NaN for an optimizer that has an environment in which it diverged at each step size, and phi for one
        that has no step size at which it diverged in none.
    """
    rng, env_ids, found = np.random.default_rng(0), sorted({e for by_env in performance.values() for e in by_env}), {}
    ends = {}
    for env_id in env_ids:
        cells = [np.mean(runs) for by_env in performance.values() for runs in by_env.get(env_id, {}).values()]
        ends[env_id] = np.percentile([p for p in cells if np.isfinite(p)] or [np.nan], [5, 95])
    performance = {
        optimizer: {env_id: cells for env_id, cells in by_env.items() if ends[env_id][0] != ends[env_id][1]}
        for optimizer, by_env in performance.items()
    }
    for optimizer, by_env in performance.items():
        if not by_env:
            found[optimizer] = {"phi": (np.nan,) * 3, "best": (np.nan,) * 3, "step_size": np.nan}
            continue
        step_sizes = sorted(set.intersection(*map(set, by_env.values())))
        gamma = np.empty((resamples + 1, len(by_env), len(step_sizes)))  # the first is that of the runs themselves
        for i, (env_id, cells) in enumerate(by_env.items()):
            low, high = ends[env_id]
            for j, step_size in enumerate(step_sizes):
                runs = np.asarray(cells[step_size], float)
                drawn = np.vstack([runs, rng.choice(runs, (resamples, len(runs)))]).mean(1)
                gamma[:, i, j] = np.where(np.isfinite(runs).all(), (drawn - low) / (high - low), -np.inf)
        best, for_all = gamma.max(2).mean(1), gamma.mean(1)
        with np.errstate(invalid="ignore"):
            phi = np.where(np.isfinite(for_all.max(1)), best - for_all.max(1), np.nan)
        names = {"phi": phi, "best": np.where(np.isfinite(best), best, np.nan)}
        single = min(len(cells[step_size]) for cells in by_env.values() for step_size in step_sizes) < 2
        interval = lambda v: [np.nan] * 2 if single else np.percentile(v, [2.5, 97.5])  # noqa: B023, E731
        found[optimizer] = {name: (v[0], *interval(v[1:])) for name, v in names.items()}
        found[optimizer]["step_size"] = step_sizes[for_all[0].argmax()] if np.isfinite(for_all[0].max()) else np.nan
    return found
