"""Skins of one base that were judged in different weights, behind one server: each on an engine of its own."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from tests.tiny import write_tiny_base

from bedplate.core.errors import UsageError
from bedplate.inference.engine.engine import Engine
from bedplate.inference.native.library import load
from bedplate.inference.predict.predictor import Predictor
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.export import export_gguf
from bedplate.serving.models import engines as opening
from bedplate.serving.server.app import loaded_server, server_config
from bedplate.skins.files import read_skin, write_skin
from bedplate.skins.skin import EvaluatedWith

from .conftest import Server, make_skins, running

MODEL_SHAPE = {"hidden_size": 64, "heads": 4, "head_dim": 16, "feedforward_size": 96}
TEXTS = ("this product is great", "it broke after a day", "works well", "terrible")

needs_native = pytest.mark.skipif(isinstance(load(), str), reason=f"no native kernel here: {load()}")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A base, and skins on it: a prompt in int4, LoRA weights in bfloat16, a probe in int8, a prompt on torch."""
    root = tmp_path_factory.mktemp("mixed")
    directory = write_tiny_base(root / "tiny", dtype=torch.bfloat16, **MODEL_SHAPE)
    prompted, tuned, probed, *_ = make_skins(load_base(directory))
    skins = [
        dataclasses.replace(skin, name=name, evaluated_with=EvaluatedWith(weights=weights, kernel=kernel))
        for skin, name, weights, kernel in (
            (prompted, "in-int4", "int4", "native"),
            (tuned, "in-bfloat16", "bfloat16", "native"),
            (probed, "in-int8", "int8", "native"),
            (prompted, "on-torch", "bfloat16", "torch"),
        )
    ]
    return directory, [write_skin(skin, root / skin.name) for skin in skins]


@needs_native
def test_each_skin_answers_as_it_was_judged_on_one_module(mixed, caplog):
    directory, skins = mixed
    with caplog.at_level(logging.INFO, "bedplate.serving"), loaded_server(directory, skins) as state:
        registry = state.registry
        formats = [(engine.weights, engine.kernel) for engine in registry.engines]
        assert sorted(formats) == [
            ("bfloat16", "native"),
            ("bfloat16", "torch"),
            ("int4", "native"),
            ("int8", "native"),
        ]
        assert len({id(engine.base.model) for engine in registry.engines}) == 1
        assert registry.models["tiny"].engine is registry.engines[0]
        assert registry.engines[0].weights == "bfloat16"  # the base's own name is for its own dtype
        for path in skins:
            judged, engine = read_skin(path).evaluated_with, registry.models[path.name].engine
            assert (engine.weights, engine.kernel) == (judged.weights, judged.kernel)
        labels = [registry.label(engine) for engine in registry.engines]
        assert labels[0] == "tiny"
        assert len(set(labels)) == 4
        assert "tiny (int4, native)" in labels
        for weights, kernel in formats:
            assert any(f"{weights} weights, {kernel} kernel" in line for line in caplog.messages)
        with running(state) as url:
            server = Server(url, state, {})
            for _ in range(2):  # in turns, so that one engine's adapter would be seen by another's rows
                for path in skins:
                    skin = read_skin(path)
                    reply = server.post("/v1/classify", json={"model": path.name, "input": TEXTS})
                    assert reply.status_code == 200, reply.text
                    probabilities = np.array([row["probs"] for row in reply.json()["data"]])
                    np.testing.assert_allclose(probabilities, expected(directory, skin), atol=0.02)
            assert server.chat(model="tiny").status_code == 200
            with httpx.Client(trust_env=False) as client:
                text = client.get(f"{url}/metrics").text
            engine_names = re.findall(r'bedplate:engine_up{model_name="([^"]+)"} 1.0', text)
            assert sorted(engine_names) == sorted(labels)
            assert server.idle()


