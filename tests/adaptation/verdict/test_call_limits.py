"""A budget's p95 in a whole ladder: the requested calls, spread over the time of test, judged at the error level of the
nominee's quality."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.adaptation.conftest import write_task

from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.search import run_rung
from bedplate.evaluation.examples import Example


def test_nominees_alternate_block_by_block_and_time_the_requested_calls(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    singles: list[tuple[Any, int]] = []
    repeats: list[list[str]] = []
    predicted = run_rung.predict_examples

    def watched(predictor: Any, examples: Sequence[Example], *, one_by_one: bool = False, tenant: str = "") -> Any:
        if one_by_one:
            singles.append((id(predictor), len(examples)))
            repeats.extend([[example.id for example in examples]] * tenant.startswith("timing"))
        return predicted(predictor, examples, one_by_one=one_by_one, tenant=tenant)

    monkeypatch.setattr(run_rung, "predict_examples", watched)
    budget = {"p95_ms": 60000, "p95_calls": 256}  # in 64 blocks, of 64 rows of valid and test
    task = write_task(tmp_path, tiny_base, budget=budget, rungs=["zero_shot", "probe"], formats="none")
    report = adapt(task, tmp_path / "out")
    names = report.data["nominees"]["nominees"]
    limits = report.data["limits"]
    assert names
    for confirmation in report.data["nominees"]["confirmations"]:
        limit = limits[confirmation["rung"]][0]
        assert limit["calls"] == 256
        assert limit["confidence"] == confirmation["lower_confidence"] > report.data["target"]["confidence"]
    calls = [count for _, count in singles if count > 1]
    assert max(calls) <= run_rung.CALLS_OF_A_BLOCK
    assert max(map(len, repeats)) > 1
    assert all(len(set(block)) == len(block) for block in repeats), "a row asked again in a block is in the cache"
    in_a_row = [sum(1 for _ in run) for _, run in itertools.groupby(who for who, _ in singles)]
    assert len({who for who, _ in singles}) == 2  # both skins: the nominees, or one and what it is compared with
    assert max(in_a_row) <= 3
