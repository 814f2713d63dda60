"""InfoNCE with negatives of the batch and hard ones: sentence-transformers' loss and gradients, and a run of it."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tests.encoders import ENCODERS, converted
from torch import Tensor, nn

from bedplate.training.batch import PackedBatch
from bedplate.training.objectives.contrastive import Crops
from bedplate.training.objectives.objective import CorruptedSource, CorruptionVocabulary, documents_of
from bedplate.training.sources import DocumentSource


def vectors(theirs: nn.Module, texts: list[tuple[int, ...]], pooling: str) -> Tensor:
    """With transformers' own padding."""
    width = max(map(len, texts))
    ids = torch.tensor([[*text_ids, *[0] * (width - len(text_ids))] for text_ids in texts])
    mask = torch.tensor([[*[1] * len(text_ids), *[0] * (width - len(text_ids))] for text_ids in texts])
    states = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True) if pooling == "mean" else states[:, 0]


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
