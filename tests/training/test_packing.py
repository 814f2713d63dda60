"""Packing loses nothing that is learned from, repeats nothing, and mixes nothing."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bedplate.core.errors import DataError
from bedplate.data.packing import pack_documents
from bedplate.models.decoder import Decoder
from bedplate.models.inputs import Inputs
from bedplate.models.packed.block_attention import BlockAttention
from bedplate.models.packed.placement import Placement
from bedplate.training.batch import NO_TARGET, TrainingExample, common_prefix, pack_examples, rows_batch
from bedplate.training.objectives.language import NextToken, Sft


@st.composite
def example_lists(draw: st.DrawFn) -> list[TrainingExample]:
    shared = draw(st.lists(st.integers(0, 9), max_size=8))
    examples: list[TrainingExample] = []
    for i in range(draw(st.integers(1, 6))):
        suffix = draw(st.lists(st.integers(0, 9), min_size=2, max_size=9))
        ids = (*shared, *suffix)
        loss = [False] + [draw(st.booleans()) for _ in ids[1:]]
        loss[draw(st.integers(1, len(ids) - 1))] = True
        examples.append(TrainingExample(ids, tuple(loss), f"e{i}"))
    return examples


@given(example_lists(), st.booleans(), st.integers(1, 5))
def test_every_token_that_is_read_and_every_target_once(
    examples: list[TrainingExample], share: bool, min_prefix: int
) -> None:
    batch = pack_examples(examples, share_prefix=share, min_prefix=min_prefix)
    tokens, segments, targets = batch.tokens[0].tolist(), batch.segments[0].tolist(), batch.targets[0].tolist()
    positions = batch.positions[0].tolist()
    prefix = segments.count(0)
    assert segments == sorted(segments)
    assert set(targets[:prefix]) <= {NO_TARGET}
    assert positions[:prefix] == list(range(prefix))
    assert prefix == 0 or (share and len(examples) > 1 and prefix >= min_prefix)
    for number, example in enumerate(examples, start=1):
        indices = [i for i, s in enumerate(segments) if s == number]
        read = max(i for i, learned in enumerate(example.loss) if learned)  # by the last prediction
        assert tuple(tokens[:prefix] + [tokens[i] for i in indices]) == example.ids[:read]
        assert [positions[i] for i in indices] == list(range(prefix, read))
        following = list(zip(example.ids, example.loss, strict=True))[prefix + 1 : read + 1]
        assert [targets[i] for i in indices] == [t if learn else NO_TARGET for t, learn in following]
    assert batch.target_count == sum(sum(e.loss) for e in examples)
    assert batch.token_count == len(tokens)
    assert batch.ids == tuple(e.id for e in examples)


def test_common_prefix_is_the_longest_that_leaves_every_prediction_outside() -> None:
    def example(ids: list[int], first: int) -> TrainingExample:
        return TrainingExample(tuple(ids), tuple(i >= first for i in range(len(ids))), "")

    assert common_prefix([example([1, 2, 3, 4, 5], 4), example([1, 2, 3, 9, 5], 4)]) == 3
    assert common_prefix([example([1, 2, 3, 4, 5], 4), example([1, 2, 3, 4, 6], 4)]) == 3
    assert common_prefix([example([1, 2, 3, 4, 5], 2), example([1, 2, 3, 4, 6], 4)]) == 1
    assert common_prefix([example([1, 2], 1), example([1, 3], 1)]) == 0


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.integers(2, 16),
    st.sampled_from(["best_fit", "sequential"]),
)
def test_documents_every_token_and_target_once(lengths: list[int], row: int, method: str) -> None:
    documents = [[100 * d + i for i in range(n)] for d, n in enumerate(lengths)]
    packed = pack_documents(lengths, row, method)  # type: ignore[arg-type]
    batch = rows_batch(packed.rows, documents, [str(i) for i in range(len(lengths))], row)
    inside = batch.segments >= 0
    assert sorted(batch.tokens[inside].tolist()) == sorted(t for d in documents for t in d)
    targets = batch.targets[batch.targets != NO_TARGET].tolist()
    assert sorted(targets) == sorted(t for d in documents for t in d[1:])
    for token, target in zip(batch.tokens[inside].tolist(), batch.targets[inside].tolist(), strict=True):
        assert target in (NO_TARGET, token + 1)
    assert int((~inside).sum()) == packed.padding
    assert packed.tokens + packed.padding == len(packed.rows) * row
    assert packed.targets == len(targets)
    whole = sum(len(d) <= row for d in documents)
    if method == "best_fit":
        assert packed.split_documents == len(documents) - whole
    else:
        assert packed.padding < row
    assert batch.ids == tuple(str(p.document) for r in packed.rows for p in r)


@pytest.mark.parametrize("share", [False, True])
def test_packed_loss_and_gradients_equal_separate_ones(share, make_decoder, make_examples) -> None:
    model, examples = make_decoder(), make_examples(7)
    batch = pack_examples(examples, share_prefix=share)
    assert bool((batch.segments == 0).any()) == share
    packed = Sft()({"policy": model}, batch)["sft"]
    packed.total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for example in examples:
        # the plain definition, without packing, the objective or its attention
        logits = model.head(model(Inputs(torch.tensor([example.ids]))).hidden[0]).log_softmax(-1)
        total = total - sum(logits[i - 1, t] for i, t in enumerate(example.ids) if example.loss[i])
    total.backward()
    assert packed.weight == sum(sum(e.loss) for e in examples)
    torch.testing.assert_close(packed.total, total)
    for name, p in model.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, msg=name)


def test_another_document_changes_nothing(make_decoder, make_examples) -> None:
    model, (fixed, original, changed) = make_decoder(), make_examples(3)
    results = []
    for neighbour in (original, changed):
        batch = pack_examples([neighbour, fixed], share_prefix=False)
        hidden = model(batch.inputs).hidden
        fixed_hidden = hidden[0, batch.segments[0] == 2]
        embedded = torch.autograd.grad(fixed_hidden.square().sum(), list(model.parameters()))
        results.append((fixed_hidden.detach(), embedded))
    torch.testing.assert_close(results[0][0], results[1][0])
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b)


def spent(model: Decoder, row: int, lengths: list[int]) -> tuple[int, int]:
    """Operations of a step's products, forwards and backwards, and bytes kept on the way, parameters aside."""
    documents = [[(7 * number + i) % 61 for i in range(length)] for number, length in enumerate(lengths)]
    batch = rows_batch(pack_documents(lengths, row).rows, documents, [str(i) for i in range(len(lengths))], row)
    weight_pointers = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, Tensor] = {}  # held, so that no two have one place

    def save_tensor(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with FlopCounterMode(display=False) as operations:
        with torch.autograd.graph.saved_tensors_hooks(save_tensor, lambda tensor: tensor):
            loss = NextToken()({"policy": model}, batch)["next_token"].total
        saved_bytes = sum(
            tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in weight_pointers
        )
        loss.backward()
    model.zero_grad(set_to_none=True)
    return operations.get_total_flops(), saved_bytes


@pytest.mark.parametrize(
    ("row", "lengths"),
    [
        (2048, [1500] * 2 + [8] * 136),
        (512, [40, 90, 25, 300, 60, 15, 150, 512] * 3 + [30, 70, 200, 124]),  # as in continued pretraining
    ],
)
def test_a_step_costs_what_its_tokens_do_in_equal_rows(row: int, lengths: list[int], make_decoder) -> None:
    """`benchmarks/packed.py` says it in seconds and megabytes."""
    model, count = make_decoder(torch.float32), len(pack_documents(lengths, row).rows)
    work, saved_bytes = spent(model, row, lengths)
    equal_work, equal_held = spent(model, row, [sum(lengths) // count] * count)
    assert work <= 1.2 * equal_work
    assert saved_bytes <= 1.2 * equal_held


@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from([0, 5, 150]),
    st.lists(st.one_of(st.integers(1, 60), st.integers(90, 300)), min_size=1, max_size=5),
    st.sampled_from([(4, 2), (3, 3), (4, 1)]),
)
@hypothesis.example(150, [300, 20, 97], (4, 2))
def test_block_attention_equals_masked_softmax(prefix: int, lengths: list[int], heads: tuple[int, int]) -> None:
    """Values and gradients, against the definition with one mask over the whole row."""
    segments = torch.tensor([0] * prefix + [i for i, n in enumerate(lengths, 1) for _ in range(n)])
    T, (H, G), D = len(segments), heads, 4
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, T, h, D, dtype=torch.float64, requires_grad=True) for h in (H, G, G))
    document_mask = (segments[:, None] == segments) | (segments == 0)
    attention_mask = document_mask & torch.ones(T, T, dtype=torch.bool).tril()
    wide_k, wide_v = (x[0].repeat_interleave(H // G, dim=1) for x in (k, v))
    scores = torch.einsum("thd,shd->hts", q[0], wide_k) / D**0.5
    expected = torch.einsum("hts,shd->thd", scores.masked_fill(~attention_mask, -torch.inf).softmax(-1), wide_v)
    out = BlockAttention(Placement.of_lengths([prefix, *lengths]))(0, q, k, v)
    torch.testing.assert_close(out[0], expected)
    weight = torch.randn_like(expected)
    ours = torch.autograd.grad((out[0] * weight).sum(), (q, k, v))
    theirs = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_over_long_examples_and_empty_batches_are_refused() -> None:
    long = TrainingExample((1, 2, 3, 4), (False, False, True, True), "row 7")
    with pytest.raises(DataError, match=r"'row 7' has 4 tokens, but the context holds 3"):
        pack_examples([long], context_length=3)
    with pytest.raises(DataError, match="at least one"):
        pack_examples([])
    with pytest.raises(DataError, match="document 1 is empty"):
        pack_documents([3, 0], 4)
    with pytest.raises(DataError, match="row of 1"):
        pack_documents([3], 1)


@pytest.mark.parametrize(
    ("loss", "message"),
    [((False, False), "carries loss"), ((True, False), "nothing stands before"), ((True,), "2 tokens")],
)
def test_examples_that_teach_nothing_are_refused(loss, message) -> None:
    with pytest.raises(DataError, match=message):
        TrainingExample((1, 2), loss, "x")
