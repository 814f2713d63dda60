"""A published model family in one format: its config, its weights, its examples, as plain data. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bedplate.models.families.decoders import LLAMA_WEIGHTS
from bedplate.models.families.field_map import Field, FieldMap, written
from bedplate.models.families.fields import HF_BOOKKEEPING, Fields
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs import TextSpec
from bedplate.models.specs.transformer import TransformerSpec


@dataclass(frozen=True)
class Family:
    """A published family in one format: config ↔ spec, and the rules of its weights.

    to_spec raises UnsupportedModelError naming any field that it cannot express; to_config is its inverse.
    partners: keys of the same family in other formats.
    by_names: adds to a spec what only the names of a checkpoint's tensors say.
    examples: tiny configurations of at least two shapes, on which the family is proved against transformers
        (`bedplate families --check`, tests/parity); a GGUF family's are its partner's.
    noise: how far the reference's gradients are from exact, relative to a parameter's largest, where it computes in
        float32 in a model of any dtype.
    weights_of: the rules of one spec, where names depend on it; weights_by: as far as our names of some parameters do.
    sibling: the family of one spec, where one name in the format stands for several (GGUF's llama for Mixtral as well);
        None where it is this one.
    tables: small tensors of the format that say what the spec does (GGUF's rope_freqs), by name.
    with_masked_head: a spec with the head that the family's encoders are pretrained with.
    whole: endings of the names of tables that the reference reads in single precision, whatever the matrices' type.
    """

    key: tuple[str, str]
    to_spec: Callable[[Mapping[str, Any]], TextSpec]
    to_config: Callable[[Any], dict[str, Any]]
    weights: WeightMap
    partners: tuple[tuple[str, str], ...] = ()
    by_names: Callable[[Any, Collection[str]], Any] = lambda spec, names: spec
    examples: tuple[Mapping[str, Any], ...] = ()
    noise: float = 0.0
    weights_of: Callable[[Any], WeightMap] | None = None
    weights_by: Callable[[Collection[str]], WeightMap] | None = None
    sibling: Callable[[Any], Family | None] | None = None
    tables: Callable[[Any], Mapping[str, Sequence[float]]] = lambda spec: {}
    with_masked_head: Callable[[Any], Any] | None = None
    whole: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What skins and reports call it: Hugging Face's name, where it has one."""
        return next((name for format_, name in (self.key, *self.partners) if format_ == "hf"), self.key[1])

    def weights_with(self, names: Collection[str]) -> WeightMap:
        """The rules for parameters of these names of ours, such as an adapter's."""
        return self.weights if self.weights_by is None else self.weights_by(names)

    def of(self, spec: TextSpec) -> Family:
        """The family of this spec, with the rules of its weights."""
        sibling = None if self.sibling is None else self.sibling(spec)
        if sibling is not None:
            return sibling.of(spec)
        return self if self.weights_of is None else replace(self, weights=self.weights_of(spec))


def hf_family(
    model_type: str,
    architecture: str,
    fields: Sequence[Field],
    *partners: str,
    weights: WeightMap = LLAMA_WEIGHTS,
    prepare: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    make: Callable[..., Any] = TransformerSpec.from_fields,
    **options: Any,
) -> Family:
    """A family of Hugging Face's format whose config is a list of fields. architecture: the class that it names.
    partners: names in GGUF files. weights: where they are not named as llama's. prepare: makes today's spelling of
    older ones. make: the spec of its flat fields. options: of the Family."""
    origin = f"config.json ({model_type})"
    rows = (written(architectures=[architecture], model_type=model_type), *fields)
    field_map = FieldMap(
        lambda config: Fields(config if prepare is None else prepare(config), origin), rows, make, HF_BOOKKEEPING
    )
    gguf = tuple(("gguf", name) for name in partners)
    return Family(("hf", model_type), field_map.to_spec, field_map.to_config, weights, gguf, **options)
