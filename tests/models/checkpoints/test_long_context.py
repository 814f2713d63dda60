"""A base with LongRoPE, written with the extended context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.near import assert_near
from tests.tiny import write_tiny_base

from bedplate.cli.main import main
from bedplate.core.errors import ContextLengthExceeded, UnsupportedModelError, UsageError
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Generation, Sampling
from bedplate.inference.measure.parity import reference_of
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.export import export_gguf
from bedplate.models.checkpoints.long_context import with_long_context
from bedplate.models.families import FAMILIES
from bedplate.models.inputs import Inputs
from bedplate.models.specs import TransformerSpec

ORIGINAL, LONGEST = 16, 64
IDS = torch.randint(3, 97, (1, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def phi(tmp_path: Path) -> Path:
    example = dict(FAMILIES["hf", "phi3"].examples[1])
    example |= {"original_max_position_embeddings": ORIGINAL, "max_position_embeddings": LONGEST}
    example |= {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    factors = {"short_factor": [1, 1.1, 1.1, 1.2, 1.3, 1.3], "long_factor": [1, 1.5, 2, 2.5, 3, 4]}
    example["rope_parameters"] = example["rope_parameters"] | factors
    reference_of(FAMILIES["hf", "phi3"], example, 0).save_pretrained(tmp_path / "phi")
    return tmp_path / "phi"


def converted(source: Path, out: Path) -> Path:
    with pytest.raises(SystemExit) as stop:
        main(["convert", str(source), str(out), "--long-context"])
    assert not stop.value.code
    return out


def test_what_is_written_reads_on_past_the_original_context(phi: Path, tmp_path: Path) -> None:
    short = load_base(phi, dtype="float32")
    request = Generate(tuple(IDS[0].tolist()), Sampling(max_tokens=12, temperature=0, ignore_eos=True))
    with Engine(short) as engine, pytest.raises(ContextLengthExceeded, match=r"--long-context. .* has 64"):
        engine.run([request])
    place = converted(phi, tmp_path / "long")
    long = load_base(place, dtype="float32")
    assert (short.spec.context_length, long.spec.context_length) == (ORIGINAL, LONGEST)
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(place, attn_implementation="eager").eval()
    source_model: Any = transformers.AutoModelForCausalLM.from_pretrained(phi, attn_implementation="eager").eval()
    with torch.no_grad():
        ours = long.model.head(long.model(Inputs(IDS)).hidden)
        assert_near(ours, theirs(IDS).logits)
        assert_near(ours, source_model(IDS).logits)  # past the original context they are one model
        assert not torch.allclose(source_model(IDS[:, :8]).logits, theirs(IDS[:, :8]).logits)
    expected = theirs.generate(IDS, max_new_tokens=12, do_sample=False, eos_token_id=None)[0, IDS.shape[1] :]
    for kernel in ("torch", "native"):
        with Engine(long, kernel=kernel) as engine:
            [generation] = engine.run([request])
            assert isinstance(generation, Generation)
            assert list(generation.token_ids) == expected.tolist()


def test_it_is_written_as_gguf_and_back(phi: Path, tmp_path: Path) -> None:
    extended = load_base(converted(phi, tmp_path / "long.gguf"), dtype="float32")
    assert extended.spec == with_long_context(load_base(phi, dtype="float32")).spec
    reloaded = load_base(export_gguf(extended, tmp_path / "again.gguf", "f32"), dtype="float32")
    assert reloaded.spec == extended.spec


def test_other_families_do_not_turn_in_two_ways(tmp_path: Path) -> None:
    """In pieces, a text would be another one than as a whole. With the same factors throughout it is one."""
    family = FAMILIES["hf", "llama"]
    spec = family.to_spec(family.examples[0])
    assert isinstance(spec, TransformerSpec)
    pairs = spec.rotary_dim // 2
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * pairs, "long_factor": [4.0] * pairs}
    rope |= {"original_max_position_embeddings": ORIGINAL, "factor": LONGEST / ORIGINAL}
    sizes = {name: value for name, value in family.examples[0].items() if not name.startswith("rope")}
    example = sizes | {"max_position_embeddings": LONGEST, "rope_parameters": rope}
    reference_of(family, example, 0).save_pretrained(tmp_path / "llama")
    with pytest.raises(UnsupportedModelError, match=r"config\.json: longrope turns .* more than 16 tokens otherwise"):
        load_base(tmp_path / "llama")
    path = tmp_path / "llama" / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"]["short_factor"] = config["rope_parameters"]["long_factor"]
    path.write_text(json.dumps(config))
    ids = tuple(IDS[0].tolist())
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama", attn_implementation="eager")
    expected = theirs.eval().generate(IDS, max_new_tokens=12, do_sample=False, eos_token_id=None)[0, IDS.shape[1] :]
    for step in (8, 64):
        with Engine(load_base(tmp_path / "llama", dtype="float32"), kernel="torch", max_step_tokens=step) as engine:
            [generation] = engine.run([Generate(ids, Sampling(max_tokens=12, temperature=0, ignore_eos=True))])
            assert isinstance(generation, Generation)
            assert list(generation.token_ids) == expected.tolist()


def test_other_bases_have_none(tmp_path: Path, phi: Path) -> None:
    with pytest.raises(UsageError, match="leave --long-context out"):
        with_long_context(load_base(write_tiny_base(tmp_path / "tiny")))
    with pytest.raises(UsageError, match="beyond its 64 tokens"):
        with_long_context(with_long_context(load_base(phi)))
    assert json.loads((phi / "config.json").read_text())["original_max_position_embeddings"] == ORIGINAL
