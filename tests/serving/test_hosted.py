"""Our own server as the remote model that a hosted skin asks: its labels, their scores, and its refusals are read."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.serving.conftest import LABELS, Server

from bedplate.core.errors import UnknownModelError
from bedplate.inference.predict.hosted_predictor import HostedPredictor
from bedplate.inference.remote.account import Account, TokenPrices
from bedplate.skins.output import JsonOutput, LabelOutput, Output
from bedplate.skins.prompt import Prompt
from bedplate.skins.skin import EndpointReference, InputField, Skin

ROWS = ["great and works well", "it broke", "terrible quality", "the answer is no"]


def hosted(server: Server, model: str, output: Output | None = None) -> Skin:
    return Skin(
        name="far",
        bases={"main": EndpointReference(url=server.url, model=model)},
        inputs={"review": InputField()},
        output=output or LabelOutput(labels=LABELS),
        prompt=Prompt("{{ review }}", "chat"),
    )


def test_a_served_skin_answers_for_a_hosted_one(server: Server) -> None:
    expected = server.skins["prompted"].predict(ROWS)
    account = Account(price=TokenPrices(1.0, 1.0, 1.0))
    with HostedPredictor(hosted(server, "prompted"), account=account) as predictor:
        predictions = predictor.predict(ROWS)
        assert predictor.left_out == {"logprobs", "top_logprobs"}  # a skin that answers with a label refuses them
    for ours, theirs in zip(predictions, expected, strict=True):
        assert ours.output == theirs.output
        np.testing.assert_allclose(list(ours.scores.values()), list(theirs.scores.values()), atol=1e-4)
        assert ours.prompt_tokens == theirs.prompt_tokens
    assert account.spent == pytest.approx(sum(p.prompt_tokens + p.completion_tokens for p in predictions) / 1e6)


def test_a_served_base_gives_likelihoods_with_whatever_it_says(server: Server) -> None:
    with HostedPredictor(hosted(server, "tiny")) as predictor:
        predictions = predictor.predict(ROWS)
        assert predictor.left_out == set()
    for prediction in predictions:
        assert prediction.completion_tokens > 0
        assert prediction.output == prediction.text or prediction.output in LABELS
        assert all(math.isfinite(score) for score in prediction.scores.values())


def test_json_is_of_the_schema_because_the_server_holds_the_model_to_it(server: Server) -> None:
    schema = {"type": "object", "properties": {"good": {"type": "boolean"}}, "required": ["good"]}
    output = JsonOutput(json_schema={**schema, "additionalProperties": False}, max_tokens=64)
    with HostedPredictor(hosted(server, "tiny", output)) as predictor:
        assert {p.output for p in predictor.predict(ROWS)} <= {'{"good":true}', '{"good":false}'}


def test_a_model_that_is_not_there(server: Server) -> None:
    with HostedPredictor(hosted(server, "gone")) as predictor, pytest.raises(UnknownModelError, match="gone"):
        predictor.predict(ROWS[:1])
