"""Every kind of output is answered alike in a batch and in calls of their own, in float32: what is written token for
token, and numbers as close as the order of a sum allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bedplate.adapters.head import Head
from bedplate.inference.predict.local import LocalModel
from bedplate.skins.output import EmbeddingOutput, JsonOutput, LabelsOutput, TextOutput
from bedplate.skins.prompt import Prompt
from bedplate.skins.skin import BaseReference, EvaluatedWith, InputField, ProbePart, Skin

NAMES = ("colour", "size", "price")
FORM = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green", "blue"]}, "good": {"type": "boolean"}},
    "required": ["colour", "good"],
    "additionalProperties": False,
}
WRITTEN: dict[str, Any] = {
    "json": JsonOutput(json_schema=FORM, max_tokens=48),
    "number": JsonOutput(json_schema={"type": "integer"}, max_tokens=5),
    "labels": LabelsOutput(labels=NAMES, max_tokens=48),
    "text": TextOutput(max_tokens=12),
    "choice": TextOutput(choices=("yes", "no", "the answer"), max_tokens=12),
}
ROWS = ["great and works well", "it broke", "terrible quality of the product after a day", "x", "no 你好", "it broke"]


def _skin(model: LocalModel, directory: Path, output: Any, probe: ProbePart | None = None) -> Skin:
    """Long beginnings that are shared, and rows of different lengths."""
    return Skin(
        name=f"reviews-{output.kind}",
        bases={"main": BaseReference.of(str(directory), "llama", model.base.identity)},
        inputs={"review": InputField()},
        output=output,
        prompt=Prompt("the product was asked about by the user\nReview: {{ review }}\nSentiment:"),
        probe=probe,
        evaluated_with=EvaluatedWith(weights="float32"),
    )


@pytest.mark.parametrize("output_type", WRITTEN)
def test_what_is_written_is_the_same_token_for_token(model: LocalModel, tiny_dir: Path, output_type: str) -> None:
    with model.predictor(_skin(model, tiny_dir, WRITTEN[output_type])) as predictor:
        together = predictor.predict(ROWS)
        alone = predictor.predict(ROWS, one_by_one=True)
    for a, b in zip(together, alone, strict=True):
        assert (a.output, a.text, a.finish_reason) == (b.output, b.text, b.finish_reason)
        assert (a.prompt_tokens, a.completion_tokens) == (b.prompt_tokens, b.completion_tokens)
    assert together[1].output == together[-1].output  # the same text asked twice


@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_labels_of_a_head_are_the_same(model: LocalModel, tiny_dir: Path, threshold: float) -> None:
    draw = torch.Generator().manual_seed(0)
    head = Head(torch.randn(len(NAMES), 48, generator=draw), torch.zeros(len(NAMES)), NAMES)
    output = LabelsOutput(labels=NAMES, threshold=threshold)
    with model.predictor(_skin(model, tiny_dir, output, ProbePart(head, "layers.2"))) as predictor:
        together = predictor.predict(ROWS)
        alone = predictor.predict(ROWS, one_by_one=True)
    assert [prediction.output for prediction in together] == [prediction.output for prediction in alone]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(list(a.scores.values()), list(b.scores.values()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_vectors_are_the_same(model: LocalModel, tiny_dir: Path, pooling: Any) -> None:
    with model.predictor(_skin(model, tiny_dir, EmbeddingOutput(pooling=pooling))) as predictor:
        together = predictor.embed(ROWS)
        alone = np.concatenate([predictor.embed([row]) for row in ROWS])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert together.shape == (len(ROWS), 48)
