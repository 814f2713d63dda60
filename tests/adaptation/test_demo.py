"""The demo on the real base and reviews: the numbers that were seen by hand, within their error."""

from __future__ import annotations

from pathlib import Path

import pytest

from bedplate.adaptation.ladder import adapt

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(1800)]
TASK = Path(__file__).parents[2] / "examples" / "reviews" / "task.yaml"


def test_the_reviews_ladder(smollm2_gguf: Path, tmp_path: Path):
    report = adapt(TASK, tmp_path / "run", budget=1500)
    estimates = {row["rung"]: row["estimate"] for row in report.rungs if row["split"] == "valid" and row["estimate"]}
    # by hand: zero-shot 0.78, TF-IDF 0.80, probe 0.84 to 0.85, LoRA 0.865 to 0.91
    assert 0.74 < estimates["zero_shot"] < 0.87
    assert 0.76 < estimates["from_scratch"] < 0.84
    assert 0.81 < estimates["probe"] < 0.89
    assert 0.84 < estimates["lora"] < 0.93
    assert estimates["few_shot"] > 0.74
    assert report.verdict["status"] == "PASS"
    assert report.comparison["b"] == "zero_shot"
    assert report.comparison["p_value"] < 0.01
    for export in report.data["export"].values():
        assert export["equal"] >= export["rows"] - 2  # bfloat16 differs a little between batch sizes
