"""The objective interface: loss terms with their own denominators, so that gradient accumulation, packing and ranks
stay exact; evaluation losses; and the base class of objectives that corrupt texts.

The corruption of a row follows from the seed and the row's number in the run alone, so that resumed runs and any number
of ranks see the same rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bedplate.core.config import Strict
from bedplate.core.errors import ConfigError, DataError
from bedplate.data.packing import DocumentPiece
from bedplate.models.inputs import Inputs, Outputs
from bedplate.models.layers.attention import Attend
from bedplate.models.packed.placement import PlacedDocument
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.batch import MicroBatch, PackedBatch, rows_batch
from bedplate.training.ranks import Ranks
from bedplate.training.sources import BatchSource, MappedSource

Scope = Literal["row", "group", "global_batch"]
B_contra = TypeVar("B_contra", bound=MicroBatch, contravariant=True)


class AnyModel(Protocol):
    """A model as a loss uses it: hidden states, and a separate head (a `torch.nn.Module`)."""

    def __call__(self, inputs: Inputs, cache: Attend | None = None) -> Outputs: ...
    def head(self, hidden_ND: Tensor) -> Tensor: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def train(self, mode: bool = True) -> Any: ...


Models = Mapping[str, AnyModel]
"""Role → model: policy, reference, reward, teacher."""


@dataclass(frozen=True)
class Term:
    """One loss term of one micro-batch.

    total: the sum (not the mean) with its graph, float32 or wider; weight: its denominator, summed over micro-batches
    and ranks of the step. metrics: scalar sums under the same weight, divided like it; they stay on the device until a
    line is written.
    """

    total: Tensor
    weight: float
    metrics: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True)
class CorruptionVocabulary:
    """The vocabulary and the model settings that corruption needs. size: number of the model's ids; decoder_start: of
    an encoder–decoder; pooling: how states become a text's vector."""

    tokenizer: Tokenizer
    size: int
    decoder_start: tuple[int, ...] = ()
    pooling: str = "mean"

    def ids_of(self, names: Sequence[str], objective: str) -> list[int]:
        """The ids of control tokens. ConfigError naming the first that the tokenizer lacks."""
        ids: list[int] = []
        for name in names:
            index = self.tokenizer.token_to_id(name)
            if index is None or index >= self.size:
                raise ConfigError(
                    f"the objective {objective} needs the token {name!r}, which the vocabulary lacks; train a "
                    "tokenizer that has it, or say in the objective's settings which tokens it is to use"
                )
            ids.append(index)
        return ids


class TokenCounts(NamedTuple):
    """Tokens that a text of some length becomes: `read` by an encoder, `written` through the stack that predicts, and
    `learned`, the predicted ones with a target."""

    read: int
    written: int
    learned: int


class TextObjective(ABC):
    """An objective that learns from plain texts, with an entry in OBJECTIVES. Its class attributes describe it to a
    pretraining run.

    architectures: models that can learn it; empty: any. target: the unit of targets; only tokens have bits per byte.
    likelihood: whether the model learns texts in reading order, so that a text has a likelihood.
    """

    name: ClassVar[str]
    roles: ClassVar[tuple[str, ...]] = ("policy",)
    scope: ClassVar[Scope] = "row"
    architectures: ClassVar[tuple[str, ...]] = ()
    target: ClassVar[str] = "token"
    likelihood: ClassVar[bool] = False

    @property
    def special(self) -> tuple[str, ...]:
        """Control tokens that the tokenizer must have."""
        return ()

    @property
    def max_growth(self) -> int:
        """Maximum number of tokens by which a document can grow."""
        return 0

    def token_counts(self, length: int) -> TokenCounts:
        """Upper bounds of the tokens that a text of `length` tokens becomes, to within a few tokens."""
        return TokenCounts(0, length, length)

    def source(
        self, inner: BatchSource[PackedBatch], words: CorruptionVocabulary, seed: int
    ) -> BatchSource[PackedBatch]:
        """The training batches, given those of plain texts."""
        return inner

    def for_ranks(self, ranks: Ranks) -> Self:
        """The objective for a run on these ranks."""
        return self

    def weights(self, batch: PackedBatch) -> dict[str, float]:
        return {self.name: float(batch.target_count)}

    @abstractmethod
    def __call__(self, models: Models, batch: PackedBatch) -> dict[str, Term]: ...


