"""The bound of a proportion from rows in groups, for many samples at once: the formulas of `effective_n_bound` on
arrays, without what missed groups could hide; the tests hold them to the function itself on some of the samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit

from bedplate.core.statistics.clusters import SKEWNESS_SHARE
from bedplate.core.statistics.unequal import FARTHEST

Floats = NDArray[np.float64]


def intraclass(sums: Floats, sizes: Floats) -> Floats:
    """Fisher's estimator from right answers and rows of each group [..., G], within 0 and 1."""
    n, count = sizes.sum(-1), sizes.shape[-1]
    mean, share = sums.sum(-1) / n, sums / sizes
    between_ms = (sizes * (share - mean[..., None]) ** 2).sum(-1) / (count - 1)
    within_ms = (sums * (1 - share)).sum(-1) / np.maximum(n - count, 1)
    typical = (n - (sizes**2).sum(-1) / n) / (count - 1)
    total = between_ms + (typical - 1) * within_ms
    icc = np.divide(between_ms - within_ms, total, out=np.ones_like(total), where=total > 1e-12)
    return np.clip(icc, 0.0, 1.0)


def variance(sums: Floats, sizes: Floats) -> tuple[Floats, Floats, Floats]:
    """Of the mean, with its degrees of freedom, and the correlation that both were taken at [...]."""
    n = sizes.sum(-1, keepdims=True)
    rho = intraclass(sums, sizes)
    h = sizes / n
    v = sizes * (1 + (sizes - 1) * rho[..., None])
    whole = v.sum(-1, keepdims=True)
    a = 1 / (1 - h)
    residual_var = v - 2 * h * v + h * h * whole
    x = v - h * whole / 2
    cross_terms = 2 * (a * h * h).sum(-1) * (a * x * x).sum(-1) + 2 * (a * h * x).sum(-1) ** 2
    cross_terms = cross_terms - (a * a * (2 * h * x) ** 2).sum(-1)
    expected = (a * residual_var).sum(-1)
    freedom = expected**2 / (((a * residual_var) ** 2).sum(-1) + cross_terms)
    residuals = sums - sizes * (sums.sum(-1, keepdims=True) / n)
    observed_var = (a * residuals**2).sum(-1) / n[..., 0] ** 2
    return observed_var * whole[..., 0] / expected, freedom, rho


def design_effect(sums: Floats, sizes: Floats) -> Floats:
    """[...], before it is held to be at least 1."""
    n = sizes.sum(-1)
    mean = sums.sum(-1) / n
    plain = mean * (1 - mean) / (n - 1)
    unseen = np.broadcast_to((sizes**2).sum(-1) / n, plain.shape).copy()
    return np.divide(variance(sums, sizes)[0], plain, out=unseen, where=plain > 1e-15)


def trend(sums: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """Of group means over log size, where it falls: what it makes of sums [..., G], and what one more group beyond the
    largest takes from the mean [...]."""
    sizes = np.broadcast_to(sizes, sums.shape)
    n, logs = sizes.sum(-1), np.log(sizes)
    centred = logs - (sizes * logs).sum(-1, keepdims=True) / n[..., None]
    spread = (sizes * centred**2).sum(-1)
    slope = np.divide((centred * sums).sum(-1), spread, out=np.zeros_like(spread), where=spread > 1e-12 * n)
    slope = np.minimum(slope, 0.0)
    residuals = sums - (sums.sum(-1, keepdims=True) / n[..., None] + slope[..., None] * centred) * sizes
    error = (centred**2 * residuals**2).sum(-1)
    slope = slope * np.maximum(0.0, 1 - np.divide(error, (spread * slope) ** 2, out=np.ones_like(n), where=slope < 0))
    largest, tail = -np.sort(-logs, axis=-1), max(5, round(sizes.shape[-1] ** 0.5))
    hill = largest[..., :tail].mean(-1) - largest[..., min(tail, sizes.shape[-1] - 1)]
    factor = 1 / np.maximum(1 - hill, 1 / FARTHEST)
    further = sizes.max(-1) * factor
    return slope[..., None] * sizes * centred, further * slope * (centred.max(-1) + np.log(factor)) / (n + further)


def _third(sizes: Floats, mean: Floats, rho: Floats, deviations: Floats) -> Floats:
    """Skewness of the mean of beta-binomial groups, from raw moments of the Beta."""
    spread = 1 / np.maximum(rho, 1e-9) - 1
    second = mean * (mean * spread + 1) / (spread + 1)
    third = second * (mean * spread + 2) / (spread + 2)
    k2 = sizes * (mean - second)[..., None] + sizes**2 * (second - mean**2)[..., None]
    lean = third - 3 * mean * second + 2 * mean**3
    k3 = sizes * (mean - 3 * second + 2 * third)[..., None] + sizes**3 * lean[..., None]
    k3 = k3 + 3 * sizes**2 * (second - third - mean * (mean - second))[..., None]
    k3, k2 = k3 + 3 * k2 * deviations + deviations**3, k2 + deviations**2
    return k3.sum(-1) / k2.sum(-1) ** 1.5


def bounds(sums: Any, sizes: Any, confidence: float, side: str, share: float = SKEWNESS_SHARE) -> Floats:
    """One-sided bounds [...] from right answers [..., G] and rows [..., G] of each group. share: of the correction for
    skewness."""
    sums, sizes = np.asarray(sums, dtype=float), np.asarray(sizes, dtype=float)
    if side == "upper":
        return 1 - bounds(sizes - sums, sizes, confidence, "lower", share)
    n = np.broadcast_to(sizes.sum(-1), sums.shape[:-1])
    mean = sums.sum(-1) / n
    effect = np.maximum(1.0, design_effect(sums, sizes))
    _, freedom, rho = variance(sums, sizes)
    t_quantile = stdtrit(freedom, confidence)

    def at(quantile: Floats) -> Floats:
        effective = n / effect * (stdtrit(n - 1, confidence) / quantile) ** 2
        right = mean * effective
        low = betaincinv(np.maximum(right, 1e-12), effective - right + 1, 1 - confidence)
        return np.where(mean > 0, low, 0.0)

    first = at(t_quantile)
    clipped = np.clip(first, 1e-9, 1 - 1e-9)
    kish = 1 + ((sizes**2).sum(-1) / n - 1) * rho
    binomial = (1 - 2 * clipped) / np.sqrt(clipped * (1 - clipped) * n / kish)
    deviations, beyond = trend(sums, sizes)
    lean = np.maximum(0.0, binomial - _third(sizes, clipped, rho, deviations)) * (2 * t_quantile**2 + 1) / 6
    leans = (first > 0) & (first < 1) & ((rho > 0) | (beyond < 0)) & (mean > 0) & (mean < 1)
    return np.maximum(np.where(leans, at(t_quantile + share * lean), first) + beyond, 0.0)
