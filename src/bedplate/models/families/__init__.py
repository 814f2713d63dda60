"""One file per published family; FAMILIES is keyed (format, name in that format). Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families import bert, llama
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import TransformerSpec


@dataclass(frozen=True)
class Family:
    """A published family in one format: config ↔ spec, and its weight-name table.

    `to_spec` raises UnsupportedModelError naming any field it cannot express; `to_config` is its inverse.
    """

    key: tuple[str, str]
    to_spec: Callable[[Mapping[str, Any]], TransformerSpec]
    to_config: Callable[[TransformerSpec], dict[str, Any]]
    weights: WeightMap


FAMILIES: dict[tuple[str, str], Family] = {
    ("hf", "llama"): Family(("hf", "llama"), llama.from_hf, llama.to_hf, llama.HF_WEIGHTS),
    ("hf", "bert"): Family(("hf", "bert"), bert.from_hf, bert.to_hf, bert.HF_WEIGHTS),
    ("gguf", "llama"): Family(("gguf", "llama"), llama.from_gguf, llama.to_gguf, llama.GGUF_WEIGHTS),
}


def find_family(format_: str, name: str | None, where: str) -> Family:
    """The family of this name in this format, or UnsupportedModelError listing the supported ones."""
    # What a damaged config calls its type can be anything, a list too.
    found = FAMILIES.get((format_, str(name)))
    if found is None:
        known = ", ".join(sorted(key[1] for key in FAMILIES if key[0] == format_))
        raise UnsupportedModelError(f"{where}: model type {name!r} is not supported; supported are: {known}")
    return found
