"""Cascades behind the API: one model name, the first skin where it is sure and the second where it is not."""

from __future__ import annotations

import gc
import json
import math
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import openai
import pytest
from tests.serving.conftest import Files, judged_with, running
from tests.tiny import NATIVE_SHAPE, write_tiny_base

from bedplate.core.errors import SkinError
from bedplate.inference.engine.engine import Engine
from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.predictor import Prediction, Predictor
from bedplate.models.checkpoints.base import load_base
from bedplate.serving.models.registry import scan_skins
from bedplate.serving.request.server_state import ServerState
from bedplate.serving.server.app import loaded_server, server_config
from bedplate.skins.files import read_skin, write_skin
from bedplate.skins.output import LabelOutput
from bedplate.skins.prompt import Prompt
from bedplate.skins.skin import BaseReference, EndpointReference, InputField, LoraPart, Skin, cascaded

TEXTS = [f"this product {word} number {i}" for i, word in enumerate(["great", "broke", "works", "terrible"] * 5)]


@pytest.fixture(scope="module")
def cascade_files(
    files: Files, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, list[list[Prediction]], float]:
    """A skin with LoRA weights before one of another base; what each says alone; and the threshold between them."""
    place = tmp_path_factory.mktemp("cascade")
    second_base = write_tiny_base(place / "other", seed=9, layers=4, **NATIVE_SHAPE)
    base = load_base(second_base)
    second = Skin(
        name="second",
        bases={"main": BaseReference.of(str(second_base), "llama", base.identity)},
        inputs={"review": InputField()},
        output=LabelOutput(labels=("negative", "positive"), continuations=(" negative", " positive")),
        prompt=Prompt("Review: {{ review }}\nSentiment:"),
        evaluated_with=judged_with(base),
    )
    write_skin(second, place / "second")
    first = next(path for path in files.skins if path.name == "tuned")
    alone: list[list[Prediction]] = []
    # the base of the skins in `files` is called otherwise than where it lies
    with load(first, base=files.base) as first_model, load(place / "second") as two:
        alone += [first_model.predict(TEXTS, one_by_one=True), two.predict(TEXTS, one_by_one=True)]  # type: ignore[union-attr]
    sure = np.sort([math.exp(p.scores[p.output]) for p in alone[0]])
    at = 1 + int(np.argmax(np.diff(sure)[1:-1]))  # in the widest gap, so that last bits decide nothing
    threshold = float(sure[at] + sure[at + 1]) / 2
    write_skin(cascaded("both", read_skin(first), second, threshold), place / "both")
    return place / "both", second_base, alone, threshold


@pytest.fixture(scope="module")
def state(files: Files, cascade_files: tuple[Path, Path, Any, Any]) -> Iterator[tuple[ServerState, str]]:
    config = server_config(files.base, cascade_files[1], price={"usd_per_hour": 3600.0, "as_of": "2026-11-24"})
    with loaded_server(config, [cascade_files[0]]) as state, running(state) as url:
        yield state, url


def post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{url}{path}", json.dumps(body).encode(), {"content-type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request) as response:
        return json.loads(response.read())


def test_each_answer_is_that_of_the_skin_that_is_sure(
    cascade_files: tuple[Path, Path, list[list[Prediction]], float], state: tuple[ServerState, str]
):
    _, _, (first, second), threshold = cascade_files
    with openai.OpenAI(base_url=f"{state[1]}/v1", api_key="none") as client:
        assert "both" in {model.id for model in client.models.list()}
        passed = 0
        for text, a, b in zip(TEXTS, first, second, strict=True):
            unsure = math.exp(a.scores[a.output]) < threshold
            passed += unsure
            completion = client.chat.completions.create(model="both", messages=[{"role": "user", "content": text}])
            assert completion.choices[0].message.content == (b if unsure else a).output
            details = completion.choices[0].model_dump()["bedplate"]
            assert details["passed_on"] == unsure
            np.testing.assert_allclose(
                list(details["scores"].values()), list((b if unsure else a).scores.values()), atol=1e-4
            )
            assert completion.usage is not None
            assert completion.usage.prompt_tokens == a.prompt_tokens + (b.prompt_tokens if unsure else 0)
        assert 0 < passed < len(TEXTS)


