"""What a layer wants of its attention, against torch and transformers; every layout does it alike, or refuses."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.near import assert_near
from tests.references import reference_llama
from tests.tiny import tiny_spec
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma2
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss
from transformers.models.t5.modeling_t5 import T5Attention

from bedplate.inference.forward.kv_cache import SlotCache
from bedplate.inference.forward.paged import PagedCache
from bedplate.inference.forward.spans import Span
from bedplate.models.decoder import Decoder
from bedplate.models.families import FAMILIES
from bedplate.models.inputs import Inputs
from bedplate.models.layers.attention import RowAttention
from bedplate.models.layers.attention_options import PLAIN, AttentionOptions, plain_attention
from bedplate.models.packed import block_attention
from bedplate.models.packed.block_attention import BLOCK, BlockAttention, Cutting, batch_blocks
from bedplate.models.packed.placement import PlacedDocument, Placement

H, G, D, V = 6, 2, 8, 5
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-12}
HALF = {torch.float32: 3e-5, torch.float64: 3e-6}
"""Where transformers computes softmax in float32, whatever it is given."""
CPU = torch.device("cpu")


def alibi(distance: Tensor) -> Tensor:
    """A bias by distance, another one for each head (https://arxiv.org/abs/2108.12409)."""
    return -distance.abs()[:, None] * torch.arange(1, H + 1)[:, None, None] / 7


HOWS: dict[str, AttentionOptions] = {
    "plain": PLAIN,
    "scale": AttentionOptions(scale=0.3),
    "cap": AttentionOptions(softcap=1.5),
    "window": AttentionOptions(window=3),
    "bias": AttentionOptions(bias=alibi),
    "sinks": AttentionOptions(sinks=torch.linspace(-1, 2, H)),
    "all": AttentionOptions(0.5, 2.0, 4, alibi, torch.linspace(1, 0, H)),
}


def random_qkv(seed: int, T: int, B: int = 1, value: int = V, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, T, H, D), (B, T, G, D), (B, T, G, value)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def distances(T: int) -> Tensor:
    return (torch.arange(T) - torch.arange(T)[:, None])[None]


def expected(how: AttentionOptions, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """The plain way, of whole rows."""
    distance = distances(q.shape[1])
    visible = distance <= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    return plain_attention(q, k, v, how.apply_window(visible, distance, causal), how, distance)


# --- the plain way against others


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("bias", [False, True])
def test_scales_windows_and_biases_are_torchs(
    seed: int, dtype: torch.dtype, window: int | None, scale: float | None, bias: bool
) -> None:
    q, k, v = random_qkv(seed, 9, B=2, dtype=dtype)
    for causal in (True, False):
        distance = distances(9)[0]
        visible = distance <= 0 if causal else torch.ones(9, 9, dtype=torch.bool)
        if window is not None:
            visible &= (distance > -window) if causal else (distance.abs() <= window // 2)
        mask = torch.zeros(H, 9, 9, dtype=dtype).masked_fill(~visible, -torch.inf)
        if bias:
            mask = mask + alibi(distance[None])[0].to(dtype)
        heads = (x.transpose(1, 2).repeat_interleave(H // x.shape[2], dim=1) for x in (q, k, v))
        theirs = F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scale).transpose(1, 2)
        how = AttentionOptions(scale=scale, window=window, bias=alibi if bias else None)
        assert_near(expected(how, q, k, v, causal), theirs, TOLERANCE[dtype])


def causal_mask(T: int, dtype: torch.dtype, window: int | None = None) -> Tensor:
    distance = distances(T)[0]
    visible = (distance <= 0) & (distance > -(window or T))
    return torch.zeros(T, T, dtype=dtype).masked_fill(~visible, -torch.inf)[None, None]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("window", [None, 4])
def test_a_soft_cap_is_gemma_2s(seed: int, dtype: torch.dtype, window: int | None) -> None:
    q, k, v = random_qkv(seed, 11, B=2, dtype=dtype)
    module: Any = SimpleNamespace(num_key_value_groups=H // G, training=False)
    heads = (x.transpose(1, 2) for x in (q, k, v))
    theirs, _ = gemma2(module, *heads, causal_mask(11, dtype, window), scaling=0.7, softcap=1.2)
    assert_near(
        expected(AttentionOptions(scale=0.7, softcap=1.2, window=window), q, k, v, causal=True), theirs, HALF[dtype]
    )


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("window", [None, 4])
def test_sinks_are_gpt_oss(seed: int, dtype: torch.dtype, window: int | None) -> None:
    q, k, v = random_qkv(seed, 11, B=2, dtype=dtype)
    sinks = torch.randn(H, generator=torch.Generator().manual_seed(seed)).to(dtype)
    module: Any = SimpleNamespace(num_key_value_groups=H // G, training=False, sinks=sinks)
    heads = (x.transpose(1, 2) for x in (q, k, v))
    theirs, _ = gpt_oss(module, *heads, causal_mask(11, dtype, window), scaling=D**-0.5)
    assert_near(expected(AttentionOptions(window=window, sinks=sinks), q, k, v, causal=True), theirs, HALF[dtype])


def test_a_bias_by_distance_is_t5s(seed: int) -> None:
    torch.manual_seed(seed)
    config = transformers.T5Config(
        d_model=H * D, d_kv=D, num_heads=H, relative_attention_num_buckets=8, relative_attention_max_distance=20
    )
    theirs = T5Attention(config, has_relative_attention_bias=True).eval()
    x = torch.randn(2, 30, H * D)

    def bias(distance: Tensor) -> Tensor:
        buckets = T5Attention._relative_position_bucket(distance, True, 8, 20)
        return theirs.relative_attention_bias(buckets).permute(0, 3, 1, 2)

    q, k, v = (linear(x).view(2, 30, H, D) for linear in (theirs.q, theirs.k, theirs.v))
    ours = RowAttention(causal=False)(0, q, k, v, AttentionOptions(scale=1.0, bias=bias))
    assert_near(theirs.o(ours.flatten(2)), theirs(x)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_decoder_with_windows_is_mistral(seed: int, dtype: torch.dtype) -> None:
    """Also in chunks, from slots and from blocks."""
    torch.manual_seed(seed)
    config = transformers.MistralConfig(
        **{name: value for name, value in reference_llama(0).config.to_dict().items() if name in SHARED},
        sliding_window=7,
        attn_implementation="eager",
    )
    reference = transformers.MistralForCausalLM(config).to(dtype).eval()
    family = FAMILIES["hf", "llama"]
    spec = family.to_spec(reference_llama(0).config.to_dict()).with_(windows=(7,))
    ours = Decoder(spec, dtype=dtype)
    state = {family.weights.from_external(name): value for name, value in reference.state_dict().items()}
    del state["lm_head.weight"]
    ours.load_state_dict(state)
    tokens = torch.randint(0, 97, (1, 40), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        theirs = reference(tokens).logits[0]
        assert_near(ours.head(ours(Inputs(tokens)).hidden[0]), theirs, HALF[dtype])
        for cache in (SlotCache(spec, dtype, CPU), PagedCache(spec, dtype, CPU, 1 << 20, block=4)):
            outputs: list[Tensor] = []
            for start, length in ((0, 13), (13, 1), (14, 22), (36, 4)):
                cache.reserve({0: start + length})
                at = torch.arange(start, start + length)[None]
                attend = cache.attend([Span(0, start, length)])
                outputs.append(ours.head(ours(Inputs(tokens[:, start : start + length], at), cache=attend).hidden[0]))
            assert_near(torch.cat(outputs), theirs, HALF[dtype])


SHARED = {
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("intermediate_size", "max_position_embeddings", "tie_word_embeddings", "rope_parameters", "rms_norm_eps"),
}


# --- every layout does the same


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_whole_rows(how: str, causal: bool, dtype: torch.dtype) -> None:
    q, k, v = random_qkv(1, 12, B=3, dtype=dtype)
    output = RowAttention(causal)(0, q, k, v, HOWS[how])
    assert output.shape == (3, 12, H, V)
    assert_near(output, expected(HOWS[how], q, k, v, causal), TOLERANCE[dtype])


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("causal", [True, False])
@settings(max_examples=8, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 5), st.lists(st.integers(1, 9), min_size=1, max_size=3)), min_size=1, max_size=3
    )
)
def test_packed_documents(how: str, causal: bool, rows: list[tuple[int, list[int]]]) -> None:
    """Each as by itself; where all see each other there is no shared prefix, which would see what follows it."""
    rows = rows if causal else [(0, lengths) for _, lengths in rows]
    T = max(prefix + sum(lengths) for prefix, lengths in rows)
    segments = torch.full((len(rows), T), -1)
    for row, (prefix, lengths) in zip(segments, rows, strict=True):
        numbers = [0] * prefix + [i + 1 for i, n in enumerate(lengths) for _ in range(n)]
        row[: len(numbers)] = torch.tensor(numbers)
    q, k, v = (x.requires_grad_() for x in random_qkv(len(rows) * 100 + T, T, B=len(rows)))
    output = BlockAttention(Placement.of(segments), causal)(0, q, k, v, HOWS[how])
    for b, (_, lengths) in enumerate(rows):
        for i in range(len(lengths)):
            picked = (segments[b] == 0) | (segments[b] == i + 1)
            alone = expected(HOWS[how], *(x[b : b + 1, picked] for x in (q, k, v)), causal)
            assert_near(output[b, segments[b] == i + 1], alone[0, (segments[b] == i + 1)[picked]])
    output.square().sum().backward()
    assert all(bool(x.grad.isfinite().all()) for x in (q, k, v) if x.grad is not None)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("layout", ["slots", "blocks"])
@settings(max_examples=8, deadline=None)
@given(st.data())
def test_cached_sequences(how: str, layout: str, data: st.DataObject) -> None:
    """Sequences in pieces, beside each other, from slots or blocks: each as the whole sequence."""
    spec = tiny_spec(layers=1)
    cache = SlotCache(spec, torch.float32, CPU) if layout == "slots" else PagedCache(spec, torch.float32, CPU, 1 << 20)
    lengths = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=3))
    wholes = [random_qkv(7 * n + row, n, value=D) for row, n in enumerate(lengths)]
    positions = [0] * len(lengths)
    while any(at < n for at, n in zip(positions, lengths, strict=True)):
        spans = [
            Span(row, at, min(data.draw(st.sampled_from([1, 2, 5, 20])), n - at))
            for row, (at, n) in enumerate(zip(positions, lengths, strict=True))
            if at < n
        ]
        cache.reserve({row: max(at, 1) for row, at in enumerate(positions)} | {span.row: span.end for span in spans})
        batch = (torch.cat([wholes[s.row][part][:, s.start : s.end] for s in spans], dim=1) for part in range(3))
        outputs = cache.attend(spans)(0, *batch, HOWS[how])[0].split([span.length for span in spans])
        for span, ours in zip(spans, outputs, strict=True):
            alone = expected(HOWS[how], *(x[:, : span.end] for x in wholes[span.row]), causal=True)
            assert_near(ours, alone[0, span.start :])
            positions[span.row] = span.end


LONG = ((0, (5, 9, 120, 3)), (7, (5, 230, 9, 9)), (150, (5, 100, 3)))
"""Rows of a prefix and documents: pieces of long ones, short ones beside each other, and a long prefix."""


def segments_of(rows: tuple[tuple[int, tuple[int, ...]], ...], left_padding: int = 2) -> Tensor:
    """Their segments, [B, T], with padding before and behind them."""
    T = max(prefix + sum(lengths) for prefix, lengths in rows) + left_padding + 1
    segments = torch.full((len(rows), T), -1)
    for row, (prefix, lengths) in zip(segments, rows, strict=True):
        numbers = [0] * prefix + [i for i, n in enumerate(lengths, 1) for _ in range(n)]
        row[left_padding : left_padding + len(numbers)] = torch.tensor(numbers)
    return segments


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("how", ["plain", "cap", "window", "bias", "sinks", "all"])
def test_gradients_of_blocks_are_those_of_the_plain_way(how: str, dtype: torch.dtype, causal: bool) -> None:
    """To queries, keys, values, sinks and biases, of documents that are cut into blocks and of ones that share one; the
    same bit by bit each time."""
    segments = segments_of(LONG if causal else ((0, LONG[0][1]), (0, LONG[1][1])))
    placement, length = Placement.of(segments), segments.shape[1]
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(H, 2 * length, generator=generator, dtype=dtype, requires_grad=True)
    sinks = torch.randn(H, generator=generator, dtype=dtype, requires_grad=True)
    q, k, v = (x.requires_grad_() for x in random_qkv(2, length, B=len(segments), dtype=dtype))
    options = replace(
        HOWS[how],
        bias=None if HOWS[how].bias is None else lambda distance: table[:, distance + length].transpose(0, 1),
        sinks=None if HOWS[how].sinks is None else sinks,
        window=None if HOWS[how].window is None else 40,
    )
    inputs = [
        x for x, used in ((q, 1), (k, 1), (v, 1), (table, options.bias), (sinks, options.sinks)) if used is not None
    ]
    ours = BlockAttention(placement, causal)(0, q, k, v, options)
    theirs = torch.zeros_like(ours)
    for document in placement.documents:
        T, (row, at) = segments.shape[1], divmod(document.start, segments.shape[1])
        picked = list(range(document.prefix, document.prefix + document.shared))
        picked = [i % T for i in picked] + list(range(at, at + document.token_count))
        alone = expected(options, *(x[row : row + 1, picked] for x in (q, k, v)), causal)[0, document.shared :]
        theirs = theirs.index_put((torch.tensor(row), torch.tensor(picked[document.shared :])), alone)
    assert_near(ours, theirs, TOLERANCE[dtype])
    weight = torch.randn(ours.shape, generator=generator, dtype=dtype)
    grads, repeated, plain = (
        torch.autograd.grad((x * weight).sum(), inputs, retain_graph=True) for x in (ours, ours, theirs)
    )
    for grad, repeat, right in zip(grads, repeated, plain, strict=True):
        assert torch.equal(grad, repeat)
        assert_near(grad, right, 10 * TOLERANCE[dtype])


class Products(TorchDispatchMode):
    """Counts the elements that batched products give."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.bmm.default:
            self.elements += out.numel()
        return out


def test_work_follows_tokens_and_not_the_longest_document() -> None:
    """What is computed of one long document beside many short ones, forwards and backwards, is less than of as many
    tokens in one document; scores are hardly more than documents have pairs."""
    computed: dict[str, float] = {}
    for name, lengths in {"uneven": [1500] + [8] * 68, "one": [2044], "short": [8] * 256}.items():
        T = sum(lengths)
        q, k, v = (x.requires_grad_() for x in random_qkv(0, T))
        with Products() as products:
            out = BlockAttention(Placement.of_lengths([0, *lengths]))(0, q, k, v)
        scores = products.elements / H - T * V
        assert scores <= sum(n * (n + 1) / 2 for n in lengths) + BLOCK * T, name
        with products:
            out.sum().backward()
        computed[name] = products.elements / H / T
    assert computed["short"] < computed["uneven"] < computed["one"]


def test_what_is_wanted_is_said() -> None:
    assert [name for name, how in HOWS.items() if how.is_plain] == ["plain", "scale"]
    assert [name for name, how in HOWS.items() if how.fits_sdpa] == ["plain", "scale", "window"]


@pytest.mark.parametrize("name", ["plain", "scale", "cap", "window", "sinks"])
@pytest.mark.parametrize("limit", [1, 60 * H * BLOCK, 1 << 20])
def test_pieces_of_several_long_documents_are_computed_as_one(
    name: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many at a time: the plain way, of whole rows, and its gradients."""
    monkeypatch.setattr(block_attention, "MAX_SCORES", limit)
    B, T, how = 5, 2 * BLOCK + 9, HOWS[name]
    q, k, v = (x.requires_grad_() for x in random_qkv(3, T, B, dtype=torch.float64))
    layout = BlockAttention(Placement((B, T), tuple(PlacedDocument(n * T, (n + 1) * T, row=n) for n in range(B))))
    theirs = expected(how, q, k, v, True)
    pull = torch.randn(theirs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    expected_grads = torch.autograd.grad(theirs, (q, k, v), pull)
    ours = layout(0, q, k, v, how)
    assert_near(ours, theirs, 1e-12)
    for grad, expected_grad in zip(torch.autograd.grad(ours, (q, k, v), pull), expected_grads, strict=True):
        assert_near(grad, expected_grad, 1e-12)


@given(st.integers(1, 6), st.integers(BLOCK + 1, 400), st.integers(1, 1 << 18))
@settings(deadline=None, max_examples=15)
def test_every_block_is_in_one_group(rows: int, length: int, limit: int) -> None:
    documents = tuple(PlacedDocument(n * length, (n + 1) * length, row=n) for n in range(rows))
    blocks = Cutting(Placement((rows, length), documents), True, None, CPU).blocks
    groups = batch_blocks(blocks, limit)
    assert sorted(block.start for group in groups for block in group) == sorted(block.start for block in blocks)
    for group in groups:
        assert len(group) == 1 or len(group) * (group[0].stop - group[0].start) * group[0].key_count <= limit
        assert len({(member.stop - member.start, member.key_count, id(member.mask)) for member in group}) == 1
    assert len(batch_blocks(blocks, 1 << 20)) == len(blocks) // rows, "one for each place in a row"