def expected(directory: Path, skin) -> np.ndarray:
    """The labels' probabilities that the skin gives alone on its base."""
    base, judged = load_base(directory), skin.evaluated_with
    with Engine(base, weights=judged.weights, kernel=judged.kernel) as engine, Predictor(engine, skin) as predictor:
        return np.exp([list(prediction.scores.values()) for prediction in predictor.predict(TEXTS)])


@needs_native
def test_what_the_file_says_holds_alone(mixed):
    directory, skins = mixed
    with loaded_server(directory, skins[:1]) as state:  # they agree: one engine, as ever
        assert [engine.weights for engine in state.registry.engines] == ["int4"]
    config = server_config(directory, weights="int4", allow_other_weights=True)
    with loaded_server(config, skins) as state:
        assert [engine.weights for engine in state.registry.engines] == ["int4"]
        assert state.registry.models["in-bfloat16"].describe()["warnings"]
    with (
        pytest.raises(Exception, match="judged with bfloat16"),
        loaded_server(server_config(directory, weights="int4"), skins[:2]),
    ):
        pass


@needs_native
def test_skins_that_lie_in_the_directory_find_their_engines_and_stop_nobody(mixed, tmp_path, monkeypatch, caplog):
    directory, skins = mixed
    for path in skins[:2]:
        write_skin(read_skin(path), tmp_path / path.name)
    config = server_config(directory, skins_directory=tmp_path)
    with loaded_server(config) as state:
        assert {engine.weights for engine in state.registry.engines} == {"bfloat16", "int4"}
        assert {"in-int4", "in-bfloat16"} <= state.registry.models.keys()
    whole = opening.Engine

    def small(base, *, weights, **settings):
        if weights == "int4":
            raise UsageError("no room for it")
        return whole(base, weights=weights, **settings)

    monkeypatch.setattr(opening, "Engine", small)
    with loaded_server(config) as state:
        assert [engine.weights for engine in state.registry.engines] == ["bfloat16"]
        assert "in-int4" not in state.registry.models
    assert "tiny is not served with int4 weights: no room for it" in caplog.messages
    with pytest.raises(UsageError, match="no room"), loaded_server(directory, skins[:2]):  # given by hand: it must be
        pass


def test_a_base_in_two_dtypes_has_two_modules(tmp_path):
    directory = write_tiny_base(tmp_path / "tiny", dtype=torch.float32)
    prompted, tuned, *_ = make_skins(load_base(directory))
    half = dataclasses.replace(tuned, evaluated_with=EvaluatedWith(weights="bfloat16", kernel="torch"))
    with loaded_server(directory, [half, prompted]) as state:
        bases = {engine.weights: engine.base for engine in state.registry.engines}
        assert bases.keys() == {"bfloat16", "float32"}
        assert bases["bfloat16"].model is not bases["float32"].model
        assert state.registry.models["tuned"].engine.weights == "bfloat16"
        assert state.registry.models["prompted"].engine.weights == "float32"


@needs_native
def test_a_server_that_awaits_skins_holds_its_base_as_the_ladder_judges_them(tmp_path, monkeypatch, caplog):
    file = tmp_path / "x.gguf"
    export_gguf(load_base(write_tiny_base(tmp_path / "tiny", **MODEL_SHAPE)), file, "q4_1")
    skins, blocks_allowed = tmp_path / "skins", list[bool]()
    skins.mkdir()
    chosen = opening.chosen

    def noted(source, options, device):
        blocks_allowed.append(options.quantised)
        return chosen(source, options, device)

    monkeypatch.setattr(opening, "chosen", noted)
    with caplog.at_level(logging.INFO, "bedplate.serving"), loaded_server(file, skins_directory=skins) as state:
        assert [engine.weights in ("bfloat16", "float32") for engine in state.registry.engines] == [True]
    assert caplog.messages[0] == f"loading {file}"
    with loaded_server(file), loaded_server(file, weights="fastest", skins_directory=skins):
        assert blocks_allowed == [False, True, True, True]
