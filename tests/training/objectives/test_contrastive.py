"""InfoNCE with negatives of the batch and hard ones: sentence-transformers' loss and gradients, and a run of it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tests.encoders import ENCODERS, converted
from torch import Tensor, nn

from bedplate.core.errors import ConfigError, DataError
from bedplate.training.batch import PackedBatch
from bedplate.training.config import TrainConfig
from bedplate.training.loop import evaluate_loss, train
from bedplate.training.objectives.contrastive import Contrastive, Crops, PairSource, TextPair, pack_pairs
from bedplate.training.objectives.objective import CorruptedSource, CorruptionVocabulary, documents_of
from bedplate.training.sources import DocumentSource


def pairs(count: int, negatives: int = 0, seed: int = 0) -> list[TextPair]:
    draw = random.Random(seed)

    def text() -> tuple[int, ...]:
        return tuple(draw.randrange(5, 97) for _ in range(draw.randint(1, 12)))

    return [TextPair(text(), text(), f"p{n}", tuple(text() for _ in range(negatives))) for n in range(count)]


def vectors(theirs: nn.Module, texts: list[tuple[int, ...]], pooling: str) -> Tensor:
    """With transformers' own padding."""
    width = max(map(len, texts))
    ids = torch.tensor([[*text_ids, *[0] * (width - len(text_ids))] for text_ids in texts])
    mask = torch.tensor([[*[1] * len(text_ids), *[0] * (width - len(text_ids))] for text_ids in texts])
    states = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True) if pooling == "mean" else states[:, 0]


@pytest.mark.parametrize(
    ("name", "pooling", "negatives", "scale"),
    [("bert", "mean", 0, 20.0), ("bert", "first", 2, 20.0), ("modernbert", "mean", 1, 7.5)],
)
def test_it_is_that_of_sentence_transformers(name: str, pooling: str, negatives: int, scale: float) -> None:
    theirs = ENCODERS[name].random_model(1, torch.float64)
    ours, _ = converted(theirs, torch.float64)
    text_pairs = pairs(6, negatives)
    columns = [[pair.anchor for pair in text_pairs], [pair.positive for pair in text_pairs]]
    columns += [[pair.negatives[n] for pair in text_pairs] for n in range(negatives)]
    oracle = MultipleNegativesRankingLoss(model=None, scale=scale)  # type: ignore[arg-type]
    expected = oracle.compute_loss_from_embeddings(
        [vectors(theirs, column, pooling) for column in columns], torch.empty(0)
    )
    expected.backward()
    ours.requires_grad_(True)
    batch, objective = pack_pairs(text_pairs), Contrastive(scale, pooling)
    term = objective({"policy": ours}, batch)["contrastive"]
    assert objective.weights(batch) == {"contrastive": 6.0} == {"contrastive": term.weight}
    (term.total / term.weight).backward()
    torch.testing.assert_close(term.total / term.weight, expected)
    tables = (ours.embedding.weight, theirs.get_input_embeddings().weight)
    torch.testing.assert_close(tables[0].grad, tables[1].grad)


def words(starts: tuple[int, ...] = (), ends: tuple[int, ...] = (), eos: int | None = None) -> CorruptionVocabulary:
    tokenizer: Any = SimpleNamespace(prompt_start=starts, prompt_end=ends, eos_id=eos)
    return CorruptionVocabulary(tokenizer, 97)


def cropped(
    documents: list[list[int]], objective: Crops, vocabulary: CorruptionVocabulary, shard: tuple[int, int] = (0, 1)
) -> PackedBatch:
    """The first step, which holds all of them."""
    source = DocumentSource(documents, 40, len(documents), shard=shard)
    ((batch,),) = [next(iter(CorruptedSource(source, objective, vocabulary, seed=1)))]
    return batch


