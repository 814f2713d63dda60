"""What dense families' files say in other words than those of their examples, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.counting import Counted
from tests.near import assert_near

from bedplate.core.errors import CheckpointError, UnsupportedModelError
from bedplate.inference.measure.parity import reference_of
from bedplate.models.checkpoints.base import load_base
from bedplate.models.decoder import Decoder
from bedplate.models.families import FAMILIES
from bedplate.models.families.decoders import shortest
from bedplate.models.inputs import Inputs
from bedplate.models.layers.positions import Rotations
from bedplate.models.specs.position import LinearScaling
from bedplate.models.specs.transformer import FullAttention, LongRopeScaling, Rope, TransformerSpec


def spec_of(name: str, **changes: Any) -> TransformerSpec:
    """Of the first example with other fields; None takes one out."""
    fields = dict(FAMILIES["hf", name].examples[0]) | changes
    spec = FAMILIES["hf", name].to_spec({key: value for key, value in fields.items() if value is not None})
    assert isinstance(spec, TransformerSpec)
    return spec


def test_older_spellings_of_ropes() -> None:
    old = spec_of("llama", rope_parameters=None, rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0})
    assert old.position.rope == Rope(5e5, LinearScaling(2.0))
    gemma = spec_of(
        "gemma3_text", rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling={"rope_type": "linear", "factor": 8}
    )
    assert (gemma.position.rope, gemma.position.local_rope) == (Rope(1e6, LinearScaling(8.0)), Rope(1e4))
    scaling = {"type": "su", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    phi = spec_of("phi3", rope_scaling=scaling, original_max_position_embeddings=32)
    assert phi.position.rope == Rope(1e4, LongRopeScaling((1.0,) * 4, (2.0,) * 4, 32, 4.0))
    assert phi.context_length == 32  # what a cache can hold
    scaling = scaling | {"short_factor": [2.0] * 4}  # nothing changes on the way
    phi = spec_of("phi3", rope_scaling=scaling, original_max_position_embeddings=32)
    assert phi.context_length == 128
    assert FAMILIES["hf", "phi3"].to_spec(FAMILIES["hf", "phi3"].to_config(phi)) == phi


def as_transformers_reads(name: str, **fields: Any) -> TransformerSpec:
    """The spec of a config.json of these fields, after transformers has filled in what they leave out."""
    spec = FAMILIES["hf", name].to_spec(transformers.AutoConfig.for_model(name, **fields).to_dict())
    assert isinstance(spec, TransformerSpec)
    return spec


def test_ropes_that_a_config_leaves_out() -> None:
    sizes = {key: value for key, value in FAMILIES["hf", "ministral3"].examples[0].items() if key != "rope_parameters"}
    assert FAMILIES["hf", "ministral3"].to_spec(sizes) == as_transformers_reads("ministral3", **sizes)
    phi = dict(FAMILIES["hf", "phi3"].examples[1]) | {"max_position_embeddings": 8192}
    inside = {**phi["rope_parameters"], "original_max_position_embeddings": 32}
    for outside in (64, None):  # what stands outside counts, and so does its default
        fields = {**phi, "rope_parameters": inside, "original_max_position_embeddings": outside}
        config = {key: value for key, value in fields.items() if value is not None}
        spec = FAMILIES["hf", "phi3"].to_spec(config)
        assert spec == as_transformers_reads("phi3", **config)
        assert spec.context_length == (outside or 4096)


def test_a_gguf_files_pattern_of_windows_is_of_as_many_layers_as_there_are() -> None:
    """As llama.cpp has it."""
    gguf = FAMILIES["gguf", "gemma2"]
    spec = FAMILIES["hf", "gemma2"].to_spec(gguf.examples[0])
    assert isinstance(spec, TransformerSpec)
    metadata = gguf.to_config(spec) | {"tensor_names": (), "embedding_rows": spec.vocab_size}
    assert gguf.to_spec(metadata) == spec
    for layers in (spec.layers - 1, spec.layers + 1):
        pattern = {"gemma2.attention.sliding_window_pattern": [True] * layers}
        with pytest.raises(UnsupportedModelError, match=f"sliding_window_pattern is of {layers} layers"):
            gguf.to_spec(metadata | pattern)


def test_yarns_own_factor_written_once_more() -> None:
    """Olmo-3's published config.json has it; a GGUF file can then say the rope."""
    yarn = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 32}
    plain, explicit, rescaled = (
        spec_of("olmo3", rope_parameters={"full_attention": {**yarn, **extra}})
        for extra in ({}, {"attention_factor": 1.2079441541679836}, {"attention_factor": 1.3})
    )
    assert explicit == plain != rescaled
    gguf = FAMILIES["gguf", "olmo2"]
    metadata = gguf.to_config(explicit) | {"tensor_names": ("output.weight",), "embedding_rows": 97, "tables": {}}
    yarn_fields = {"rope.scaling.attn_factor": 1.2079441, "rope.scaling.yarn_attn_factor": 1.2079441}
    yarn_fields |= {"rope.scaling.yarn_ext_factor": 1.0, "rope.scaling.finetuned": True}
    assert gguf.to_spec(metadata | {f"olmo2.{key}": value for key, value in yarn_fields.items()}) == plain
    with pytest.raises(UnsupportedModelError, match=r"yarn_attn_factor = 1.3 is not supported \(only 1.20794"):
        gguf.to_spec(metadata | {"olmo2.rope.scaling.yarn_attn_factor": 1.3})


