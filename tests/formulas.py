"""The formulas that a report's bounds follow, written once more, with nothing of the project: for `recomputed.py`.

For means of rows that weigh alike. Rows right or wrong: exact binomial at an effective n (Korn & Graubard 1998). Other
scores: BCa bootstrap of groups (Efron 1987) with quantiles of t, drawn as numpy's PCG64 draws. Groups: CR2 (Bell &
McCaffrey 2002) where rows of one are equally correlated; three quarters of the correction for skewness (Johnson 1978).
"""

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaincinv, ndtr, ndtri, stdtrit
from scipy.stats import betabinom, binomtest


def moments(m, icc, a):
    h, v = m / m.sum(), m * (1 - icc) + m**2 * icc  # what r = S - h ΣS is made of
    variances, y = v - 2 * h * v + h**2 * v.sum(), v - h * v.sum() / 2
    cross = 2 * (a @ h**2) * (a @ y**2) + 2 * (a @ (h * y)) ** 2 - a**2 @ (2 * h * y) ** 2
    return a @ variances / v.sum(), (a @ variances) ** 2 / (a**2 @ variances**2 + cross)


def grouped(x, names):
    """Sizes and sums of groups in the order of their first rows, correlation, variance of the mean, its freedom."""
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    group = np.array([place[name] for name in names])
    m, sums = np.bincount(group).astype(float), np.bincount(group, x)
    ms_between = m @ (sums / m - x.mean()) ** 2 / max(m.size - 1, 1)
    ms_within = ((x - (sums / m)[group]) ** 2).sum() / max(x.size - m.size, 1)
    total = ms_between + ((x.size - m @ m / x.size) / max(m.size - 1, 1) - 1) * ms_within
    icc = min(max((ms_between - ms_within) / total, 0.0), 1.0) if total and m.size < x.size else 1.0
    a = 1 / np.maximum(1 - m / x.size, 1e-12)
    expected, freedom = moments(m, icc, a)
    return m, sums, icc, a @ (sums - x.mean() * m) ** 2 / x.size**2 / expected, freedom


def bound(x, names, error, side, binary, seed, resamples=2000):
    m, sums, icc, variance, freedom = grouped(x, names)
    n, p = x.size, x.mean()
    if not binary:
        drawn = np.random.Generator(np.random.PCG64(seed)).integers(0, m.size, (resamples, m.size))
        draws, jackknife = sums[drawn].sum(1) / m[drawn].sum(1), (sums.sum() - sums) / (n - m)
        bias = ndtri(np.clip((draws < p - 1e-12).mean() + (abs(draws - p) <= 1e-12).mean() / 2, 1 / 2e3, 1 - 1 / 2e3))
        gap, (expected, freedom) = jackknife.mean() - jackknife, moments(m, icc, np.ones(m.size))
        z = bias + (-1 if side == "lower" else 1) * stdtrit(freedom, 1 - error) / np.sqrt(expected)
        endpoint = np.quantile(draws, ndtr(bias + z / (1 - z * (gap**3).sum() / (6 * (gap**2).sum() ** 1.5))))
        unseen = (side == "upper") - p  # a share of groups that were not seen, at the far end
        return sorted((endpoint, p, p + unseen * (1 - error ** (m @ m / n**2))))[0 if side == "lower" else 2]

    def exact(size):
        low = betaincinv(p * size, size - p * size + 1, error) if p > 0 else 0.0
        return low if side == "lower" else betaincinv(p * size + 1, size - p * size, 1 - error) if p < 1 else 1.0

    if m.size == n:
        return exact(n)
    plain, normal, t = p * (1 - p) / (n - 1), stdtrit(n - 1, 1 - error), stdtrit(freedom, 1 - error)
    effect = max(1.0, variance / plain if plain else m @ m / n)
    value = exact(n / effect * (normal / t) ** 2)
    if 0 < value < 1 and icc > 0 and plain:
        beyond = skewness(np.array([n**2 / (m * (1 - icc) + m**2 * icc).sum()]), value, 0.0) - skewness(m, value, icc)
        lean = (beyond if side == "lower" else -beyond) * (2 * t**2 + 1) / 6
        value = exact(n / effect * (normal / (t + 0.75 * max(lean, 0.0))) ** 2)
    return missed(m - sums, m, value, error) if side == "lower" else 1 - missed(sums, m, 1 - value, error)


def missed(failures, m, start, error):
    """No nearer than what missed groups could hide: the mean at which so few failures have this chance, averaged over
    the correlations that the rows leave likely (beta-binomial groups: Skellam 1948; Meng 1994)."""
    failing = m[failures > 0]
    part = min((22 - (failing.sum() ** 2 / (failing @ failing) if failing.size else 0)) / (22 - 15), 1.0)
    if start <= 0 or part <= 0:
        return start
    spread = 1 / betaincinv(0.5, 5.0, (np.arange(32) + 0.5) / 32)[:, None] - 1
    length, sizes = 1 << int(m.sum()).bit_length(), np.unique(m, return_counts=True)

    def beyond(mean):
        shapes = (1 - mean) * spread, mean * spread
        likely = betabinom.logpmf(failures, m, *shapes).sum(1)
        pmfs = (betabinom.pmf(np.arange(s + 1), s, *shapes) for s in sizes[0])
        product = np.prod([np.fft.rfft(p, length, axis=1) ** k for p, k in zip(pmfs, sizes[1], strict=True)], axis=0)
        tails = np.fft.irfft(product, length, axis=1)[:, : round(failures.sum()) + 1].sum(1)
        weight = np.exp(likely - likely.max())
        return weight @ tails / weight.sum() - error

    return start if beyond(start) <= 0 else start - part * (start - brentq(beyond, 1e-9, start))


def skewness(m, p, icc):
    if icc <= 0:
        return (1 - 2 * p) / np.sqrt(p * (1 - p) * m.sum())
    s = 1 / icc - 1
    second = p * (p * s + 1) / (s + 1)
    third, of_rate = second * (p * s + 2) / (s + 2), second - p**2
    k3 = m * (p - 3 * second + 2 * third) + 3 * m**2 * (second - third - p * (p - second))
    return (k3 + m**3 * (third - 3 * p * second + 2 * p**3)).sum() / (m * (p - second) + m**2 * of_rate).sum() ** 1.5


def difference(a, b, names, error, binary, seed):
    """Interval and p-value of a mean difference: t, as far as 0 where exact McNemar or the flip of groups has it."""
    d = a - b
    m, sums, _, variance, freedom = grouped(d, names)
    moved = sums[abs(sums) > 1e-9]
    if m.size == d.size and binary:
        p = binomtest(int((d > 0).sum()), int((d != 0).sum())).pvalue if d.any() else 1.0
    elif 2**moved.size <= 20000:
        signs = 1 - 2.0 * (np.arange(2**moved.size)[:, None] >> np.arange(moved.size) & 1)
        p = (abs(signs @ moved) >= abs(moved.sum()) - 1e-9 * abs(moved).sum()).mean()
    else:
        signs = 1 - 2.0 * np.random.Generator(np.random.PCG64(seed)).integers(0, 2, (20000, moved.size))
        p = (1 + (abs(signs @ moved) >= abs(moved.sum()) - 1e-9 * abs(moved).sum()).sum()) / 20001
    floor = 0.0 if variance > 1e-18 else 1 - (error / 2) ** (m @ m / d.size**2)
    half = max(np.sqrt(variance) * stdtrit(freedom, 1 - error / 2), floor)
    zero = 0.0 if p > error else d.mean()
    return max(-1.0, min(d.mean() - half, zero)), min(1.0, max(d.mean() + half, zero)), p