def test_crops_are_pieces_of_one_text_between_what_the_tokenizer_sets() -> None:
    documents = [[1, *range(10 + 20 * n, 30 + 20 * n), 2] for n in range(4)]
    batch = cropped(documents, Crops(shortest=0.1, longest=0.5), words((1,), (2,), 2))
    crops = [ids.tolist() for _, ids in documents_of(batch)]
    assert len(crops) == 8 == 2 * batch.target_count
    texts = {tuple(crop_ids[1:-1]) for crop_ids in crops}
    for first, second in zip(crops[::2], crops[1::2], strict=True):
        of = [document for document in documents if first[1] in document]
        for crop in (first, second):
            assert (crop[0], crop[-1]) == (1, 2)
            bare = crop[1:-1]
            assert 2 <= len(bare) <= 10
            assert bare == list(range(bare[0], bare[-1] + 1))
            assert set(bare) <= set(of[0][1:-1])
    assert len(texts) > 4, "the two are drawn apart"


def test_crops_cost_what_sentence_transformers_says() -> None:
    theirs = ENCODERS["modernbert"].random_model(1, torch.float64)
    ours, _ = converted(theirs, torch.float64)
    draw = random.Random(0)
    documents = [[draw.randrange(5, 97) for _ in range(draw.randint(6, 40))] for _ in range(6)]
    objective = Crops(scale=7.5)
    batch = cropped(documents, objective, words())
    crops = [tuple(ids.tolist()) for _, ids in documents_of(batch)]
    oracle = MultipleNegativesRankingLoss(model=None, scale=7.5)  # type: ignore[arg-type]
    columns = [vectors(theirs, crops[n::2], "mean") for n in (0, 1)]
    expected = oracle.compute_loss_from_embeddings(columns, torch.empty(0))
    expected.backward()
    ours.requires_grad_(True)
    term = objective({"policy": ours}, batch)["contrastive"]
    assert objective.weights(batch) == {"contrastive": 6.0} == {"contrastive": term.weight}
    (term.total / term.weight).backward()
    torch.testing.assert_close(term.total / term.weight, expected)
    torch.testing.assert_close(ours.embedding.weight.grad, theirs.get_input_embeddings().weight.grad)


def test_pairs_are_told_apart_after_a_run(tmp_path: Path) -> None:
    model, _ = converted(ENCODERS["bert"].random_model(0, torch.float32), torch.float32)
    text_pairs, objective = pairs(22, 1), Contrastive()
    before = evaluate_loss(model, [pack_pairs(text_pairs)], objective)["contrastive"]
    source = PairSource(text_pairs, 8, epochs=8)
    assert source.steps == 16  # six pairs do not fill a step, and are others in each epoch
    config = TrainConfig(learning_rate=3e-3, save_seconds=None, dtype="float32")
    train(model, source, objective, config, tmp_path, model.named_parameters())
    assert evaluate_loss(model, [pack_pairs(text_pairs)], objective)["contrastive"] < 0.6 * before
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["targets"] == 8 for row in rows)
    assert rows[-1]["contrastive/accuracy"] > rows[0]["contrastive/accuracy"]


LONG = TextPair((1,) * 9, (1,), "long")


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: TextPair((1,), (), "a"), DataError, "'a' has a text without tokens"),
        (lambda: PairSource(pairs(4), 1), DataError, "there must be 2 pairs"),
        (lambda: PairSource(pairs(4), 2, shard=(0, 3)), DataError, "one for each rank"),
        (lambda: PairSource(pairs(4), 5), DataError, "4 pairs do not fill a step of 5"),
        (lambda: PairSource(pairs(2) * 2, 2), DataError, "two pairs have the id 'p0'"),
        (lambda: PairSource([LONG, *pairs(2)], 2, context_length=8), DataError, "'long' has a text of 9 tokens"),
        (lambda: Contrastive(scale=0), ConfigError, "scale is 0"),
        (lambda: Contrastive(pooling="last"), ConfigError, "it is mean or first"),
    ],
)
def test_what_cannot_be_is_refused(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()
