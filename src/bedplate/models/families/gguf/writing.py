"""Families of GGUF's format. Metadata that is written is read back at once: what an architecture has no key for is
refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.family import Family
from bedplate.models.families.field_map import Field, FieldMap
from bedplate.models.families.gguf.metadata import Metadata, divisors_of, named, rope_tables
from bedplate.models.families.weights import WeightMap
from bedplate.models.specs.transformer import TransformerSpec

_SINGLE = 1e-5
"""Relative precision of the numbers in metadata, and of what is computed from them."""


def gguf_family(
    architecture: str,
    rows: Sequence[Field],
    weights: WeightMap,
    *partners: str,
    needs_head: bool = False,
    tables: Callable[[Any], Mapping[str, Any]] = rope_tables,
    **options: Any,
) -> Family:
    """A family of GGUF's format. rows: of its metadata; partners: its names in Hugging Face's format; needs_head:
    llama.cpp does not load the architecture with a tied head; tables: the tensors that say how positions turn."""
    field_map = FieldMap(lambda config: Metadata(config, architecture), tuple(rows))

    def to_gguf(spec: TransformerSpec) -> dict[str, Any]:
        if needs_head and spec.tied_head:
            raise UnsupportedModelError(f"GGUF's {architecture} needs a head of its own; this model's is its embedding")
        metadata = named(architecture, field_map.to_config(spec))
        names, stored_tables = _telling_names(spec), tables(spec)
        stored = {**metadata, "tensor_names": names, "embedding_rows": spec.vocab_size, "tables": stored_tables}
        restored = field_map.to_spec(stored)
        for name, value in restored.flat().items():
            meant = spec.flat()[name]
            if not _is_close(value, meant) and not (name == "rope" and _turns_alike(restored, spec)):
                raise UnsupportedModelError(
                    f"GGUF's {architecture} cannot say that {name} is {meant!r}: it would be {value!r}. "
                    "Export a Hugging Face directory instead"
                )
        return metadata

    hf = tuple(("hf", name) for name in partners)
    return Family(("gguf", architecture), field_map.to_spec, to_gguf, weights, hf, tables=tables, **options)


def _turns_alike(first: TransformerSpec, second: TransformerSpec) -> bool:
    """Whether two ropes, one of them of Llama-3's scaling, divide the frequencies by the same numbers."""
    divisors = [divisors_of(spec) for spec in (first, second)]
    ropes = [spec.position.rope for spec in (first, second)]
    equal_theta = len({None if rope is None else rope.theta for rope in ropes}) == 1 and None not in ropes
    return equal_theta and divisors[0] is not None and _is_close(*(tuple(factors or ()) for factors in divisors))


def _telling_names(spec: TransformerSpec) -> set[str]:
    """The tensors whose presence says what metadata does not."""
    presence = {
        "output.weight": not spec.tied_head,
        "blk.0.attn_q.bias": spec.attention.bias,
        "blk.0.attn_k.bias": spec.has_key_bias,
        "blk.0.attn_output.bias": spec.has_output_bias,
        "blk.0.ffn_up.bias": spec.feedforward.bias,
        "blk.0.layer_output_scale.weight": spec.output_scales,
        "blk.0.exp_probs_b.bias": spec.experts is not None and spec.experts.selection_bias,
        **{f"blk.{layer}.attn_v.weight": not spec.keys_are_values(layer) for layer in range(spec.layers)},
    }
    return {name for name, is_there in presence.items() if is_there}


def _is_close(first: Any, second: Any) -> bool:
    """Equal, but for what single precision loses."""
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=_SINGLE)
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(_is_close, first, second))
    if is_dataclass(first) and type(first) is type(second):
        return all(_is_close(getattr(first, field.name), getattr(second, field.name)) for field in fields(first))
    return bool(first == second)
