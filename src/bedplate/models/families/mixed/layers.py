"""What configs and tensors of these families share: which layers are of which kind, and convolutions' weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.weights import Rule, Tensors
from bedplate.models.specs.transformer import TransformerSpec


def state_layers(types: Sequence[str], layers: int, stateful: Mapping[str, bool], origin: str) -> tuple[bool, ...]:
    """Which layers keep a state, by their `layer_types`; the shortest list that makes them when it is repeated."""
    if len(types) != layers:
        raise UnsupportedModelError(f"{origin}: {len(types)} layer_types for {layers} layers")
    unknown = next((layer_type for layer_type in types if layer_type not in stateful), None)
    if unknown is not None:
        supported = ", ".join(repr(name) for name in stateful)
        raise UnsupportedModelError(f"{origin}: a layer of type {unknown!r} is not supported (only {supported})")
    flags = tuple(stateful[block_type] for block_type in types)
    size = next(n for n in range(1, layers + 1) if all(flag == flags[i % n] for i, flag in enumerate(flags)))
    return flags[:size]


def layer_types(spec: TransformerSpec, state: str, attention: str) -> list[str]:
    """The inverse."""
    return [attention if spec.mixer(layer) == "attention" else state for layer in range(spec.layers)]


def convolution(ours: str, theirs: str) -> Rule:
    """Weights [features, width] of a convolution, in theirs [features, 1, width]."""

    def forward(tensors: Tensors, spec: TransformerSpec) -> Tensors:
        return [tensor[:, None] for tensor in tensors]

    def inverse(tensors: Tensors, spec: TransformerSpec) -> Tensors:
        return [tensor[:, 0] for tensor in tensors]

    return Rule((ours,), (theirs,), forward, inverse)