class Objective(Protocol[B_contra]):
    """The function that a run minimises: Σ over terms of (Σ totals) / (Σ weights)."""

    name: ClassVar[str]
    roles: ClassVar[tuple[str, ...]]
    """The models it needs: policy, reference, reward, teacher."""
    scope: ClassVar[Scope]
    """The examples on which one term may depend; of contrastive terms, global_batch."""

    def weights(self, batch: B_contra) -> dict[str, float]:
        """Each term's weight, known before the forward pass, from the batch on the CPU."""
        ...

    def __call__(self, models: Models, batch: B_contra) -> dict[str, Term]:
        """The terms of one micro-batch, which is on the models' device; implementations must not read it back."""
        ...


B = TypeVar("B", bound=MicroBatch)


@torch.no_grad()
def evaluate_loss(models: AnyModel | Models, batches: Iterable[B], objective: Objective[B]) -> dict[str, float]:
    """Each term's loss over all batches, weighted exactly, with the models in evaluation mode."""
    roles: Models = models if isinstance(models, Mapping) else {"policy": models}
    device = next(next(iter(roles.values())).parameters()).device
    modes = [(m, m.training) for model in roles.values() for m in model.modules()]
    totals: dict[str, list[Tensor]] = {}
    weights: dict[str, float] = {}
    try:
        for model in roles.values():
            model.train(False)
        for batch in batches:
            objective.weights(batch)  # before `to(device)`, because weights may read the batch
            for name, term in objective(roles, batch.to(device)).items():
                totals.setdefault(name, []).append(term.total)
                weights[name] = weights.get(name, 0.0) + term.weight
    finally:
        for module, mode in modes:
            module.training = mode
    return {name: sum(torch.stack(term_totals).tolist()) / weights[name] for name, term_totals in totals.items()}


Ids = NDArray[np.int64]
BatchT = TypeVar("BatchT", bound=PackedBatch)


Corruption = Callable[[PackedBatch, Sequence[np.random.Generator]], PackedBatch]
"""A packed batch of plain texts, and a generator for each of its rows → the batch to learn from."""


class Corrupting(Strict, TextObjective):
    """An objective that corrupts texts and learns to restore them. Its fields are its settings."""

    @abstractmethod
    def corruption(self, words: CorruptionVocabulary) -> Corruption:
        """The function that corrupts batches. ConfigError where the vocabulary lacks a token for it."""

    def source(
        self, inner: BatchSource[PackedBatch], words: CorruptionVocabulary, seed: int
    ) -> BatchSource[PackedBatch]:
        return CorruptedSource(inner, self, words, seed)


class CorruptedSource(MappedSource):
    """Another source's batches, corrupted on the CPU as they are drawn."""

    def __init__(
        self, inner: BatchSource[PackedBatch], objective: Corrupting, words: CorruptionVocabulary, seed: int
    ) -> None:
        corrupt, settings = objective.corruption(words), objective.model_dump(mode="json")
        corruption = {"objective": objective.name, "seed": seed, **settings}
        super().__init__(inner, lambda batch: corrupted(batch, corrupt, seed), corruption=corruption)


def corrupted(batch: PackedBatch, corrupt: Corruption, seed: int) -> PackedBatch:
    """Corrupts a batch. DataError where its rows are not numbered."""
    if len(batch.rows) != len(batch.tokens):
        raise DataError("these batches cannot be corrupted: their source does not number its rows")
    return corrupt(batch, [np.random.default_rng((seed, row)) for row in batch.rows])


def documents_of(batch: PackedBatch) -> Iterator[tuple[PlacedDocument, Ids]]:
    """The documents of packed rows, in order, each with its tokens."""
    flat = batch.tokens.reshape(-1).numpy()
    for document in batch.placement.documents:
        yield document, flat[document.start : document.stop]


def relaid(batch: BatchT, documents: Sequence[Sequence[int] | Ids], of_each: int = 1) -> BatchT:
    """The batch with other tokens in each document's place, each predicted from those before it; rows are as long as
    the longest. of_each: number of documents, one after the other, that replace each document."""
    relaid_rows = rows_of(batch, documents, of_each)
    changed = {field.name for field in fields(PackedBatch)} - {"ids", "rows", "further_counts"}
    return replace(batch, **{name: getattr(relaid_rows, name) for name in changed})


def rows_of(batch: PackedBatch, documents: Sequence[Sequence[int] | Ids], of_each: int = 1) -> PackedBatch:
    """New documents, `of_each` for each of the batch's, in the rows of those they replace."""
    rows: list[list[DocumentPiece]] = [[] for _ in batch.tokens]
    places = [place for place in batch.placement.documents for _ in range(of_each)]
    for number, (document, ids) in enumerate(zip(places, documents, strict=True)):
        rows[document.row].append(DocumentPiece(number, 0, len(ids)))
    longest = max(sum(map(len, row)) for row in rows)
    return rows_batch(rows, documents, [document_id for document_id in batch.ids for _ in range(of_each)], longest)