def test_llama_with_another_activation() -> None:
    """ReluLLaMA (https://arxiv.org/abs/2310.04564)."""
    spec = spec_of("llama", hidden_act="relu")
    assert spec == spec_of("llama").with_(activation="relu")
    assert FAMILIES["hf", "llama"].to_config(spec)["hidden_act"] == "relu"
    with pytest.raises(UnsupportedModelError, match="llama cannot say that activation is 'relu'"):
        FAMILIES["gguf", "llama"].to_config(spec)


def test_windows_by_layer() -> None:
    assert spec_of("gemma3_text", sliding_window_pattern=3).attention.windows == (7, 7, None)
    assert spec_of("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1).attention.windows == (
        None,
        8,
        8,
    )
    assert spec_of("qwen2", sliding_window=8).attention.windows == ()  # its use is another field
    assert shortest([7, None, 7, None, 7], None) == (7, None)
    assert shortest([7, 7, None, None], None) == (7, 7, None, None)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("gemma3_text", "attn_logit_softcapping", 50.0),
        ("gemma3_text", "use_bidirectional_attention", True),
        ("gemma2", "layer_types", ["chunked_attention"] * 3),
        ("mistral", "hidden_act", "prelu"),
        ("qwen3", "new_gate", True),
        ("llama", "rope_parameters", {"rope_type": "dynamic", "factor": 2.0}),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("smollm3", "no_rope_layers", [1, 0]),
        ("gemma4_text", "layer_types", ["full_attention"] * 4 + ["sliding_attention"]),
        ("gemma4_text", "use_bidirectional_attention", "all"),
        ("gemma4_text", "vocab_size_per_layer_input", 64),
        ("gemma4_text", "per_layer_config", {"1": {"head_dim": 16}}),
        ("gemma4_text", "per_layer_config", {"1": {"skip": ["mlp"]}, "4": {"skip": ["mlp"]}}),
        ("gemma4_text", "rope_parameters", {"full_attention": {"partial_rotary_factor": 0.5}}),
    ],
)
def test_what_a_family_cannot_do_is_refused_by_name(name: str, field: str, value: object) -> None:
    messages = {"llama": "rope type 'dynamic'", "gemma4_text": f"{field}|partial_rotary_factor"}
    with pytest.raises(UnsupportedModelError, match=messages.get(name, field)):
        spec_of(name, **{field: value})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5 is not supported"),
        ("qwen3", {"partial_rotary_factor": 0.25}, "partial_rotary_factor = 0.25 is not supported"),
        ("llama", {"rope_parameters": {"rope_theta": 0}}, "theta is 0.0: it must be a finite number above 0"),
        ("llama", {"rope_parameters": {"rope_theta": float("nan")}}, "theta is nan"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor is 0.0"),
        (
            "llama",
            {"rope_parameters": {"rope_theta": 1, "rope_type": "yarn", "original_max_position_embeddings": 8}},
            "theta is 1.0: YaRN",
        ),
        ("llama", {"rms_norm_eps": -1e-5}, "norm_eps is -1e-05: it must be at least 0"),
        ("llama", {"rms_norm_eps": float("inf")}, "norm_eps is inf: it must be a finite number"),
        ("llama", {"num_attention_heads": 2**62, "head_dim": 8}, "heads is 4611686018427387904: it must be a finite"),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
            r"longrope has 1 factors, but \d+ pairs",
        ),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [0.0] * 4}},
            "a longrope factor is 0.0",
        ),
    ],
)
def test_positions_and_numbers_that_no_model_has_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    """transformers turns whole heads in a llama, whatever the config says of a part."""
    with pytest.raises(UnsupportedModelError, match=message):
        spec_of(name, **changes)


