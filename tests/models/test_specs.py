"""What a spec can say, what it refuses, and that nothing is built that is not what the spec says."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.tiny import tiny_spec

from bedplate.core.errors import UnsupportedModelError
from bedplate.core.files import sha256_json
from bedplate.economics.model.parameters import parameters
from bedplate.models.build import ARCHITECTURES, build
from bedplate.models.encoder import Encoder
from bedplate.models.inputs import Inputs
from bedplate.models.specs import (
    AudioSpec,
    DiffusionSpec,
    EncoderDecoderSpec,
    MultimodalSpec,
    Projector,
    TextCondition,
    TransformerSpec,
    VisionSpec,
)
from bedplate.models.specs.flat import flat_defaults
from bedplate.models.specs.parts import LatentAttention, SharedKeys
from bedplate.models.specs.position import RelativeBias
from bedplate.models.specs.presets import PRESETS
from bedplate.models.specs.transformer import Classifier, Experts, FullAttention, MaskedHead, Rope, Scales


def encoder_spec(**changes: Any) -> TransformerSpec:
    fields_ = {"kind": "encoder", "rope": None, "norm": "layer", "norm_placement": "post", "token_types": 1, **changes}
    return tiny_spec(**fields_)


def tower_spec(**changes: Any) -> TransformerSpec:
    return tiny_spec(**{"kind": "tower", "vocab_size": 0, "rope": None, **changes})


LATENT = LatentAttention(kv_rank=16, nope_dim=8, rope_dim=4, value_dim=8)


# --- what a spec says ---


def test_windows_repeat_over_the_layers() -> None:
    spec = tiny_spec(layers=7, windows=(64, 64, None))
    assert [spec.window(layer) for layer in range(7)] == [64, 64, None, 64, 64, None, 64]
    assert tiny_spec().window(2) is None


def test_what_layers_have_of_their_own_and_of_others() -> None:
    full = FullAttention(head_dim=16, kv_heads=1, keys_are_values=True)
    spec = tiny_spec(layers=7, windows=(64, 64, None), full=full, shared_keys=SharedKeys(3, 40))
    assert [spec.head_dim_of(layer) for layer in range(7)] == [8, 8, 16, 8, 8, 16, 8]
    assert [spec.kv_heads_of(layer) for layer in range(3)] == [2, 2, 1]
    assert [spec.keys_are_values(layer) for layer in range(3)] == [False, False, True]
    assert [spec.keys_of(layer) for layer in range(7)] == [0, 1, 2, 3, 3, 2, 3]
    assert [spec.feedforward_size_of(layer) for layer in (3, 4)] == [spec.feedforward.size, 40]
    assert tiny_spec().keys_of(2) == 2


def test_which_layers_have_experts() -> None:
    def layers(**changes: int) -> list[int]:
        spec = tiny_spec(layers=8, experts=Experts(4, 2, 16, **changes))
        return [layer for layer in range(8) if spec.has_experts(layer)]

    assert layers() == list(range(8))
    assert layers(first_dense=3) == [3, 4, 5, 6, 7]
    assert layers(every=2) == [1, 3, 5, 7]  # as Qwen's decoder_sparse_step and Llama 4's interleave_moe_layer_step
    assert layers(first_dense=1, every=3) == [3, 6]
    assert not tiny_spec().has_experts(0)


def test_what_follows_from_the_kind() -> None:
    assert (tiny_spec().positions, tiny_spec().norms_embedding, tiny_spec().norms_output) == (0, False, True)
    encoder = encoder_spec()
    assert (encoder.positions, encoder.norms_embedding, encoder.norms_output) == (512, True, False)
    assert encoder_spec(position_rows=0).positions == encoder_spec(rope=Rope()).positions == 0
    assert tiny_spec(position_rows=100).positions == 100
    biased = tiny_spec(attention_bias=True)
    assert biased.has_key_bias
    assert biased.has_output_bias
    assert not biased.with_(output_bias=False).has_output_bias
    assert tiny_spec(rope=Rope(fraction=0.5)).rotary_dim == 4
    latent = tiny_spec(heads=6, kv_heads=6, head_dim=12, latent=LATENT)
    assert (latent.rotary_dim, LATENT.key_dim) == (4, 12)


def test_specs_are_values() -> None:
    for name, spec in PRESETS.items():
        assert hash(spec) == hash(replace(spec)), name
        assert replace(spec) == spec


def test_hashes_of_older_specs_stay() -> None:
    """Of the fields that there were when the first measurement was saved under a hash of them."""
    spec = PRESETS["smollm2-135m"]
    assert isinstance(spec, TransformerSpec)
    digest = "a632922773be4565152930ff93af3c33"
    assert sha256_json(spec.key()).startswith(digest)
    assert sha256_json(spec.with_(windows=(64,)).key()) != sha256_json(spec.key())
    assert sha256_json(spec.with_(rope=Rope(1e5, interleaved=True)).key()) != sha256_json(spec.key())
    assert "fraction" in spec.with_(rope=Rope(fraction=0.5)).key()["rope"]


def test_presets_import_no_torch() -> None:
    code = "import sys; import bedplate.models.specs.presets; print({'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_tokens_of_images_and_sound() -> None:
    vit = PRESETS["vit-b-16"]
    assert isinstance(vit, VisionSpec)
    assert (vit.patches, vit.tokens) == (196, 197)
    qwen = PRESETS["qwen2-vl-7b"]
    assert isinstance(qwen, MultimodalSpec)
    assert qwen.image_tokens == 256
    whisper = PRESETS["whisper-small"]
    assert isinstance(whisper, EncoderDecoderSpec)
    assert isinstance(whisper.encoder, AudioSpec)
    assert (whisper.encoder.frames, whisper.encoder.window_tokens) == (3000, 1500)
    dit = PRESETS["dit-xl-2"]
    assert isinstance(dit, DiffusionSpec)
    assert (dit.tokens, dit.image_size, dit.head_dim) == (256, 256, 72)


# --- what cannot be ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0: it must be at least 1"),
        ({"layers": -1}, "layers is -1"),
        ({"kv_heads": 4}, "6 attention heads cannot share 4 key-value heads"),
        ({"head_dim": 7}, "rotary positions need an even head size, not 7"),
        ({"rope": Rope(fraction=0.625)}, "rotary positions need an even head size, not 5"),
        ({"windows": (0,)}, "a window of 0 tokens"),
        ({"position_rows": -1}, "position_rows is -1"),
        ({"value_tables": 4}, "4 value tables, but only 3 layers"),
        ({"prediction_modules": -1}, "prediction_modules is -1"),
        ({"latent": LATENT}, "head_dim of nope_dim"),
        ({"latent": LATENT, "kv_heads": 6, "head_dim": 12, "qk_norm": "head"}, "no qk_norm"),
        ({"kind": "tower"}, "a tower takes features, not tokens"),
        ({"cross_size": 0}, "cross_size is 0"),
        ({"kind": "encoder", "cross_size": 8}, "cross_size is for decoders"),
        ({"kind": "encoder", "prediction_modules": 1}, "prediction_modules is for decoders"),
        ({"full": FullAttention(kv_heads=4)}, "6 attention heads cannot share 4 key-value heads"),
        ({"full": FullAttention(head_dim=16), "attention_gate": True}, "full is for self-attention"),
        ({"value_norm": True, "cross_size": 8}, "value_norm is for self-attention .* not beside cross_size"),
        ({"windows": (4, 4, None), "shared_keys": SharedKeys(1)}, "layer 2 shares keys .* window of None"),
        ({"shared_keys": SharedKeys(3)}, "none of the 0 layers that have their own"),
        ({"shared_keys": SharedKeys(1), "prediction_modules": 1}, "prediction_modules have no place beside"),
        ({"kind": "encoder", "output_scales": True}, "output_scales is for decoders"),
    ],
)
def test_impossible_transformers_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        tiny_spec(**changes)


def test_impossible_parts_are_refused() -> None:
    def refused(message: str, constructor: Any, *values: Any, **fields_: Any) -> None:
        with pytest.raises(UnsupportedModelError, match=message):
            constructor(*values, **fields_)

    refused("3 experts per token, but there are only 2", Experts, 2, 3, 8)
    refused("every is 0", Experts, 2, 1, 8, every=0)
    refused("shared_gate needs a shared expert", Experts, 2, 1, 8, shared_gate=True)
    refused("experts beside a feed-forward have no shared one", Experts, 2, 1, 8, 8, beside=True)
    refused("head_dim is 0", FullAttention, 0)
    refused("layers is 0", SharedKeys, 0)
    refused("q_rank is 0", LatentAttention, 8, 4, 4, 4, 0)
    refused("kv_rank is 0", LatentAttention, 0, 4, 4, 4)
    refused("rotary fraction is 0", Rope, fraction=0)
    refused("buckets is 1", RelativeBias, 1)
    refused("kind is 'encoder'", AudioSpec, encoder_spec(), 80)
    refused("window_seconds", AudioSpec, tower_spec(), 80, window_seconds=0)
    refused("kind is 'decoder'", VisionSpec, tiny_spec(), 224, 16)
    refused("an image of 8 pixels has no patch of 16", VisionSpec, tower_spec(), 8, 16)
    refused("512 learned positions, but the image makes 196", VisionSpec, tower_spec(position_rows=512), 224, 16)
    vision = VisionSpec(tower_spec(), 224, 16)
    refused("must be 'decoder'", MultimodalSpec, encoder_spec(), vision, Projector())
    refused("merge is 3, which does not divide the 14", MultimodalSpec, tiny_spec(), vision, Projector(merge=3))
    refused("pool is 0", Projector, pool=0)
    refused("cross_size is None", EncoderDecoderSpec, encoder_spec(), tiny_spec())
    refused("cannot be of 'decoder' and 'decoder'", EncoderDecoderSpec, tiny_spec(), tiny_spec(cross_size=48))
    large_vocabulary = encoder_spec(vocab_size=99)
    refused(
        "shared_embedding needs", EncoderDecoderSpec, large_vocabulary, tiny_spec(cross_size=48), shared_embedding=True
    )
    refused("7 heads do not divide", DiffusionSpec, 2, 48, 7, 96, 8, 4, 4)
    refused("patches of 2 do not divide a latent of 9", DiffusionSpec, 2, 48, 6, 96, 9, 4, 4)
    refused("tokens is 0", TextCondition, 0, 8, 8)


# --- what is built ---

# One value for each field that neither Decoder nor Encoder does anything with; what one of two stacks does with some is
# proved in tests/parity.
NOT_BUILT: dict[str, Any] = {
    "relative_bias": RelativeBias(),
    "relative_projection": True,
    "cross_size": 48,
    "value_tables": 1,
    "sinusoids": True,
    "head_bias": True,
}
# What blocks do, and what a decoder does beside: proved family by family in tests/parity.
READ = {
    *("kind", "vocab_size", "hidden_size", "layers", "heads", "kv_heads", "head_dim", "feedforward_size"),
    *("context_length", "norm", "norm_eps", "norm_placement", "rope", "activation", "gated", "attention_bias"),
    *("feedforward_bias", "tied_head", "token_types", "pooler", "pooling", "windows", "local_rope", "key_bias"),
    *("output_bias", "qk_norm", "norm_weight", "norm_bias", "norm_offset", "first_norm", "parallel"),
    *("attention_sinks", "rope_layers", "position_rows", "embedding_norm", "final_norm", "scales", "latent"),
    *("experts", "prediction_modules", "full", "shared_keys", "value_norm", "layer_input_size", "output_scales"),
    *("position_offset", "classifier", "masked_head", "attention_gate", "state", "state_layers"),
}


def test_every_field_is_built_or_refused() -> None:
    """A new field of the spec must be read by a module, or be here."""
    assert set(tiny_spec().flat()) == READ | set(NOT_BUILT)
    assert set(NOT_BUILT) <= set(flat_defaults(TransformerSpec))


@pytest.mark.parametrize("field", NOT_BUILT)
def test_what_no_module_does_is_not_built(field: str) -> None:
    spec = tiny_spec(**{field: NOT_BUILT[field]})
    with pytest.raises(UnsupportedModelError, match=f"a decoder with {field} = "):
        build(spec, device="meta")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (tiny_spec(activation="clamped_silu"), "activation"),
        (tiny_spec(activation="clamped_silu", experts=Experts(4, 2, 16, first_dense=1)), "activation"),
        (tiny_spec(activation="clamped_silu", experts=Experts(4, 2, 16, beside=True)), "activation"),
        (tiny_spec(activation="clamped_silu", experts=Experts(4, 2, 16), layer_input_size=8), "activation"),
        (tiny_spec(token_types=2), "token_types"),
        (tiny_spec(pooler=True), "pooler"),
        (tiny_spec(classifier=Classifier(("a", "b"))), "classifier"),
        (tiny_spec(masked_head=MaskedHead()), "masked_head"),
        (tiny_spec(position_rows=514, position_offset=2), "position_offset"),
        (encoder_spec(scales=Scales(embedding=2.0)), "scales"),
        (tiny_spec(norm_placement="post", parallel=True), "parallel"),
        (tower_spec(), "kind"),
    ],
)
def test_values_that_no_module_does_are_not_built(spec: TransformerSpec, field: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f" with {field} = .* cannot be built yet"):
        build(spec, device="meta")


def test_an_architecture_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tower(Encoder):
        reads = Encoder.reads

    monkeypatch.setitem(ARCHITECTURES, "tower", Tower)
    with pytest.raises(UnsupportedModelError, match="a tower with sinusoids = True"):
        build(tower_spec(sinusoids=True), device="meta")
    assert isinstance(build(tower_spec(vocab_size=0), device="meta"), Tower)


@pytest.mark.parametrize("name", ["whisper-small", "vit-b-16", "llava-1.5-7b", "dit-xl-2"])
def test_other_models_are_not_built(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="cannot be built yet"):
        build(PRESETS[name], device="meta")


def test_saying_what_is_done_anyway_changes_nothing() -> None:
    """Fields at the value that the modules have are no reason to refuse, and the outputs are the same."""
    plain = tiny_spec()
    explicit = plain.with_(position_rows=0, windows=(None, None), key_bias=False, output_bias=False, final_norm=True)
    assert explicit != plain
    tokens = torch.arange(10)[None]
    out: list[torch.Tensor] = []
    for spec in (plain, explicit):
        torch.manual_seed(0)
        out.append(build(spec)(Inputs(tokens)).hidden)
    assert torch.equal(out[0], out[1])
    build(encoder_spec(position_rows=512, embedding_norm=True, final_norm=False), device="meta")


BUILT = (
    "llama",
    "smollm2",
    "bert",
    "minilm",
    "modernbert",
    "mixtral",
    "qwen3",
    "deepseek",
    "gpt-oss",
    "lfm2",
    "granite",
)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith(BUILT)])
def test_presets_of_supported_families_are_built(name: str) -> None:
    """With as many parameters as are counted of it."""
    spec = PRESETS[name]
    assert sum(p.numel() for p in build(spec, device="meta").parameters()) == parameters(spec).total


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("llama-3.1-405b", 811_706_777_600 // 2),  # the bytes of its bfloat16 weights
        ("deepseek-v3", 671_026_419_200 - 58 * 256),  # without the biases that its routers select by, which are buffers
    ],
)
def test_the_largest_presets_are_built_without_storage(name: str, published: int) -> None:
    spec = PRESETS[name]
    start = time.process_time()
    model = build(spec, torch.bfloat16, "meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters(spec).total == published
    assert time.process_time() - start < 10
