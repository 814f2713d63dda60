"""Operations against torch's own counter on reference models and ours, against published numbers, and by hand.

The counter sees matrix products, convolutions and attention's two products over the full square of queries and keys,
and nothing else. The products by which transformers makes its rotary angles are its own way to write them: left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.economics import oracles, tiny
from tests.rows import slow_unless
from tests.tiny import tiny_spec
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bedplate.core.errors import UsageError
from bedplate.economics.model import footprint as economics
from bedplate.economics.model.footprint import (
    causal_pairs,
    forward_flops,
    training_flops_per_token,
    two_sided_pairs,
)
from bedplate.economics.model.parameters import parameters
from bedplate.inference.measure.parity import reference_of
from bedplate.models.build import build
from bedplate.models.families import FAMILIES
from bedplate.models.inputs import Inputs
from bedplate.models.specs import (
    AudioSpec,
    DiffusionSpec,
    EncoderDecoderSpec,
    MultimodalSpec,
    Spec,
    TransformerSpec,
    VisionSpec,
)
from bedplate.models.specs.parts import LatentAttention
from bedplate.models.specs.presets import PRESETS

TOKENS = 9  # within half of the tiny windows: the counter cannot see a window


def counted(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    modules = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    angles = sum(flops for name, flops in modules.items() if name.endswith(("rotary_emb", "rotary_pos_emb")))
    return counter.get_total_flops() - angles


def square_pairs(tokens: int, window: int | None) -> int:
    """Pairs where every query is given all keys, or a full window of them, and a mask does the rest."""
    return tokens * min(tokens, window or tokens)


@pytest.fixture
def square(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our formulas over the full square, which the counter sees."""
    monkeypatch.setattr(economics, "causal_pairs", square_pairs)


def forward(spec: Spec, tokens: int) -> float:
    """Our count of what a reference model does, with the head on every token."""
    if isinstance(spec, EncoderDecoderSpec):
        return economics.encoder_decoder_flops(spec, tokens, tokens)
    if isinstance(spec, VisionSpec):
        return economics.image_flops(spec)
    assert isinstance(spec, TransformerSpec)
    if spec.kind == "encoder":
        return forward_flops(spec, tokens, 0)
    return forward_flops(spec, tokens, tokens)


def inputs(spec: Spec, tokens: int, device: str) -> dict[str, Any]:
    ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
    if isinstance(spec, VisionSpec):
        return {"pixel_values": torch.zeros(1, 3, spec.image_size, spec.image_size, device=device)}
    if isinstance(spec, EncoderDecoderSpec):
        if isinstance(spec.encoder, AudioSpec):
            frames = torch.zeros(1, spec.encoder.mel_bins, spec.encoder.frames, device=device)
            return {"input_features": frames, "decoder_input_ids": ids}
        return {"input_ids": ids, "decoder_input_ids": ids}
    return {"input_ids": ids}


# --- against torch's counter ---

ALONE = tuple(name for name in tiny.FAMILIES if name not in {"llava", "qwen2-vl"})
UNLIKE = {
    *("llama", "mistral", "qwen2-moe", "gemma-3", "deepseek-v3", "olmo-2", "gpt-oss"),
    *("gpt-2", "modernbert", "t5", "whisper", "clip"),
}
"""Of each way to attend, to share out among experts, to read and to write: the others have parts of these."""


@pytest.mark.usefixtures("square")
@pytest.mark.parametrize("family", slow_unless(UNLIKE.__contains__, ALONE))
@pytest.mark.parametrize("seed", [4, pytest.param(5, marks=pytest.mark.slow)])
def test_forward_and_training_equal_the_counter_on_random_reference_models(family: str, seed: int) -> None:
    build, spec = tiny.random_specs(seed)[family]
    model = build(spec)
    batch = inputs(spec, TOKENS, "cpu")
    expected = forward(spec, TOKENS)
    with torch.no_grad():
        assert counted(lambda: model(**batch)) == expected
    # Backwards, each product is done twice more; only the gradient of pixels and spectrograms is not asked for.
    assert counted(lambda: _backward(model(**batch))) == 3 * expected - _stem_flops(spec)


