"""Computes a report's numbers again from its rows, with nothing of the project: python tests/recomputed.py report.json

For metrics that are a mean of rows which weigh alike; what they are computed by stands in `formulas.py`.
"""

import json
import sys
from pathlib import Path

import numpy as np
from scipy.special import stdtrit
from scipy.stats import beta

try:
    from tests.formulas import bound, difference
except ModuleNotFoundError:  # as a script
    from formulas import bound, difference  # type: ignore[import-not-found, no-redef]

RIGHT_OR_WRONG = ("accuracy", "exact_match", "labels_match", "json_match", "squad_exact")
NO_MEAN = ("macro_f1", "micro_f1", "selective_accuracy")


def recomputed(report):
    """(what it is, as reported, as computed)."""
    rows, metric, seed = report["rows"], report["target"]["metric"], report["settings"]["seed"]
    binary, confidence = metric in RIGHT_OR_WRONG, report["target"]["confidence"]
    weights = {
        row.get("weight", 1.0) for split in ("valid", "test") for rung_rows in rows[split].values() for row in rung_rows
    }
    if metric in NO_MEAN or report["target"].get("lower_is_better") or len(weights) > 1:
        raise SystemExit(f"{metric} is no mean of rows' scores that weigh alike, for which these formulas are")

    def scores(split, rung):
        return (np.array([row[key] for row in rows[split][rung]]) for key in ("score", "group"))

    for result in report["rungs"]:
        if result["estimate"] is None or result["rung"] not in rows[result["split"]]:
            continue
        name, (x, names) = f"{result['rung']} on {result['split']}", scores(result["split"], result["rung"])
        yield f"{name}: estimate", result["estimate"], x.mean()
        for end, side in zip(result["interval"], ("lower", "upper"), strict=True):
            yield f"{name}: {side} end", end, bound(x, names, 0.025, side, binary, seed)
        calls = np.sort(rows["calls"][result["split"]].get(result["rung"], []))
        if calls.size:
            yield f"{name}: p50", result["p50_ms"], 1000 * calls[calls.size // 2]
            yield f"{name}: p95", result["p95_ms"], 1000 * np.quantile(calls, 0.95, method="inverted_cdf")
            if (result.get("p95_bounds_ms") or [None])[-1] is not None:
                share, rank = result["p95_worth"] / calls.size, np.arange(calls.size)
                covered = beta.cdf(0.05, (calls.size - rank - 1) * share + 1, (rank + 1) * share) >= confidence
                p95_upper = calls[covered.argmax()]
                yield f"{name}: upper bound of p95", result["p95_bounds_ms"][1], 1000 * p95_upper
        if calls.size and result.get("usd_interval"):
            usd = report["machine"]["usd_per_hour"] / 3.6
            yield f"{name}: price", result["usd_per_1k_calls"], usd * calls.mean()
            half = usd * calls.std(ddof=1) / np.sqrt(calls.size) * stdtrit(calls.size - 1, 0.975)
            yield f"{name}: price at most", result["usd_interval"][1], usd * calls.mean() + half
    for confirmation in report["nominees"]["confirmations"]:
        x, names = scores("test", confirmation["rung"])
        for side in ("lower", "upper"):
            if confirmation[side] is not None:
                error = 1 - confirmation[f"{side}_confidence"]
                computed = bound(x, names, error, side, binary, seed, max(2000, int(np.ceil(40 / error))))
                yield f"{confirmation['rung']}: {side} bound", confirmation[side], computed
    for comparison in report["comparisons"]:
        (a, names), (b, _) = (scores(comparison["split"], comparison[key]) for key in "ab")
        low, high, p = difference(a, b, names, 1 - comparison["confidence"], binary, seed)
        reported = (comparison["difference"], *comparison["interval"], comparison["p_value"])
        computed = zip(reported, ((a - b).mean(), low, high, p), strict=True)
        yield from (
            (f"{comparison['a']} minus {comparison['b']} ({place})", *pair) for place, pair in enumerate(computed)
        )
    for point in (report["curve"] or {}).get("points", ()):
        yield (
            f"{point['rung']} at {point['size']}",
            point["estimate"],
            np.mean([draw["estimate"] for draw in point["draws"]]),
        )


if __name__ == "__main__":
    for label, reported, computed in recomputed(
        json.loads(Path(sys.argv[1]).read_text())
    ):  # bounds were sought to 1e-5
        print(f"{'ok ' if abs(reported - computed) < 2e-5 else 'OFF'} {label}: {reported:.6g}, computed {computed:.6g}")
