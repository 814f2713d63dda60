"""Decoders without their heads, as embedders are published: they embed, write nothing, and are exported as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from tests.near import assert_near

from bedplate.core.errors import CheckpointError, RequestError, UsageError
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Embed, Embedding, Generate, Score
from bedplate.inference.measure.parity import reference_of
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.export import export_base, export_gguf
from bedplate.models.checkpoints.hf_checkpoint import is_headless
from bedplate.models.families import FAMILIES

IDS = tuple(range(5, 25))


@pytest.fixture
def body(tmp_path: Path) -> tuple[transformers.PreTrainedModel, Path]:
    """e5-mistral: MistralModel, whose head would not be the token table."""
    example = {**FAMILIES["hf", "mistral"].examples[0], "tie_word_embeddings": False}
    model = reference_of(FAMILIES["hf", "mistral"], example, 0).model
    model.save_pretrained(tmp_path / "body")
    return model, tmp_path / "body"


def test_it_embeds_and_writes_nothing(body: tuple[transformers.PreTrainedModel, Path], tmp_path: Path) -> None:
    reference, directory = body
    base = load_base(directory)
    assert base.can == {"embed", "classify"}
    with torch.no_grad():
        expected = reference(torch.tensor([IDS])).last_hidden_state[0, -1]
    with Engine(base, kernel="torch") as engine:
        [embedding] = engine.run([Embed(IDS, "last", normalise=False)])
        for request in (Generate(IDS), Score(IDS, ((5,),))):
            with pytest.raises(RequestError, match="a decoder without its head: it embeds texts, and cannot"):
                engine.run([request])
    assert isinstance(embedding, Embedding)
    assert_near(torch.tensor(embedding.vector), expected)
    out = export_base(base, tmp_path / "out")
    reloaded = load_base(out)
    assert (reloaded.headless, reloaded.identity.weights_id) == (True, base.identity.weights_id)
    theirs, original = transformers.AutoModel.from_pretrained(out).state_dict(), reference.state_dict()
    assert theirs.keys() == original.keys()
    assert all(torch.equal(theirs[name], value) for name, value in original.items())
    with pytest.raises(UsageError, match="has no head, which GGUF files are to have"):
        export_gguf(base, tmp_path / "x.gguf", "f32")


def test_a_head_that_nobody_left_out_on_purpose_is_missing(body: tuple[transformers.PreTrainedModel, Path]) -> None:
    _, directory = body
    path = directory / "config.json"
    config = json.loads(path.read_text()) | {"architectures": ["MistralForCausalLM"]}
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"lacks 'lm_head\.weight'"):
        load_base(directory)
    (directory / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}])
    )
    assert load_base(directory).headless


def test_gpt2s_class_with_a_head_has_one(tmp_path: Path) -> None:
    family = FAMILIES["hf", "gpt2"]
    spec = family.to_spec({**family.examples[0], "tie_word_embeddings": False})
    heads = {name: {"architectures": name} for name in ("GPT2Model", "GPT2LMHeadModel")}
    headless = [name for name, config in heads.items() if is_headless(spec, family, ("wte.weight",), config, tmp_path)]
    assert headless == ["GPT2Model"]