def test_which_rope_it_is_need_not_be_read() -> None:
    """Of positions that nobody told the host, the frequencies are chosen where they are; of known ones beforehand."""
    example = {**FAMILIES["hf", "phi3"].examples[1], "original_max_position_embeddings": 16}
    spec = FAMILIES["hf", "phi3"].to_spec(example)
    assert isinstance(spec, TransformerSpec)
    rotations = Rotations(spec)
    rotations.at(torch.tensor([[3]]), torch.float32)  # the frequencies themselves are made once
    for last in (3, 15, 16, 40):
        positions = torch.tensor([[0, last, 1]])
        with Counted() as counted:
            unread = rotations.at(positions, torch.float32)
        assert counted.waited == 0, counted.waits
        for ours, expected in zip(unread, rotations.at(positions, torch.float32, last), strict=True):
            assert ours is not None
            assert expected is not None
            assert torch.equal(ours.cos, expected.cos)
    short, long = (rotations.at(torch.tensor([[1]]), torch.float32, last)[0] for last in (15, 16))
    assert short is not None
    assert long is not None
    assert not torch.equal(short.cos, long.cos)


def test_longrope_past_the_original_context() -> None:
    example = {**FAMILIES["hf", "phi3"].examples[1], "original_max_position_embeddings": 16}
    reference = reference_of(FAMILIES["hf", "phi3"], example, 0)
    tokens = torch.randint(0, 97, (1, 24), generator=torch.Generator().manual_seed(0))
    spec = FAMILIES["hf", "phi3"].to_spec(reference.config.to_dict())
    assert isinstance(spec, TransformerSpec)
    ours = Decoder(spec)
    ours.embedding.weight.data = reference.model.embed_tokens.weight.data
    with torch.no_grad():
        for length in (16, 24):  # up to there, and past it
            at = torch.arange(length)[None]
            theirs = reference.model.rotary_emb(ours.embedding(tokens[:, :length]), at)
            cos, sin, *_ = ours._rotations.at(at, torch.float32)[0] or ()
            assert_near(cos[:, :, 0], theirs[0])
            assert_near(sin[:, :, 0], theirs[1])


def test_gemma4s_own_layer_types_and_shapes() -> None:
    bare = {"head_dim": None, "global_head_dim": None, "layer_types": None, "num_kv_shared_layers": 0}
    spec = spec_of("gemma4_text", **bare, num_hidden_layers=8, num_key_value_heads=None, num_attention_heads=8)
    assert [spec.window(layer) for layer in range(8)] == [7, 7, 7, 7, 7, None, 7, None]
    assert (spec.attention.head_dim, spec.attention.kv_heads, spec.attention.full) == (256, 4, FullAttention(512))
    shared_kv = spec_of("gemma4_text", attention_k_eq_v=True, num_global_key_value_heads=3)
    assert shared_kv.attention.full == FullAttention(16, 3, True)
    plain = spec_of("gemma4_text", per_layer_config={})
    assert plain.attention.full is None


def test_gemma4s_files_hold_keys_of_layers_that_share_them(tmp_path: Path) -> None:
    """As published ones do: they are passed over, of these layers alone."""
    family = FAMILIES["hf", "gemma4_text"]
    reference_of(family, family.examples[0], 0).save_pretrained(tmp_path)
    tensors, name = load_file(tmp_path / "model.safetensors"), "model.layers.{}.self_attn.k_proj.weight"
    before = load_base(tmp_path).identity
    tensors[name.format(3)] = torch.zeros_like(tensors[name.format(2)])
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert load_base(tmp_path).identity == before
    save_file(tensors | {name.format(7): torch.zeros(2, 2)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.7\.self_attn"):
        load_base(tmp_path)


def test_gpt2_without_its_heads_prefix(tmp_path: Path) -> None:
    """As the first published files are."""
    reference = reference_of(FAMILIES["hf", "gpt2"], FAMILIES["hf", "gpt2"].examples[0], 0)
    reference.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare | {"h.0.attn.bias": torch.ones(1, 1, 64, 64)}, tmp_path / "model.safetensors", {"format": "pt"})
    base = load_base(tmp_path)
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        ours = base.model.head(base.model(Inputs(tokens)).hidden[0])
        assert_near(ours, reference(tokens).logits[0])
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path).config.model_type == "gpt2"