@pytest.mark.usefixtures("square")
@pytest.mark.parametrize("example", [0, 1])
def test_layers_of_several_shapes_equal_the_counter(example: int) -> None:
    family = FAMILIES["hf", "gemma4_text"]
    config = {**family.examples[example], "sliding_window": 32}
    model, spec = reference_of(family, config, 0), family.to_spec(config)
    with torch.no_grad():
        assert counted(lambda: model(torch.zeros(1, TOKENS, dtype=torch.long))) == forward(spec, TOKENS)


def _backward(out: Any) -> None:
    tensors = [value for value in out.values() if isinstance(value, torch.Tensor) and value.requires_grad]
    torch.stack([value.float().sum() for value in tensors]).sum().backward()


def _stem_flops(spec: Spec) -> float:
    """Operations of the first product on what needs no gradient."""
    if isinstance(spec, VisionSpec):
        pixels = spec.patch_size**2 * spec.channels
        return 2 * pixels * spec.tower.hidden_size * spec.patches
    if isinstance(spec, EncoderDecoderSpec) and isinstance(spec.encoder, AudioSpec):
        stem = spec.encoder
        return 2 * stem.kernel * stem.mel_bins * spec.stack.hidden_size * stem.frames
    return 0.0


DENSE = tuple(
    name
    for name, spec in PRESETS.items()
    if isinstance(spec, TransformerSpec)
    and spec.experts is None
    and oracles.oracle(name) is not None
    # transformers computes recurrences in chunks, which are more products than the formula has.
    and spec.state.mixer is None
)
QUICK_PRESETS = ("gpt2", "modernbert-base")


@pytest.mark.usefixtures("square")
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK_PRESETS else pytest.mark.slow) for n in DENSE])
def test_presets_equal_the_counter_at_full_size(name: str) -> None:
    build, spec = oracles.oracle(name), PRESETS[name]
    assert build is not None
    model = oracles.model_of(build, spec)
    with torch.no_grad():
        assert counted(lambda: model(**inputs(spec, 64, "meta"))) == forward(spec, 64)


