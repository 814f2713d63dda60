"""An encoder–decoder as data: T5 (text to text), Whisper (sound to text)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.specs.flat import plain_fields
from bedplate.models.specs.media import AudioSpec
from bedplate.models.specs.parts import Classifier, Experts
from bedplate.models.specs.transformer import TransformerSpec


@dataclass(frozen=True)
class EncoderDecoderSpec:
    """`decoder` attends to `encoder`'s states in every layer (its `cross_size` is their size).

    shared_embedding: both read one token table (T5); otherwise each has its own, of a vocabulary of its own (Marian's
    translators with two). Whether the head is tied to the decoder's is the decoder's `tied_head`.
    """

    encoder: TransformerSpec | AudioSpec
    decoder: TransformerSpec
    shared_embedding: bool = False

    def __post_init__(self) -> None:
        if self.decoder.kind != "decoder" or self.stack.kind == "decoder":
            raise UnsupportedModelError(f"its sides cannot be of {self.stack.kind!r} and {self.decoder.kind!r}")
        if self.decoder.attention.cross_size != self.stack.hidden_size:
            raise UnsupportedModelError(
                f"cross_size is {self.decoder.attention.cross_size}, not the encoder's {self.stack.hidden_size}"
            )
        sides = (self.stack.vocab_size, self.stack.hidden_size), (self.decoder.vocab_size, self.decoder.hidden_size)
        if self.shared_embedding and sides[0] != sides[1]:
            raise UnsupportedModelError("shared_embedding needs the same vocab_size and hidden_size on both sides")

    @property
    def stack(self) -> TransformerSpec:
        """The encoder's blocks."""
        return self.encoder.tower if isinstance(self.encoder, AudioSpec) else self.encoder

    # What all specs of texts say, so that nobody need ask which one it is.

    @property
    def kind(self) -> Literal["encoder–decoder"]:
        return "encoder–decoder"

    @property
    def main(self) -> TransformerSpec:
        """The stack that writes."""
        return self.decoder

    @property
    def vocab_size(self) -> int:
        """Tokens that it writes."""
        return self.decoder.vocab_size

    @property
    def source_vocab_size(self) -> int:
        """Tokens that it reads."""
        return self.stack.vocab_size

    @property
    def hidden_size(self) -> int:
        """Features of the encoder's states: what is embedded, pooled and classified."""
        return self.stack.hidden_size

    @property
    def layers(self) -> int:
        """Blocks of the encoder."""
        return self.stack.layers

    @property
    def context_length(self) -> int:
        """Tokens that it reads at most; those that it writes are the decoder's own."""
        return self.stack.context_length

    @property
    def pooling(self) -> Literal["mean", "first", "last"]:
        return self.stack.pooling

    @property
    def tied_head(self) -> bool:
        return self.decoder.tied_head

    @property
    def experts(self) -> Experts | None:
        return self.decoder.experts

    @property
    def prediction_modules(self) -> int:
        return self.decoder.prediction_modules

    @property
    def classifier(self) -> Classifier | None:
        """None is built with one."""
        return None

    @property
    def masked_head(self) -> None:
        """It has another head."""

    @property
    def deepest(self) -> int:
        """Blocks of the deeper side."""
        return max(self.stack.layers, self.decoder.layers)

    @property
    def sequence_length(self) -> int:
        """Tokens of one sequence in a cache at most: what is read and what is written."""
        return self.stack.context_length + self.decoder.context_length

    def flat(self) -> dict[str, Any]:
        """Its fields by name, as `TransformerSpec.flat` has them."""
        return {"encoder": self.encoder, "decoder": self.decoder, "shared_embedding": self.shared_embedding}

    def key(self) -> dict[str, Any]:
        """The fields as plain data, for hashes."""
        encoder = plain_fields(self.encoder) if isinstance(self.encoder, AudioSpec) else self.encoder.key()
        return {"encoder": encoder, "decoder": self.decoder.key(), "shared_embedding": self.shared_embedding}
