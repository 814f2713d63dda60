"""One file per published family; FAMILIES is keyed (format, name in that format). Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families import bert, llama, modernbert, roberta, xlm_roberta
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import TransformerSpec


def _as_configured(spec: TransformerSpec, names: Collection[str]) -> TransformerSpec:
    return spec


@dataclass(frozen=True)
class Family:
    """A published family in one format: config ↔ spec, and the rules of its weights.

    `to_spec` raises UnsupportedModelError naming any field it cannot express; `to_config` is its inverse. `by_names`
    adds to a spec what only the names of a checkpoint's tensors say. `partners` are the keys of the same family in
    other formats.
    """

    key: tuple[str, str]
    to_spec: Callable[[Mapping[str, Any]], TransformerSpec]
    to_config: Callable[[TransformerSpec], dict[str, Any]]
    weights: WeightMap
    partners: tuple[tuple[str, str], ...] = ()
    by_names: Callable[[TransformerSpec, Collection[str]], TransformerSpec] = _as_configured

    @property
    def name(self) -> str:
        """What skins and reports call it: Hugging Face's name, where it has one."""
        return next((name for format_, name in (self.key, *self.partners) if format_ == "hf"), self.key[1])

    def in_format(self, format_: str) -> Family | None:
        """The same family in that format, or None where it has none."""
        return next((FAMILIES[key] for key in (self.key, *self.partners) if key[0] == format_), None)


_HF_BERT, _HF_LLAMA, _GGUF_LLAMA = ("hf", "bert"), ("hf", "llama"), ("gguf", "llama")
_HF_ROBERTA, _HF_XLM_ROBERTA, _HF_MODERNBERT = ("hf", "roberta"), ("hf", "xlm-roberta"), ("hf", "modernbert")

FAMILIES: dict[tuple[str, str], Family] = {
    _HF_LLAMA: Family(_HF_LLAMA, llama.from_hf, llama.to_hf, llama.HF_WEIGHTS, (_GGUF_LLAMA,)),
    _HF_BERT: Family(_HF_BERT, bert.from_hf, bert.to_hf, bert.HF_WEIGHTS, by_names=bert.by_names),
    _HF_ROBERTA: Family(_HF_ROBERTA, roberta.from_hf, roberta.to_hf, roberta.HF_WEIGHTS, by_names=roberta.by_names),
    _HF_XLM_ROBERTA: Family(
        _HF_XLM_ROBERTA, xlm_roberta.from_hf, xlm_roberta.to_hf, xlm_roberta.HF_WEIGHTS, by_names=xlm_roberta.by_names
    ),
    _HF_MODERNBERT: Family(
        _HF_MODERNBERT, modernbert.from_hf, modernbert.to_hf, modernbert.HF_WEIGHTS, by_names=modernbert.by_names
    ),
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