def test_streams_completions_and_classifications_say_the_same(
    cascade_files: tuple[Path, Path, list[list[Prediction]], float], state: tuple[ServerState, str]
):
    _, _, (first, second), threshold = cascade_files
    expected = [
        (b if math.exp(a.scores[a.output]) < threshold else a).output for a, b in zip(first, second, strict=True)
    ]
    classified = post(state[1], "/v1/classify", {"model": "both", "input": TEXTS})
    assert [row["label"] for row in classified["data"]] == expected
    with openai.OpenAI(base_url=f"{state[1]}/v1", api_key="none") as client:
        texts = client.completions.create(model="both", prompt=TEXTS)
        assert [choice.text.strip() for choice in texts.choices] == expected
        for text, label, a, b in zip(TEXTS[:6], expected, first, second, strict=False):
            chunks = list(
                client.chat.completions.create(
                    model="both",
                    messages=[{"role": "user", "content": text}],
                    stream=True,
                    stream_options={"include_usage": True},
                )
            )
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == label
            unsure = math.exp(a.scores[a.output]) < threshold
            usage = chunks[-1].usage
            assert usage is not None
            assert usage.prompt_tokens == a.prompt_tokens + (b.prompt_tokens if unsure else 0)
        with pytest.raises(openai.BadRequestError, match="n can only be 1"):
            client.chat.completions.create(model="both", messages=[{"role": "user", "content": "x"}], n=2)


def test_in_memory_it_keeps_no_copy_of_its_skins_weights(state: tuple[ServerState, str]):
    post(state[1], "/v1/classify", {"model": "both", "input": TEXTS})
    predictor_count, visited, waiting = 0, set[int](), list[object]([state[0].registry.models["both"]])
    while waiting:  # everything that it holds, but for the engines, whose the weights are
        referent = waiting.pop()
        if id(referent) in visited or isinstance(referent, Engine | ModuleType | FunctionType | type):
            continue
        visited.add(id(referent))
        predictor_count += isinstance(referent, Predictor)
        assert not (isinstance(referent, LoraPart) and referent.tensors)
        waiting += gc.get_referents(referent)
    assert predictor_count == 2


@pytest.mark.parametrize("missing", ["first/skin.json", "second/skin.json", "second"])
def test_one_that_was_half_copied_stops_nothing(
    cascade_files: tuple[Path, Path, Any, Any], files: Files, tmp_path: Path, missing: str
):
    shutil.copytree(cascade_files[0], tmp_path / "skins" / "both")
    shutil.copytree(next(path for path in files.skins if path.name == "tuned"), tmp_path / "skins" / "tuned")
    target = tmp_path / "skins" / "both" / missing
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    scan = scan_skins(tmp_path / "skins")
    assert [card.name for card in scan.cards] == ["tuned"]
    assert len(scan.problems) == 1
    assert str(tmp_path / "skins" / "both") in scan.problems[0]
    with loaded_server(server_config(files.base, cascade_files[1], skins_directory=tmp_path / "skins")) as state:
        assert set(state.registry.models) == {"tiny", "other", "tuned"}


def test_without_the_second_base_it_is_refused(cascade_files: tuple[Path, Path, Any, Any], files: Files):
    with pytest.raises(SkinError, match="'second' belongs to the base"), loaded_server(files.base, [cascade_files[0]]):
        pass


def test_what_a_remote_model_answers_is_not_served(files: Files, tmp_path: Path):
    skin = Skin(
        name="far",
        bases={"main": EndpointReference(url="http://127.0.0.1:9", model="m")},
        inputs={"review": InputField()},
        output=LabelOutput(labels=("negative", "positive")),
        prompt=Prompt("{{ review }}", "chat"),
    )
    write_skin(skin, tmp_path / "far")
    with (
        pytest.raises(SkinError, match=r"is answered by m at http://127\.0\.0\.1:9, and a server answers with bases"),
        loaded_server(files.base, [tmp_path / "far"]),
    ):
        pass
