"""Objectives that undo what was done to a text: nothing is lost, shares are the papers', and losses transformers'."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.encoders import BERT, MODERN, Reference, converted

from bedplate.core.errors import ConfigError, DataError
from bedplate.models.build import build
from bedplate.models.checkpoints.conversion import read_parameters
from bedplate.models.families import FAMILIES
from bedplate.text.bpe import train_bpe
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.batch import NO_TARGET, PackedBatch
from bedplate.training.objectives.contrastive import Crops
from bedplate.training.objectives.corruption import (
    FIM_TOKENS,
    SENTINELS,
    Denoiser,
    FillInMiddle,
    Masked,
    MixtureOfDenoisers,
    SpanCorruption,
    cut_out,
    starts_word,
)
from bedplate.training.objectives.language import NextToken
from bedplate.training.objectives.objective import (
    CorruptedSource,
    Corrupting,
    CorruptionVocabulary,
    corrupted,
    documents_of,
)
from bedplate.training.objectives.token_term import token_term
from bedplate.training.sources import DocumentSource

TEXTS = (
    "the cat sat on the mat, and the dog ran",
    "naïve café déjà vu – Straße 42",
    "a b c",
    "x",
    "she reads good books",
)
SHORT_SENTINELS = tuple(SENTINELS[:20])


@cache
def tokenizer() -> Tokenizer:
    names = (*SHORT_SENTINELS, "[MASK]", "[R]", "[S]", "[X]", *FIM_TOKENS[0])
    return train_bpe(TEXTS * 4, 320, "a test", names)


def words(start: tuple[int, ...] = (0,)) -> CorruptionVocabulary:
    return CorruptionVocabulary(tokenizer(), tokenizer().vocab_size, start)


def source(rows: int = 4, micro: int = 2, shard: tuple[int, int] = (0, 1)) -> DocumentSource:
    documents = [[*tokenizer().encode(text, parse_special=False), 0] for text in TEXTS * 5]
    return DocumentSource(documents, 48, rows, micro_rows=micro, epochs=2, seed=3, shard=shard)


OBJECTIVES: list[Corrupting] = [
    Masked(),
    Masked(whole_words=True, density=0.3),
    SpanCorruption(sentinels=SHORT_SENTINELS),
    MixtureOfDenoisers(sentinels=SHORT_SENTINELS),
    FillInMiddle(),
    FillInMiddle(at="tokens", rate=1.0),
    Crops(),
]


def rows_of(batch: PackedBatch) -> dict[int, Any]:
    """What each row is, by its number, without padding."""
    rows: dict[int, Any] = {}
    for place, ids in documents_of(batch):
        targets = batch.targets.reshape(-1)[place.start : place.stop].tolist()
        rows.setdefault(batch.rows[place.row], []).append((ids.tolist(), targets))
    if batch.sources is not None and batch.source_placement is not None:
        for place in batch.source_placement.documents:
            rows[batch.rows[place.row]].append(batch.sources.reshape(-1)[place.start : place.stop].tolist())
    return rows


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_what_is_done_to_a_row_depends_on_nothing_but_seed_and_number(objective: Corrupting) -> None:
    whole = CorruptedSource(source(), objective, words(), 5)
    steps = [[rows_of(batch) for batch in step] for step in whole]
    first = {number: row for step in steps for batch in step for number, row in batch.items()}
    assert len(first) == sum(len(batch) for step in steps for batch in step), "an epoch's rows have their own numbers"
    # Two ranks, other micro-batches, and a run that is gone on with.
    sharded: dict[int, Any] = {}
    for rank in range(2):
        for step in CorruptedSource(source(micro=1, shard=(rank, 2)), objective, words(), 5):
            for batch in step:
                sharded |= rows_of(batch)
    assert sharded == first
    resumed = CorruptedSource(source(), objective, words(), 5)
    stopped = CorruptedSource(source(), objective, words(), 5)
    next(iter(stopped))
    resumed.load_state(stopped.state())
    assert [[rows_of(batch) for batch in step] for step in resumed] == steps[1:]
    reseeded = [[rows_of(batch) for batch in step] for step in CorruptedSource(source(), objective, words(), 6)]
    assert reseeded != steps
    assert whole.identity != CorruptedSource(source(), objective, words(), 6).identity


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.floats(0.05, 0.6), st.one_of(st.none(), st.floats(1, 40)), st.integers(0, 2**32))
def test_spans_lose_nothing(length: int, density: float, mean: float | None, seed: int) -> None:
    ids = np.arange(1000, 1000 + length)
    spans = Denoiser(density=density, mean_span=mean).spans(length, np.random.default_rng(seed))
    marks = list(range(len(spans)))
    read, written = cut_out(ids, spans, marks)
    noise = min(max(round(length * density), 1), max(length - 1, 1))
    assert sum(stop - start for start, stop in spans) == noise
    if mean is not None:
        assert len(spans) == max(1, min(round(noise / mean), noise, length - noise))
    assert [t for t in read if t < 1000] == marks == [t for t in written if t < 1000]
    # The text again: each sentinel's span in its place.
    parts: dict[int, list[int]] = {}
    for token in written:
        if token < 1000:
            parts[token] = []
            last = token
        else:
            parts[last].append(token)
    assert all(parts.values())
    assert [
        restored_token for token in read for restored_token in (parts[token] if token < 1000 else [token])
    ] == ids.tolist()
    # Spans are apart: between two sentinels the encoder reads something.
    assert not any(a < 1000 and b < 1000 for a, b in pairwise(read))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(max_size=30).filter(bool), min_size=1, max_size=4),
    st.sampled_from(["characters", "tokens"]),
    st.integers(0, 99),
)
def test_a_moved_middle_loses_nothing(texts: list[str], at: Any, seed: int) -> None:
    documents = [[*tokenizer().encode(text, parse_special=False), 0] for text in texts]
    longest = max(map(len, documents))
    (batch,) = next(iter(DocumentSource(documents, longest, 9)))
    objective = FillInMiddle(rate=1.0, at=at)
    moved_batch = corrupted(batch, objective.corruption(words()), seed)
    pre, suf, mid = words().ids_of(FIM_TOKENS[0], "")
    moved = 0
    for (_, before), (_, after) in zip(documents_of(batch), documents_of(moved_batch), strict=True):
        ids = after.tolist()
        assert len(ids) <= len(before) + objective.max_growth
        if ids[0] == pre:
            moved += 1
            assert ids[-1] == 0
            ids = ids[1:-1]
            if ids[0] == suf:
                suffix, remainder = ids[1 : ids.index(mid)], ids[ids.index(mid) + 1 :]
                ids = remainder + suffix
            else:
                prefix, remainder = ids[: ids.index(suf)], ids[ids.index(suf) + 1 :]
                ids = prefix + remainder[remainder.index(mid) + 1 :] + remainder[: remainder.index(mid)]
            ids = [*ids, 0]
        assert b"".join(map(tokenizer().token_bytes, ids[:-1])) == b"".join(
            map(tokenizer().token_bytes, before[:-1].tolist())
        )
    assert moved == sum(len(document) >= 4 for document in documents)
    assert moved_batch.target_count == sum(len(ids) - 1 for _, ids in documents_of(moved_batch))


def test_rates_are_those_asked_for() -> None:
    ids = np.arange(30, 130).tolist()
    documents = [[*ids, 0] for _ in range(300)]
    (batch,) = next(iter(DocumentSource(documents, 101, 300)))
    moved_batch = corrupted(batch, FillInMiddle(rate=0.6, spm=0.25, at="tokens").corruption(words()), 0)
    pre, suf, _ = words().ids_of(FIM_TOKENS[0], "")
    starts = [ids[:2].tolist() for _, ids in documents_of(moved_batch)]
    assert sum(start[0] == pre for start in starts) / 300 == pytest.approx(0.6, abs=0.1)
    assert sum(start == [pre, suf] for start in starts) / sum(start[0] == pre for start in starts) == pytest.approx(
        0.25, abs=0.1
    )
    masked = corrupted(batch, Masked().corruption(words()), 0)
    chosen = masked.targets != NO_TARGET
    assert masked.losses == (15,) * 300
    assert (masked.targets[chosen] == batch.tokens[chosen]).all()
    assert (masked.tokens[~chosen] == batch.tokens[~chosen]).all()
    (mask,) = words().ids_of(["[MASK]"], "")
    hidden = (masked.tokens[chosen] == mask).float().mean().item()
    unchanged = (masked.tokens[chosen] == batch.tokens[chosen]).float().mean().item()
    assert hidden == pytest.approx(0.8, abs=0.03)
    assert unchanged == pytest.approx(0.1, abs=0.02)
    replaced = masked.tokens[chosen & (masked.tokens != mask)].tolist()
    assert not set(replaced) & tokenizer().special_ids
    assert (batch.tokens[chosen] != 0).all(), "an end is not to be said"


def test_whole_words_are_hidden_together() -> None:
    starts = starts_word(tokenizer(), tokenizer().vocab_size)
    masked = corrupted(next(iter(source()))[0], Masked(whole_words=True, hidden=1.0, random=0.0).corruption(words()), 1)
    (mask,) = words().ids_of(["[MASK]"], "")
    plain = next(iter(source()))[0]
    for (place, ids), (_, before) in zip(documents_of(masked), documents_of(plain), strict=True):
        hidden = ids == mask
        for at in range(1, len(ids)):
            if not starts[before[at]] and before[at] != 0:
                assert hidden[at] == hidden[at - 1], place


def test_z_loss_is_the_plain_formula() -> None:
    torch.manual_seed(0)
    reference = Reference("BertForMaskedLM", BERT).random_model(0, torch.float64)
    ours, _ = converted(reference, torch.float64)
    hidden = torch.randn(23, 48, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 97, (23,))
    logits = reference.cls(hidden)
    logs = torch.logsumexp(logits, -1)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum") + 0.01 * (logs**2).sum()
    gradient = torch.autograd.grad(expected, hidden)[0]
    for rows in (23, 5):
        term = token_term(ours, hidden, targets, z=0.01, hits=True, rows=rows)
        torch.testing.assert_close(term.total, expected)
        torch.testing.assert_close(torch.autograd.grad(term.total, hidden)[0], gradient)
        torch.testing.assert_close(term.metrics["log_z_squared"], (logs**2).sum().detach())
        assert float(term.metrics["accuracy"]) == float((logits.argmax(-1) == targets).sum())
    with pytest.raises(ConfigError, match="z is -1"):
        NextToken(z=-1)


MASKED = {
    "bert": Reference("BertForMaskedLM", {**BERT, "hidden_act": "relu"}),
    "roberta": Reference("RobertaForMaskedLM", BERT),
    "xlm-roberta": Reference("XLMRobertaForMaskedLM", BERT),
    "modernbert": Reference("ModernBertForMaskedLM", MODERN),
    "modernbert, biases": Reference("ModernBertForMaskedLM", {**MODERN, "classifier_bias": True, "norm_bias": True}),
}


@pytest.mark.parametrize("name", MASKED)
def test_masked_losses_and_gradients_are_those_of_transformers(name: str) -> None:
    reference = MASKED[name].random_model(0, torch.float64)
    model, family = converted(reference, torch.float64)
    torch.manual_seed(1)
    documents = [torch.randint(5, 97, (n,)).tolist() for n in (9, 14, 5)]
    (batch,) = next(iter(DocumentSource(documents, 20, 9)))
    chosen = torch.rand(batch.tokens.shape) < 0.4
    targets = torch.where(chosen & (batch.segments > 0), batch.tokens, NO_TARGET)
    learned = (targets.reshape(-1) != NO_TARGET).nonzero().squeeze(1)
    hidden = torch.where(targets != NO_TARGET, 3, batch.tokens)
    batch = PackedBatch(**{**vars(batch), "tokens": hidden, "targets": targets, "learned": learned})
    term = Masked()({"policy": model}, batch)["masked"]
    expected = torch.zeros(()).double()
    for place, ids in documents_of(batch):
        labels = targets.reshape(-1)[place.start : place.stop]
        logits = reference(input_ids=torch.from_numpy(ids)[None]).logits[0]
        expected = expected + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(term.total, expected)
    term.total.backward()
    expected.backward()
    theirs = dict(reference.named_parameters(remove_duplicate=False))
    spec = family.by_names(
        family.to_spec({**reference.config.to_dict(), "architectures": [type(reference).__name__]}),
        tuple(reference.state_dict()),
    )
    assert family.to_spec(family.to_config(spec)).masked_head == spec.masked_head
    our_parameters = dict(model.named_parameters())
    gradients = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in theirs.items()}
    expected_gradients = dict(
        read_parameters(family, spec, tuple(theirs), gradients.__getitem__, our_parameters, "gradients")
    )
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected_gradients[key], msg=key)


def test_span_losses_are_those_of_transformers() -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=tokenizer().vocab_size,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    reference = transformers.T5ForConditionalGeneration(config).double().eval()
    family, tied = FAMILIES[("hf", "t5")], ("lm_head.weight", "embed_tokens.weight")
    state = {name: tensor for name, tensor in reference.state_dict().items() if not name.endswith(tied)}
    spec = family.by_names(family.to_spec(reference.config.to_dict()), tuple(state))
    model = build(spec, torch.float64)
    our_parameters = dict(model.named_parameters())
    model.load_state_dict(dict(read_parameters(family, spec, tuple(state), state.__getitem__, our_parameters, "t5")))
    objective = SpanCorruption(sentinels=SHORT_SENTINELS)
    (batch, *_) = next(iter(CorruptedSource(source(), objective, words(), 0)))
    term = objective({"policy": model}, batch)["span_corruption"]
    assert batch.source_placement is not None
    assert batch.sources is not None
    expected, weight = torch.zeros(()).double(), 0
    for (_, written), place in zip(documents_of(batch), batch.source_placement.documents, strict=True):
        read = batch.sources.reshape(-1)[place.start : place.stop][None]
        labels = torch.from_numpy(written[1:])[None]
        # Its decoder's inputs are the labels behind the start.
        logits = reference(input_ids=read, labels=labels).logits[0]
        expected = expected + torch.nn.functional.cross_entropy(logits, labels[0], reduction="sum")
        weight += labels.numel()
    torch.testing.assert_close(term.total, expected)
    assert term.weight == weight == objective.weights(batch)["span_corruption"]


def test_what_a_vocabulary_lacks_is_named() -> None:
    bare = train_bpe(TEXTS, 300, "a test")
    bare_words = CorruptionVocabulary(bare, bare.vocab_size, (0,))
    for objective, missing in ((Masked(), "MASK"), (SpanCorruption(), "extra_id_0"), (FillInMiddle(), "fim_prefix")):
        with pytest.raises(ConfigError, match=missing):
            objective.corruption(bare_words)
    with pytest.raises(ConfigError, match="encoder–decoders"):
        SpanCorruption(sentinels=SHORT_SENTINELS).corruption(words(()))
    (batch, *_) = next(iter(source()))
    with pytest.raises(DataError, match="sentinels"):
        corrupted(batch, SpanCorruption(sentinels=SHORT_SENTINELS[:1], density=0.5, mean_span=1).corruption(words()), 0)
