"""From a spec to the metadata of a GGUF file, read back at once: what an architecture has no key for is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.gguf.metadata import divisors_of, named, rope_tables
from bedplate.models.specs.transformer import TransformerSpec

_SINGLE = 1e-5
"""Relative precision of the numbers in metadata, and of what is computed from them."""


def writer(
    architecture: str,
    from_gguf: Callable[[Mapping[str, Any]], TransformerSpec],
    keys: Callable[[TransformerSpec], Mapping[str, Any]],
    *,
    needs_head: bool = False,
    tables: Callable[[TransformerSpec], Mapping[str, Any]] = rope_tables,
) -> Callable[[TransformerSpec], dict[str, Any]]:
    """The inverse of `from_gguf`. keys: of a spec, without the architecture's name. needs_head: llama.cpp does not load
    the architecture with a tied head. tables: the tensors that say how positions turn."""

    def to_gguf(spec: TransformerSpec) -> dict[str, Any]:
        if needs_head and spec.tied_head:
            raise UnsupportedModelError(f"GGUF's {architecture} needs a head of its own; this model's is its embedding")
        metadata = named(architecture, keys(spec))
        restored = from_gguf(
            {
                **metadata,
                "tensor_names": _telling_names(spec),
                "embedding_rows": spec.vocab_size,
                "tables": tables(spec),
            }
        )
        for name, meant in spec.flat().items():
            stored = restored.flat()[name]
            if not _is_close(stored, meant) and not (name == "rope" and _turns_alike(restored, spec)):
                raise UnsupportedModelError(
                    f"GGUF's {architecture} cannot say that {name} is {meant!r}: it would be {stored!r}. "
                    "Export a Hugging Face directory instead"
                )
        return metadata

    return to_gguf


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


def take_biases(names: Any) -> dict[str, Any]:
    """The fields of a spec that say which projections have biases, from the names of tensors."""
    queries, outputs = "blk.0.attn_q.bias" in names, "blk.0.attn_output.bias" in names
    return {
        "attention_bias": queries,
        "output_bias": None if outputs == queries else outputs,
        "feedforward_bias": "blk.0.ffn_up.bias" in names,
    }


def _is_close(first: Any, second: Any) -> bool:
    """Equal, but for what single precision loses."""
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=_SINGLE)
    if isinstance(first, tuple) and isinstance(second, tuple):
        return len(first) == len(second) and all(map(_is_close, first, second))
    if is_dataclass(first) and type(first) is type(second):
        return all(_is_close(getattr(first, field.name), getattr(second, field.name)) for field in fields(first))
    return bool(first == second)
