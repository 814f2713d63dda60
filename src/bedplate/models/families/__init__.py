"""One file per published family; FAMILIES is keyed (format, name in that format). Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families import bart, bert, llama, marian, t5
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs import TextSpec


def _as_configured(spec: Any, names: Collection[str]) -> Any:
    return spec


@dataclass(frozen=True)
class Family:
    """A published family in one format: config ↔ spec, and the rules of its weights.

    `to_spec` raises UnsupportedModelError naming any field it cannot express; `to_config` is its inverse. `by_names`
    adds to a spec what only the names of a checkpoint's tensors say. `weights_of`: the rules of one spec, where names
    depend on it. `partners` are the keys of the same family in other formats.
    """

    key: tuple[str, str]
    to_spec: Callable[[Mapping[str, Any]], TextSpec]
    to_config: Callable[[Any], dict[str, Any]]
    weights: WeightMap
    partners: tuple[tuple[str, str], ...] = ()
    by_names: Callable[[Any, Collection[str]], Any] = _as_configured
    weights_of: Callable[[Any], WeightMap] | None = None

    @property
    def name(self) -> str:
        """What skins and reports call it: Hugging Face's name, where it has one."""
        return next((name for format_, name in (self.key, *self.partners) if format_ == "hf"), self.key[1])

    def of(self, spec: TextSpec) -> Family:
        """The family with the rules of this spec's weights."""
        return self if self.weights_of is None else replace(self, weights=self.weights_of(spec))

    def in_format(self, format_: str) -> Family | None:
        """The same family in that format, or None where it has none."""
        if format_ == self.key[0]:
            return self
        return next((FAMILIES[key] for key in (self.key, *self.partners) if key[0] == format_), None)


_HF_BERT, _HF_LLAMA, _GGUF_LLAMA = ("hf", "bert"), ("hf", "llama"), ("gguf", "llama")
_HF_T5, _HF_BART, _HF_MARIAN = ("hf", "t5"), ("hf", "bart"), ("hf", "marian")

FAMILIES: dict[tuple[str, str], Family] = {
    _HF_LLAMA: Family(_HF_LLAMA, llama.from_hf, llama.to_hf, llama.HF_WEIGHTS, (_GGUF_LLAMA,)),
    _HF_BERT: Family(_HF_BERT, bert.from_hf, bert.to_hf, bert.HF_WEIGHTS, by_names=bert.by_names),
    _HF_T5: Family(_HF_T5, t5.from_hf, t5.to_hf, t5.HF_WEIGHTS, by_names=t5.by_names, weights_of=t5.weights_of),
    _HF_BART: Family(_HF_BART, bart.from_hf, bart.to_hf, bart.HF_WEIGHTS, by_names=bart.by_names),
    _HF_MARIAN: Family(_HF_MARIAN, marian.from_hf, marian.to_hf, marian.HF_WEIGHTS, by_names=marian.by_names),
    _GGUF_LLAMA: Family(_GGUF_LLAMA, llama.from_gguf, llama.to_gguf, llama.GGUF_WEIGHTS, (_HF_LLAMA,)),
}


def find_family(format_: str, name: str | None, where: str) -> Family:
    """The family of this name in this format, or UnsupportedModelError listing the supported ones."""
    # What a damaged config calls its type can be anything, a list too.
    found = FAMILIES.get((format_, str(name)))
    if found is None:
        known = ", ".join(sorted(key[1] for key in FAMILIES if key[0] == format_))
        raise UnsupportedModelError(f"{where}: model type {name!r} is not supported; supported are: {known}")
    return found