@pytest.mark.usefixtures("square")
@pytest.mark.parametrize(
    "name",
    [
        "t5-base",
        pytest.param("flan-t5-xl", marks=pytest.mark.slow),
        pytest.param("whisper-large-v3", marks=pytest.mark.slow),
        "vit-b-16",
        pytest.param("clip-vit-l-14", marks=pytest.mark.slow),
        pytest.param("siglip-so400m", marks=pytest.mark.slow),
    ],
)
def test_other_presets_equal_the_counter_at_full_size(name: str) -> None:
    build, spec = oracles.oracle(name), PRESETS[name]
    assert build is not None
    model = oracles.model_of(build, spec)
    with torch.no_grad():
        assert counted(lambda: model(**inputs(spec, 20, "meta"))) == forward(spec, 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava-1.5-7b", "gemma-3-4b"])
def test_images_of_multimodal_presets_equal_the_counter(name: str) -> None:
    build, spec = oracles.oracle(name), PRESETS[name]
    assert build is not None
    assert isinstance(spec, MultimodalSpec)
    model: Any = oracles.model_of(build, spec)
    pixels = torch.zeros(1, 3, spec.vision.image_size, spec.vision.image_size, device="meta")
    with torch.no_grad():
        assert counted(lambda: model.get_image_features(pixel_values=pixels)) == economics.image_flops(spec)


def test_images_of_a_merging_model_equal_the_counter() -> None:
    build, spec = tiny.random_specs(6)["qwen2-vl"]
    assert isinstance(spec, MultimodalSpec)
    model: Any = build(spec)
    side = spec.vision.image_size // spec.vision.patch_size
    pixels = torch.zeros(side * side, 3 * spec.vision.frames * spec.vision.patch_size**2)
    grid = torch.tensor([[1, side, side]])
    with torch.no_grad():
        run = counted(lambda: model.get_image_features(pixel_values=pixels, image_grid_thw=grid))
    assert run == economics.image_flops(spec)


def test_sd3_equals_the_counter_on_diffusers() -> None:
    pytest.importorskip("diffusers")
    spec = PRESETS["sd3-medium"]
    assert isinstance(spec, DiffusionSpec)
    model = oracles.model_of(oracles.sd3, spec)
    latents, text = torch.zeros(1, 16, 128, 128, device="meta"), torch.zeros(1, 154, 4096, device="meta")
    pooled, step = torch.zeros(1, 2048, device="meta"), torch.zeros(1, device="meta")
    with torch.no_grad():
        assert counted(lambda: model(latents, text, pooled, step)) == economics.denoise_flops(spec)


OURS = {
    "decoder": tiny_spec(),
    "plain decoder": tiny_spec(tied_head=False, attention_bias=True, gated=False),
    "encoder": tiny_spec(kind="encoder", rope=None, norm="layer", norm_placement="post", token_types=2, pooler=True),
}


@pytest.mark.usefixtures("square")
@pytest.mark.parametrize("name", OURS)
def test_our_models_equal_the_counter(name: str) -> None:
    spec = OURS[name]
    model = build(spec)
    tokens = torch.zeros(2, 32, dtype=torch.long)

    def run() -> torch.Tensor:
        hidden = model(Inputs(tokens)).hidden
        return model.pooler(hidden[:, 0]) if spec.pooler else model.head(hidden.reshape(-1, spec.hidden_size))

    expected = 2 * forward(spec, 32)
    with sdpa_kernel(SDPBackend.MATH):  # attention written out in products that the counter knows
        assert counted(lambda: run().sum().backward()) == 3 * expected
        with torch.no_grad():
            assert counted(run) == expected


# --- against published numbers ---


def test_published_operations() -> None:
    """GPT-3: 3.14e23 (2005.14165, table D.1, which leaves out attention's own products); DiT and ViT count
    multiply-adds (2212.09748, table 4; torchvision's model list)."""
    gpt3 = PRESETS["gpt3-175b"]
    assert 6 * parameters(gpt3).products * 300e9 == pytest.approx(3.14e23, rel=0.005)
    dit = PRESETS["dit-xl-2"]
    assert isinstance(dit, DiffusionSpec)
    assert economics.denoise_flops(dit) / 2 == pytest.approx(118.64e9, rel=0.001)
    vit = PRESETS["vit-b-16"]
    assert isinstance(vit, VisionSpec)
    assert economics.image_flops(vit) / 2 == pytest.approx(17.56e9, rel=0.001)
    assert training_flops_per_token(PRESETS["deepseek-v3"], 4096) == pytest.approx(250e9, rel=0.01)


@pytest.mark.usefixtures("square")
def test_nanochat_by_its_own_log() -> None:
    """Of d24: 16,704 steps of 2^19 tokens; it counts the full square."""
    nanochat = training_flops_per_token(PRESETS["nanochat-d24"], 2048)
    assert nanochat * 16_704 * 2**19 == pytest.approx(4.330784e19, rel=1e-4)


def test_llama_by_the_usual_formula() -> None:
    spec = PRESETS["llama-3.1-8b"]
    products, attention = parameters(spec).products, 32 * 32 * 128
    assert training_flops_per_token(spec, 8192) == 6 * products + 6 * attention * 8193
    head = 2 * parameters(spec).head
    whole = 2 * products * 1000 + 2 * attention * 1000 * 1001 - head * 999
    assert forward_flops(spec, 1000, 1) == whole
    assert forward_flops(spec, 1000, 1000) == whole + 999 * head


# --- by hand ---


@given(st.integers(1, 60), st.one_of(st.none(), st.integers(1, 50)))
def test_pairs_by_counting_them(tokens: int, window: int | None) -> None:
    width = tokens if window is None else window
    pairs = sum(1 for q in range(tokens) for k in range(tokens) if k <= q and q - k < width)
    assert causal_pairs(tokens, window) == pairs
    window_pairs = sum(1 for q in range(tokens) for k in range(tokens) if window is None or abs(q - k) <= window // 2)
    assert two_sided_pairs(tokens, window) == window_pairs


def test_windows_bound_their_layers_only() -> None:
    plain, mixed = tiny_spec(layers=6), tiny_spec(layers=6, windows=(16, 16, None))
    pair = 4 * plain.attention.heads * plain.attention.head_dim
    assert forward_flops(plain, 100, 1) - forward_flops(mixed, 100, 1) == 4 * pair * 84 * 85 / 2
    assert forward_flops(mixed, 10, 1) == forward_flops(plain, 10, 1)
    local = tiny_spec(kind="encoder", rope=None, token_types=1, windows=(8,), layers=1)
    full = local.with_(windows=())
    pairs = 20 * 20 - (20 * 9 - 4 * 5)
    assert forward_flops(full, 20, 0) - forward_flops(local, 20, 0) == pair * pairs


def test_latent_attention_has_the_pairs_of_its_heads() -> None:
    """Per layer and pair: 2·H·(192 + 128)."""
    spec = PRESETS["deepseek-v3"]
    assert isinstance(spec, TransformerSpec)
    counts = parameters(spec)
    attention = forward_flops(spec, 4096, 1) - 2 * (4096 * (counts.products - counts.head) + counts.head)
    assert attention == 61 * 2 * 128 * (192 + 128) * 4096 * 4097 / 2


def test_a_prediction_module_adds_its_block_and_a_second_head() -> None:
    spec = tiny_spec()
    module_flops = training_flops_per_token(spec.with_(prediction_modules=1), 64) - training_flops_per_token(spec, 64)
    deeper = training_flops_per_token(spec.with_(layers=4), 64) - training_flops_per_token(spec, 64)
    assert module_flops == deeper + 6 * (2 * 48 * 48 + 48 * spec.vocab_size)


SPECS = {
    "dense": tiny_spec(),
    "window": tiny_spec(windows=(16, None)),
    "latent": tiny_spec(
        heads=6, kv_heads=6, head_dim=12, latent=LatentAttention(kv_rank=16, nope_dim=8, rope_dim=4, value_dim=10)
    ),
}


@pytest.mark.parametrize("name", SPECS)
@given(st.integers(1, 300), st.integers(1, 300))
@settings(deadline=None)
def test_more_is_dearer(name: str, tokens: int, extra: int) -> None:
    spec = SPECS[name]
    assert forward_flops(spec, tokens + extra, 1) > forward_flops(spec, tokens, 1)
    assert training_flops_per_token(spec, tokens + extra) >= training_flops_per_token(spec, tokens)


def test_encoder_decoders_by_source_and_target() -> None:
    spec = PRESETS["t5-base"]
    assert isinstance(spec, EncoderDecoderSpec)
    shorter, longer = (economics.encoder_decoder_flops(spec, source, 10) for source in (50, 60))
    assert isinstance(spec.encoder, TransformerSpec)
    encoder = forward_flops(spec.encoder, 60, 0) - forward_flops(spec.encoder, 50, 0)
    # The cross-attention's keys and values of each source token are made once, its pairs with every target token.
    assert longer - shorter - encoder == 2 * 12 * 2 * 768 * 768 * 10 + 12 * 4 * 768 * 10 * 10
    whisper = PRESETS["whisper-small"]
    assert isinstance(whisper, EncoderDecoderSpec)
    windows = {economics.encoder_decoder_flops(whisper, source, 9) for source in (1, 99)}  # always its window
    assert len(windows) == 1
    per_token = training_flops_per_token(spec, 100)
    assert per_token * 200 == 3 * economics.encoder_decoder_flops(spec, 100, 100)


def test_sound_and_images() -> None:
    for name in ("dit-xl-2", "vit-b-16", "llava-1.5-7b", "whisper-large-v3"):
        assert training_flops_per_token(PRESETS[name], 128) > 0


def test_what_cannot_be_asked_is_said() -> None:
    with pytest.raises(UsageError, match="sequence_tokens is 0: it must be at least 1"):
        training_flops_per_token(tiny_spec(), 0)
