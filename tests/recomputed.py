"""Computes a report's numbers again from its rows, with nothing of the project: python recomputed.py report.json

For metrics that are a mean of rows right or wrong, all of one weight. Bounds: exact binomial at an effective n (Korn &
Graubard 1998); the variance of groups by CR2 weights, and what it is expected to be where rows of a group are equally
correlated (Bell & McCaffrey 2002); three quarters of the correction for skewness (Johnson 1978).
"""

import json
import sys
from pathlib import Path

import numpy as np
from scipy.special import betaincinv, stdtrit
from scipy.stats import binomtest


def bound(rows, confidence, side):
    x, names = np.array([row["score"] for row in rows]), np.array([row["group"] for row in rows])
    _, group, m = np.unique(names, return_inverse=True, return_counts=True)
    n, p = x.size, x.mean()

    def exact(size):
        low = betaincinv(p * size, size - p * size + 1, 1 - confidence) if p > 0 else 0.0
        high = betaincinv(p * size + 1, size - p * size, confidence) if p < 1 else 1.0
        return low if side == "lower" else high

    if m.size == n:
        return exact(n)
    sums, means = np.bincount(group, x), np.bincount(group, x) / m
    between, within = m @ (means - p) ** 2 / (m.size - 1), ((x - means[group]) ** 2).sum() / (n - m.size)
    typical = (n - m @ m / n) / (m.size - 1)
    total = between + (typical - 1) * within
    icc = min(max((between - within) / total, 0.0), 1.0) if total else 1.0
    h, a, v = m / n, 1 / (1 - m / n), m * (1 - icc) + m**2 * icc  # what r = S - h ΣS is made of
    own, y = v - 2 * h * v + h**2 * v.sum(), v - h * v.sum() / 2
    beside = 2 * (a @ h**2) * (a @ y**2) + 2 * (a @ (h * y)) ** 2 - a**2 @ (2 * h * y) ** 2
    freedom = (a @ own) ** 2 / (a**2 @ own**2 + beside)
    variance = a @ (sums - p * m) ** 2 / n**2 / (a @ own / v.sum())
    plain = p * (1 - p) / (n - 1)
    effect = max(1.0, variance / plain if plain else m @ m / n)
    normal, t = stdtrit(n - 1, confidence), stdtrit(freedom, confidence)
    value = exact(n / effect * (normal / t) ** 2)
    if 0 < value < 1 and icc > 0 and plain:
        beyond = skewness(np.array([n / (v.sum() / n)]), value, 0.0) - skewness(m, value, icc)
        lean = (beyond if side == "lower" else -beyond) * (2 * t**2 + 1) / 6
        value = exact(n / effect * (normal / (t + 0.75 * max(lean, 0.0))) ** 2)
    return value


def skewness(m, p, icc):
    if icc <= 0:
        return (1 - 2 * p) / np.sqrt(p * (1 - p) * m.sum())
    s = 1 / icc - 1
    second = p * (p * s + 1) / (s + 1)
    third = second * (p * s + 2) / (s + 2)
    in_group, of_rate = p - second, second - p**2
    k3 = m * (p - 3 * second + 2 * third) + 3 * m**2 * (second - third - p * in_group)
    k3 = k3 + m**3 * (third - 3 * p * second + 2 * p**3)
    return k3.sum() / (m * in_group + m**2 * of_rate).sum() ** 1.5


def recomputed(report):
    """(what it is, as reported, as computed)."""
    rows = report["rows"]
    for one in report["rungs"]:
        if one["estimate"] is not None and one["rung"] in rows[one["split"]]:
            name, mine = f"{one['rung']} on {one['split']}", rows[one["split"]][one["rung"]]
            yield f"{name}: estimate", one["estimate"], np.mean([row["score"] for row in mine])
            for end, side in zip(one["interval"], ("lower", "upper"), strict=True):
                yield f"{name}: {side} end", end, bound(mine, 0.975, side)
            calls = rows["calls"][one["split"]].get(one["rung"])
            if calls:
                yield f"{name}: p95", one["p95_ms"], 1000 * np.quantile(calls, 0.95, method="inverted_cdf")
    for one in report["nominees"]["confirmations"]:
        for side in ("lower", "upper"):
            if one[side] is not None:
                found = bound(rows["test"][one["rung"]], one[f"{side}_confidence"], side)
                yield f"{one['rung']}: {side} bound", one[side], found
    for one in report["comparisons"]:
        a, b = (np.array([row["score"] for row in rows[one["split"]][one[key]]]) for key in "ab")
        yield f"{one['a']} minus {one['b']}", one["difference"], (a - b).mean()
        if one["test"] == "mcnemar_exact":
            yield "its p", one["p_value"], binomtest(int((a > b).sum()), int((a != b).sum())).pvalue


if __name__ == "__main__":
    for what, said, found in recomputed(json.loads(Path(sys.argv[1]).read_text())):
        print(f"{'ok ' if abs(said - found) < 1e-9 else 'OFF'} {what}: {said:.6g}, computed {found:.6g}")
