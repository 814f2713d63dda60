"""So many held-out tokens as the file states are judged on, and they count in what is said of a run's time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.corpus.made import byte_tokenizer, write_corpus
from tests.pretraining.runs import tiny_run

from bedplate.pretraining.page.page import facts, same_documents
from bedplate.pretraining.plan.dry_run import plan_run
from bedplate.pretraining.run.data import HeldOut

TEXTS = ["é" * 300, "a short one", "b" * 5000]


def held(texts: list[str]) -> HeldOut:
    tokenizer = byte_tokenizer()
    return HeldOut("all", [np.array([*tokenizer.encode(text), tokenizer.eos_id], np.int32) for text in texts], texts)


@pytest.mark.parametrize(
    ("limit", "tokens", "bytes_"),
    [(101, 101, 100), (601, 601, 600), (602, 601, 600), (700, 700, 698), (1, 2, 2), (None, 5614, 5611)],
)
def test_the_last_document_is_cut_where_the_stated_tokens_end(limit: int | None, tokens: int, bytes_: int) -> None:
    part = held(TEXTS).first_documents(limit, byte_tokenizer())
    assert (sum(map(len, part.ids)), part.bytes) == (tokens, bytes_)
    assert all(text.startswith(cut) for cut, text in zip(part.texts, TEXTS, strict=False))


def score(step: int, documents: int, bytes_: int, value: float) -> dict[str, Any]:
    scores = {"name": "a", "documents": documents, "bytes": bytes_, "bits_per_byte": value, "nats_per_token": value}
    return {"step": step, "seconds": 40.0, "held_out": {"a": scores | {"target": "token", "general": False}}}


def test_a_document_cut_at_checkpoints_is_not_compared_with_the_whole() -> None:
    judged = [score(10, 1, 100, 3.0), score(20, 1, 100, 2.0), score(30, 1, 9000, 5.0)]
    assert same_documents(judged)["a"]["last"] == 2.0


def test_the_time_left_counts_evaluations() -> None:
    rows = [{"step": n, "tokens": 100, "tokens_per_second": 100.0, "loss": 1.0} for n in range(1, 51)]
    record = {"steps": 110, "status": "running", "parameters": 1}
    assert facts(record, rows)["time left at this speed"] == "1.0 minutes"
    judged = [score(0, 1, 1, 1.0), score(20, 1, 1, 1.0), score(40, 1, 1, 1.0)]  # 2 s a step, and 1 s of steps
    assert facts(record, rows, judged)["time left at this speed"] == "3.0 minutes"


def test_a_dry_run_counts_evaluation(tmp_path: Path) -> None:
    common = {"tokens": "200k", "batch": {"tokens": 256}, "checkpoints": {"every": 0.25}}
    few, many = (
        plan_run(tiny_run(tmp_path, **common, evaluation={"tokens": tokens, "end_tokens": 4096}))
        for tokens in (1024, 102_400)
    )
    assert few["evaluation_tokens"] == 3 * 1024 + 4096
    assert many["evaluation_tokens"] == 3 * 102_400 + 4096
    assert many["seconds"] - few["seconds"] == pytest.approx(
        many["evaluation_seconds"] - few["evaluation_seconds"], rel=0.2
    )
    assert many["evaluation_seconds"] / (many["seconds"] - many["evaluation_seconds"]) == pytest.approx(
        many["evaluation_tokens"] / 3 / many["tokens"]
    )


def test_a_dry_run_knows_what_a_corpus_holds_out(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", {"a": ["x" * 99] * 20, "b": ["y" * 9] * 10}, valid=5)
    values: dict[str, Any] = {"data": {"corpus": str(corpus)}, "checkpoints": {"every": 0.5}, "tokens": "20k"}
    plan = plan_run(tiny_run(tmp_path, **values, evaluation={"tokens": 200}))
    assert plan["evaluation_tokens"] == (200 + 50) + (500 + 50)
