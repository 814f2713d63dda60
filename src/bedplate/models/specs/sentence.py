"""How a sentence encoder makes one vector of a text's hidden states (Sentence-BERT, https://arxiv.org/abs/1908.10084),
and what its publisher says of the texts that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.specs.checks import refuse

Pooling = Literal["mean", "first", "last", "max", "root_mean", "weighted_mean"]
"""root_mean: the sum over the square root of the count. weighted_mean: the n-th token counts n times (SGPT,
https://arxiv.org/abs/2202.08904)."""
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
DenseActivation = Literal["tanh", "identity", "relu", "gelu", "sigmoid"]


@dataclass(frozen=True)
class Dense:
    """An affine map with an activation."""

    inputs: int
    outputs: int
    bias: bool = True
    activation: DenseActivation = "tanh"


@dataclass(frozen=True)
class SentenceSpec:
    """Poolings side by side, then steps one after the other: maps, and "normalise" to unit length.

    pools_prompt: whether the prompt's tokens are pooled. max_tokens: what longer texts are cut to, where cutting is
    asked for; None: what the tokenizer says. lower: texts are written in small letters first. prompts: by name, what
    stands before a text; default_prompt: the one of a text for which none is asked. similarity: what two vectors are
    compared by.
    """

    poolings: tuple[Pooling, ...] = ("mean",)
    steps: tuple[Dense | Literal["normalise"], ...] = ()
    pools_prompt: bool = True
    max_tokens: int | None = None
    lower: bool = False
    prompts: tuple[tuple[str, str], ...] = ()
    default_prompt: str | None = None
    similarity: Similarity = "cosine"

    def __post_init__(self) -> None:
        refuse(not self.poolings, "a sentence encoder pools in at least one way")
        if self.default_prompt is not None and self.default_prompt not in dict(self.prompts):
            raise UnsupportedModelError(
                f"the default prompt {self.default_prompt!r} is not one of {list(dict(self.prompts))}"
            )

    @property
    def denses(self) -> tuple[Dense, ...]:
        """The maps among the steps."""
        return tuple(step for step in self.steps if isinstance(step, Dense))

    @property
    def unit_length(self) -> bool:
        """Whether the vectors have it."""
        return self.steps[-1:] == ("normalise",)

    def output_size(self, hidden_size: int) -> int:
        """Numbers of a vector. UnsupportedModelError where the steps do not fit each other."""
        size = hidden_size * len(self.poolings)
        for dense in self.denses:
            refuse(dense.inputs != size, f"a Dense of {dense.inputs} inputs cannot follow on {size} numbers")
            size = dense.outputs
        return size
