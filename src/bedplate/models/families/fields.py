"""Reading another format's config without dropping anything: each field is taken, checked, or named in an error."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, overload

from bedplate.core.errors import UnsupportedModelError

T = TypeVar("T")
MAX_LAYERS = 1024
"""Blocks of one model at most; published ones have one or two hundred. Lists of that length are made before a config
can be compared with the checkpoint's tensors."""
_SPELLED = re.compile(
    r"\s*([+-]?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)|true|false|none|null)\s*", re.I
)
"""Texts that spell what JSON has without quotes."""
_CONFIG = "config.json"
_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxstring, _SHOWN.maxother, _SHOWN.maxlong = 3, 100, 100, 100


def shown(value: object) -> str:
    """A value of a file for a message, however large it is."""
    return _SHOWN.repr(value)


def located(error: UnsupportedModelError, origin: str) -> UnsupportedModelError:
    """The same error with the path of the config that it is of."""
    message = str(error)
    if message.startswith(origin):
        return error
    return UnsupportedModelError(
        origin + message.removeprefix(_CONFIG) if message.startswith(_CONFIG) else f"{origin}: {message}"
    )


class Fields:
    """A config being consumed. `finish()` raises for whatever nobody asked about.

    A number or a truth value in quotes is refused wherever it is taken: a program that reads it as a text takes "false"
    for true. UnsupportedModelError, naming the field, for every value of the wrong kind.
    """

    def __init__(self, config: Mapping[str, Any], origin: str) -> None:
        self._unread = dict(config)
        self.origin = origin

    def pop(self, name: str, default: Any = None) -> Any:
        """The field's value, or `default` where it is absent."""
        value = self._unread.pop(name, default)
        if isinstance(value, str) and _SPELLED.fullmatch(value):
            raise self._wrong(name, value, "it must be written without quotes")
        return value

    def need(self, name: str) -> Any:
        """The field's value; absent is an error."""
        if self._unread.get(name) is None:
            raise UnsupportedModelError(f"{self.origin}: the field {name!r} is missing; the model cannot be built")
        return self.pop(name)

    @overload
    def whole(self, name: str, default: int, *, null: int | None = None) -> int: ...
    @overload
    def whole(self, name: str, default: None = None, *, null: None = None) -> int | None: ...
    def whole(self, name: str, default: int | None = None, *, null: int | None = None) -> int | None:
        """A whole number. null: what stands for an explicit null, which is otherwise refused where there is a
        default."""
        value = self.pop(name, default)
        if value is None and (default is None or null is not None):
            return null
        return self._whole(name, value)

    def size(self, name: str) -> int:
        """A whole number of at least 1 that must be there."""
        number = self._whole(name, self.need(name))
        if number < 1:
            raise UnsupportedModelError(f"{self.origin}: {name} is {shown(number)}: it must be at least 1")
        return number

    def layers(self, name: str, default: int | None = None) -> int:
        """A number of blocks; it must be there where there is no default."""
        count = self.size(name) if default is None else self.whole(name, default, null=default)
        if count > MAX_LAYERS:
            raise UnsupportedModelError(f"{self.origin}: {name} asks for {shown(count)} layers; {MAX_LAYERS} are read")
        return count

    @overload
    def real(self, name: str, default: float) -> float: ...
    @overload
    def real(self, name: str, default: None = None) -> float | None: ...
    def real(self, name: str, default: float | None = None) -> float | None:
        """A number. An explicit null is refused where there is a default."""
        value = self.pop(name, default)
        return None if value is None and default is None else self._real(name, value)

    def need_real(self, name: str) -> float:
        """A number that must be there."""
        return self._real(name, self.need(name))

    def reals(self, name: str) -> tuple[float, ...]:
        """A list of numbers that must be there."""
        value = self.need(name)
        if not isinstance(value, list | tuple):
            raise self._wrong(name, value, "a list of numbers is wanted")
        return tuple(self._real(name, number) for number in value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false; null is false, as it is wherever transformers asks."""
        value = self.pop(name, default)
        if value is None:
            return False
        if not isinstance(value, bool) and value not in (0, 1):
            raise self._wrong(name, value, "true or false is wanted")
        return bool(value)

    def optional(self, name: str, default: int | None = None) -> int | None:
        """A whole number that an explicit null turns off."""
        value = self.pop(name, default)
        return None if value is None else self._whole(name, value)

    def part(self, name: str) -> dict[str, Any]:
        """An object; null is an empty one."""
        value = self.pop(name)
        if value is not None and not isinstance(value, Mapping):
            raise self._wrong(name, value, "an object is wanted")
        return dict(value or {})

    def sequence(self, name: str) -> list[Any] | None:
        """A list; None where it is absent or null."""
        value = self.pop(name)
        if value is not None and not isinstance(value, list | tuple):
            raise self._wrong(name, value, "a list is wanted")
        return None if value is None else list(value)

    def text(self, name: str, default: str) -> str:
        """A text, which may spell anything (a GGUF file's "none"); null and an empty one are the default."""
        value = self._unread.pop(name, None) or default
        if not isinstance(value, str):
            raise self._wrong(name, value, "a text is wanted")
        return value

    def named(self, name: str, default: str, table: Mapping[str, T]) -> T:
        """What the field's text stands for, which must be in the table; the default's where it is absent."""
        text = self.text(name, default)
        Fields({name: text}, self.origin).only(name, *table)
        return table[text]

    def choice(self, name: str, *allowed: Any) -> Any:
        """The field's value, which must be one of these; the first where it is absent."""
        value = self._unread.pop(name, allowed[0])
        if value not in allowed:
            choices = " or ".join(repr(choice) for choice in allowed)
            raise UnsupportedModelError(f"{self.origin}: {name} = {shown(value)} is not supported (only {choices})")
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """The field, where present, must have one of these values: others would change the model's outputs."""
        self.choice(name, *allowed)

    def ignore(self, names: Iterable[str]) -> None:
        """Fields that do not change what the model computes (training hints, bookkeeping)."""
        for name in names:
            self._unread.pop(name, None)

    def finish(self) -> None:
        """Refuses what is left, by name."""
        if not self._unread.get("pruned_heads"):  # by layer, and as a rule none
            self._unread.pop("pruned_heads", None)
        unknown = sorted(name for name, value in self._unread.items() if value is not None)
        if unknown:
            names = f"field{'s' if len(unknown) > 1 else ''} {', '.join(map(shown, unknown))}"
            raise UnsupportedModelError(f"{self.origin}: unsupported {names}; it could change the model's outputs")

    def _whole(self, name: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, value, "a whole number is wanted")
        return value

    def _real(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, value, "a number is wanted")
        if not math.isfinite(value):
            raise UnsupportedModelError(f"{self.origin}: {name} is {value}: it must be a finite number")
        return float(value)

    def _wrong(self, name: str, value: Any, requirement: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self.origin}: {name} = {shown(value)} is a value of the wrong kind; {requirement}: correct the file"
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
    *("architectures", "model_type", "attention_dropout", "transformers_version", "torch_dtype", "dtype"),
    *("_name_or_path", "_attn_implementation_autoset", "attn_implementation", "initializer_range", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "return_dict"),
    *("output_hidden_states", "output_attentions", "id2label", "label2id", "problem_type"),
    *("chunk_size_feed_forward", "gradient_checkpointing", "is_encoder_decoder", "auto_map", "trust_remote_code"),
    "transformers.js_config",
    # What wrote the file; a length that texts were cut to; a token's number, which is the tokenizer's.
    *("unsloth_fixed", "unsloth_version", "max_sequence_length", "unk_token_id"),
    # What it was tuned for; a number of labels that has another name today; whose tokenizer it is; how it was once run.
    *("finetuning_task", "_num_labels", "tokenizer_class", "_flash_attn_2_enabled"),
)
