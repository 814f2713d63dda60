"""Reading another format's config without dropping anything: each field is taken, checked, or named in an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bedplate.core.errors import UnsupportedModelError


class Fields:
    """A config being consumed. `finish()` raises for whatever nobody asked about."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._left = dict(config)
        self._where = where

    def take(self, name: str, default: Any = None) -> Any:
        """The field's value, or `default` where it is absent."""
        return self._left.pop(name, default)

    def need(self, name: str) -> Any:
        """The field's value; absent is an error."""
        if self._left.get(name) is None:
            raise UnsupportedModelError(f"{self._where}: the field {name!r} is missing; the model cannot be built")
        return self._left.pop(name)

    def choice(self, name: str, *allowed: Any) -> Any:
        """The field's value, which must be one of these; the first where it is absent."""
        value = self._left.pop(name, allowed[0])
        if value not in allowed:
            shown = " or ".join(repr(choice) for choice in allowed)
            raise UnsupportedModelError(f"{self._where}: {name} = {value!r} is not supported (only {shown})")
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """The field, where present, must have one of these values: others would change the model's outputs."""
        self.choice(name, *allowed)

    def ignore(self, names: Iterable[str]) -> None:
        """Fields that do not change what the model computes (training hints, bookkeeping)."""
        for name in names:
            self._left.pop(name, None)

    def finish(self) -> None:
        """Refuses what is left, by name."""
        if not self._left.get("pruned_heads"):  # by layer, and as a rule none
            self._left.pop("pruned_heads", None)
        unknown = sorted(name for name, value in self._left.items() if value is not None)
        if unknown:
            raise UnsupportedModelError(
                f"{self._where}: unsupported field{'s' if len(unknown) > 1 else ''} "
                f"{', '.join(repr(name) for name in unknown)}; ignoring them could change the model's outputs"
            )


# How a text is written, which older files say here and newer ones in generation_config.json.
GENERATION = (
    *("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "force_bos_token_to_be_generated"),
    *("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "max_length", "min_length", "num_beams"),
    *("length_penalty", "early_stopping", "no_repeat_ngram_size", "num_return_sequences", "do_sample", "temperature"),
    *("top_k", "top_p", "repetition_penalty"),
)

# What transformers writes into any config.json that says nothing about the computation at inference.
HF_BOOKKEEPING = (
    *GENERATION,
    "architectures",
    "model_type",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "_name_or_path",
    "_attn_implementation_autoset",
    "attn_implementation",
    "initializer_range",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "cls_token_id",
    "return_dict",
    "output_hidden_states",
    "output_attentions",
    "id2label",
    "label2id",
    "problem_type",
    "chunk_size_feed_forward",
    "gradient_checkpointing",
    "is_encoder_decoder",
    "auto_map",
    "transformers.js_config",
    # What wrote the file; a length that texts were cut to; a token's number, which is the tokenizer's.
    *("unsloth_fixed", "unsloth_version", "max_sequence_length", "unk_token_id"),
    # What it was tuned for; a number of labels that has another name today; whose tokenizer it is; how it was once run.
    *("finetuning_task", "_num_labels", "tokenizer_class", "_flash_attn_2_enabled"),
)
