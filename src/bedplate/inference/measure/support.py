"""Finds out what each family of models supports, by building its tiny examples and asking them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bedplate.adapters.table import ADAPTERS
from bedplate.inference.native.allowed import refused_field
from bedplate.models.build import build
from bedplate.models.families import FAMILIES, Family, in_format
from bedplate.models.families.multimodal import MULTIMODAL
from bedplate.models.layers.linear import Linear
from bedplate.models.model import Model
from bedplate.models.specs.transformer import TransformerSpec


@dataclass(frozen=True)
class Support:
    """The support of one family. can: what its outputs are for. adapters: those that attach to its models. kernel: None
    where the native CPU kernel runs every example, otherwise the field of a spec that it has no answer for. gguf: its
    name there, None where no file of it can be read or written. text_of: the multimodal checkpoints of which the text
    model is loaded as this family."""

    family: str
    kind: str
    can: tuple[str, ...]
    adapters: tuple[str, ...]
    kernel: str | None
    gguf: str | None
    text_of: tuple[str, ...]


def supported() -> Iterator[Support]:
    """Every family of Hugging Face's format, in the order of their table."""
    for (format_, _), family in FAMILIES.items():
        if format_ == "hf":
            yield _support(family)


def _support(family: Family) -> Support:
    specs = [family.to_spec(example) for example in family.examples]
    models = [build(spec, device="meta") for spec in specs]
    fields = [refused_field(spec) if isinstance(spec, TransformerSpec) else "encoder" for spec in specs]
    gguf = in_format(family, "gguf")
    return Support(
        family=family.name,
        kind=specs[0].kind,
        can=tuple(sorted(frozenset.intersection(*(model.can for model in models)))),
        adapters=tuple(name for name in ADAPTERS if all(_attaches(name, model) for model in models)),
        kernel=next((field for field in fields if field is not None), None),
        gguf=None if gguf is None else gguf.key[1],
        text_of=tuple(outer.name for outer in MULTIMODAL.values() if family.key[1] in outer.texts),
    )


def _attaches(name: str, model: Model) -> bool:
    on = ADAPTERS[name].on
    if on == "linears":
        return any(isinstance(module, Linear) for module in model.modules())
    if on == "inputs":  # before what a decoder continues
        return model.writes and not model.has_encoder
    return "embed" in model.can
