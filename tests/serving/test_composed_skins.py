"""Skins of several parts, served: they answer as when they are called, and leave the engine as they found it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.serving.conftest import INPUTS, Files, Server, make_skins, running

from bedplate.adapters.soft_prompt import SoftPrompt
from bedplate.inference.predict.loaded import load
from bedplate.models.checkpoints.base import load_base
from bedplate.serving.server.app import loaded_server, server_config
from bedplate.skins.files import write_skin
from bedplate.skins.lookup_index import Chunk, Passages
from bedplate.skins.output import EmbeddingOutput
from bedplate.skins.prompt import Prompt
from bedplate.skins.skin import Skin


def composed(base: Path) -> list[Skin]:
    prompted, tuned, probed, *_ = make_skins(load_base(base))
    soft = SoftPrompt(torch.randn(4, 64, generator=torch.Generator().manual_seed(3)))
    chunks = tuple(Chunk(name, 0, f"{name} works well") for name in ("one", "two", "three"))
    passages: dict[str, Any] = {
        "passages": Passages(np.eye(3, 64, dtype=np.float32), chunks, 2),
        "prompt": Prompt("{% for p in passages %}[{{ p.number }}] {{ p.text }}\n{% endfor %}{{ review }}:"),
    }
    vector: dict[str, Any] = {"output": EmbeddingOutput(pooling="mean"), "prompt": Prompt("query: {{ review }}")}
    parts: dict[str, tuple[Skin, dict[str, Any]]] = {
        "lora+retrieval": (prompted, {"lora": tuned.lora, **passages}),
        "lora+probe": (probed, {"lora": tuned.lora}),
        "lora+soft_prompt+retrieval": (prompted, {"lora": tuned.lora, "soft_prompt": soft, **passages}),
        "soft_prompt+probe": (probed, {"soft_prompt": soft}),
        "lora+embed": (prompted, {"lora": tuned.lora, **vector}),
    }
    return [dataclasses.replace(skin, name=skin_name, **changes) for skin_name, (skin, changes) in parts.items()]


@pytest.fixture(scope="module")
def directories(files: Files, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("composed")
    return [write_skin(skin, place / skin.name) for skin in composed(files.base)]


def test_they_answer_as_when_they_are_called(files: Files, directories: list[Path]) -> None:
    with loaded_server(server_config(files.base), directories) as state, running(state) as url:
        server = Server(url, state, {})
        described = {model.id: model.model_dump()["bedplate"] for model in server.client.models.list()}
        for directory in directories:
            name = directory.name
            assert described[name]["kind"] == name
            with load(directory, base=files.base) as alone:
                if name == "lora+embed":
                    vectors = [row.embedding for row in server.client.embeddings.create(model=name, input=INPUTS).data]
                    np.testing.assert_allclose(vectors, alone.embed(INPUTS), atol=1e-4)  # type: ignore[union-attr]
                    continue
                for text in INPUTS:
                    reply = server.client.chat.completions.create(
                        model=name, messages=[{"role": "user", "content": text}]
                    )
                    details, expected = reply.choices[0].model_dump()["bedplate"], alone.predict([text])[0]  # type: ignore[union-attr]
                    assert reply.choices[0].message.content == expected.output
                    assert details["scores"] == pytest.approx(dict(expected.scores), abs=1e-4)
                    assert len(details.get("passages", ())) == len(expected.passages)


def test_what_is_unloaded_leaves_nothing_in_the_engine(files: Files, directories: list[Path]) -> None:
    with loaded_server(server_config(files.base), directories) as state:
        engine = state.registry.engines[0]
        assert engine.bank is not None
        before = (engine.stats().adapters, engine.bank.slots)
        for directory in directories:
            served: Any = state.registry.models[directory.name]
            for _ in range(2):
                served.load()
                assert engine.stats().adapters > before[0]
                served.unload()
                assert (engine.stats().adapters, engine.bank.slots) == before


def test_a_vector_skin_with_weights_reranks(files: Files, directories: list[Path]) -> None:
    with loaded_server(server_config(files.base), directories) as state, running(state) as url:
        body = {"model": "lora+embed", "query": "it broke", "documents": ["it works", "it broke"]}
        reply = Server(url, state, {}).post("/v1/rerank", json=body)
        assert reply.status_code == 200, reply.text
        assert reply.json()["results"][0]["index"] == 1
