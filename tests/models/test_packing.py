"""Packed documents equal separate ones, with and without a shared prefix; padding changes nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import converted, reference_bert, reference_llama

from bedplate.core.errors import ContextLengthExceeded, UsageError
from bedplate.models.inputs import Inputs, segment_positions

DECODER, _ = converted(reference_llama(0, attention_bias=True), torch.float64)
ENCODER, _ = converted(reference_bert(0), torch.float64)


def _row(prefix: int, lengths: list[int], padding: int) -> torch.Tensor:
    parts = [torch.zeros(prefix), *(torch.full((n,), i + 1.0) for i, n in enumerate(lengths)), -torch.ones(padding)]
    return torch.cat(parts).long()


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 5), st.lists(st.integers(1, 7), min_size=1, max_size=4)), min_size=1, max_size=3
    )
)
def test_packed_documents_equal_separate_ones(rows: list[tuple[int, list[int]]]) -> None:
    width = max(p + sum(n) for p, n in rows)
    segments = torch.stack([_row(p, n, width - p - sum(n)) for p, n in rows])
    tokens = torch.randint(0, 97, segments.shape, generator=torch.Generator().manual_seed(1))
    packed = DECODER(Inputs(tokens, segments=segments)).hidden
    for b, (prefix, lengths) in enumerate(rows):
        head = tokens[b, :prefix]
        for i in range(len(lengths)):
            document = tokens[b][segments[b] == i + 1]
            alone = DECODER(Inputs(torch.cat((head, document))[None])).hidden[0, prefix:]
            torch.testing.assert_close(packed[b][segments[b] == i + 1], alone, atol=1e-10, rtol=1e-10)
        if prefix:
            torch.testing.assert_close(
                packed[b, :prefix], DECODER(Inputs(head[None])).hidden[0], atol=1e-10, rtol=1e-10
            )


def test_packed_encoder_documents_equal_separate_ones() -> None:
    segments = _row(0, [4, 9, 1], 3)[None]
    tokens = torch.randint(0, 97, segments.shape)
    packed = ENCODER(Inputs(tokens, segments=segments)).hidden
    for i in (1, 2, 3):
        alone = ENCODER(Inputs(tokens[segments == i][None])).hidden[0]
        torch.testing.assert_close(packed[segments == i], alone, atol=1e-10, rtol=1e-10)


def test_another_document_changes_neither_output_nor_gradient() -> None:
    segments = _row(2, [5, 6], 0)[None]
    tokens = torch.randint(0, 97, segments.shape, generator=torch.Generator().manual_seed(3))
    changed = torch.where(segments == 1, (tokens + 11) % 97, tokens)
    results: list[tuple[torch.Tensor, torch.Tensor]] = []
    for row in (tokens, changed):
        DECODER.zero_grad()
        hidden = DECODER(Inputs(row, segments=segments)).hidden[segments == 2]
        hidden.square().sum().backward()
        gradient = DECODER.layers[0].attention.k.weight.grad
        assert gradient is not None
        results.append((hidden.detach(), gradient.clone()))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-12, rtol=1e-12)


def test_positions_restart_after_the_shared_prefix() -> None:
    segments = torch.tensor([[0, 0, 1, 1, 1, 2, -1], [1, 1, 2, 3, 3, -1, -1]])
    assert segment_positions(segments).tolist() == [[0, 1, 2, 3, 4, 2, 0], [0, 1, 0, 0, 1, 0, 0]]


def test_padding_outputs_are_zero_gradients_finite() -> None:
    segments = _row(0, [3], 4)[None]
    tokens = torch.randint(0, 97, segments.shape)
    DECODER.zero_grad()
    DECODER(Inputs(tokens, segments=segments)).hidden[segments > 0].sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in DECODER.parameters())


def test_unknown_capture_and_depth_are_named() -> None:
    tokens = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(UsageError, match=r"layers\.9.*layers\.0 to layers\.3"):
        DECODER(Inputs(tokens), capture=("layers.9",))
    with pytest.raises(UsageError, match="depth 4"):
        DECODER(Inputs(tokens), depth=4)


def test_encoder_refuses_more_tokens_than_positions() -> None:
    with pytest.raises(ContextLengthExceeded, match="65 tokens"):
        ENCODER(Inputs(torch.zeros(1, 65, dtype=torch.long)))
