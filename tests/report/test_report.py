from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from bedplate.report import plots
from bedplate.report.html import adaptation_page


def row(rung: str, estimate: float, usd: float, **more: Any) -> dict[str, Any]:
    return {
        "rung": rung,
        "status": "done",
        "reason": "why",
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
        **more,
    }


def report(**changes: Any) -> dict[str, Any]:
    seeds = [{"seed": i, "estimate": 0.8 + i / 100, "interval": [0.7, 0.9], "chosen": i == 1} for i in range(3)]
    values: dict[str, Any] = {
        "task": "toy",
        "base": "tiny",
        "verdict": {"status": "PASS", "skin": "skins/lora", "reason": "it clears", "rung": "lora"},
        "target": {"metric": "accuracy", "value": 0.8, "confidence": 0.95},
        "rungs": [
            row("majority", 0.5, 0.0, skin=None),
            row("lora", 0.9, 0.02, seeds=seeds),
            row("lora", 0.88, 0.02, split="test"),
            {**row("probe", 0, 0), "status": "skipped", "estimate": None, "interval": None, "reason": "no time"},
        ],
        "nominees": {
            "nominees": ["lora"],
            "primary": "lora",
            "versus": None,
            "reasons": {"lora": "nominated"},
            "confirmations": [],
        },
        "comparison": None,
        "comparisons": [],
        "left_out": {"lora": ["20 rows were left out"]},
        "search": {"zero_shot": [{"name": "plain", "estimate": 0.7, "n": 10, "split": "valid"}]},
        "ledger": {"number": 1, "alpha": 0.03},
        "focus": {
            "rung": "lora",
            "split": "test",
            "slices": [{"by": "label", "value": "a", "n": 3, "estimate": 0.5, "interval": [0.1, 0.9]}],
            "calibration": {"bins": [{"confidence": 0.7, "accuracy": 0.6, "n": 4}], "error": 0.1, "n": 4},
        },
        "examples": {"rung": "lora", "split": "valid", "wrong": [], "right": []},
        "data": {"counts": {"train": 3}, "hashes": {"train": "ab"}, "notes": [], "licences": ["MIT"]},
        "settings": {"dtype": "float32", "seed": 0, "budget_seconds": 60, "version": "1", "weights_id": "ff"},
        "machine": {"usd_per_hour": 0.1, "as_of": "2026-11-24"},
        "rows": {},
    }
    return {**values, **changes}


def test_the_page_says_what_the_report_says():
    page = adaptation_page(report())
    for said in ("PASS", "it clears", "0.880", "no time", "20 rows were left out", "target 0.8", "skipped", "MIT"):
        assert said in page
    assert page == adaptation_page(report())  # the same report gives the same bytes


def test_nothing_that_a_user_wrote_becomes_markup():
    evil = "<img src=x onerror=alert(1)>"
    example = {"id": "1", "text": evil, "target": "a", "prediction": evil}
    page = adaptation_page(
        report(task=evil, examples={"rung": "lora", "split": "valid", "wrong": [example], "right": []})
    )
    assert "<img" not in page
    assert page.count("&lt;img") >= 3


@pytest.mark.parametrize("missing", ["focus", "ledger"])
def test_a_page_without_a_nominee(missing: str):
    assert "PASS" in adaptation_page(report(**{missing: None}))


def test_plots_are_xml_that_follows_the_theme():
    rows = [{**row("a", 0.7, 0.01), "reference": False}, {**row("b", 0.5, 0), "reference": True}]
    for svg in (
        plots.quality_against_cost(rows, 0.8, "accuracy"),
        plots.reliability([{"confidence": 0.7, "accuracy": 0.6, "n": 4}]),
    ):
        ET.fromstring(svg)
        assert "var(--accent)" in svg
        assert not re.search(r"#(111213|3165f1|a1a2a3)", svg)


def test_seeds_are_drawn_only_where_they_spread():
    one = [{"seed": 0, "estimate": 0.8, "interval": [0.7, 0.9], "chosen": True}]
    assert plots.seed_spread({"lora": one, "probe": []}, "accuracy") is None
    drawn = plots.seed_spread({"lora": [*one, {**one[0], "seed": 1, "chosen": False}]}, "accuracy")
    assert drawn is not None
    assert "seed 1" in drawn


def test_the_pareto_front_leaves_out_what_is_dearer_and_no_better():
    rows = [row("a", 0.7, 0.01), row("b", 0.69, 0.02), row("c", 0.9, 0.03), row("d", 0.8, 0.03)]
    assert [r["rung"] for r in plots.pareto(rows)] == ["a", "c"]
