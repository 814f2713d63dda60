"""LongRoPE's extended context (https://arxiv.org/abs/2402.13753), for a whole base.

A sequence that grows past the original context would need all its keys rotated anew, cached ones included.
So a base ends there, as its files give it, or else has the long factors at every position, which is also what vLLM and
llama.cpp do where a longer context is asked for. transformers chooses by each sequence's length: past the original
context the two are equal, and short sequences differ.
"""

from __future__ import annotations

from dataclasses import replace

from bedplate.core.errors import UsageError
from bedplate.models.build import build
from bedplate.models.checkpoints.base import Base
from bedplate.models.specs.transformer import LongRopeScaling, TransformerSpec


def extended_context(base: Base) -> int | None:
    """The context that `with_long_context` would give it; None where there is no longer one."""
    scaling = _scaling(base)
    if scaling is None or scaling.is_uniform or scaling.extended_context <= base.spec.context_length:
        return None
    return scaling.extended_context


def with_long_context(base: Base) -> Base:
    """The same weights with the long factors at every position and the extended context. UsageError where the base has
    no context beyond its own."""
    spec, scaling, context = base.spec, _scaling(base), extended_context(base)
    if not isinstance(spec, TransformerSpec) or spec.position.rope is None or scaling is None or context is None:
        raise UsageError(
            f"{base.source} has no context beyond its {base.spec.context_length} tokens; leave --long-context out"
        )
    longer = spec.with_(
        context_length=context, rope=replace(spec.position.rope, scaling=replace(scaling, short=scaling.long))
    )
    model = build(longer, base.dtype, "meta")
    model.load_state_dict(base.model.state_dict(keep_vars=True), assign=True)
    model.requires_grad_(False)
    model.eval()
    return replace(base, spec=longer, raw_model=model)


def _scaling(base: Base) -> LongRopeScaling | None:
    rope = base.spec.position.rope if isinstance(base.spec, TransformerSpec) else None
    scaling = None if rope is None else rope.scaling
    return scaling if isinstance(scaling, LongRopeScaling) else None
