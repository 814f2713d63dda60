"""What configs and tensors of these families share: which layers are of which kind, and convolutions' weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.families.weights import Rule, Tensors
from bedplate.models.specs.transformer import TransformerSpec


def state_layers(types: Sequence[str], layers: int, kinds: Mapping[str, bool], where: str) -> tuple[bool, ...]:
    """Which layers keep a state, by their `layer_types`; the shortest list that makes them when it is repeated."""
    if len(types) != layers:
        raise UnsupportedModelError(f"{where}: {len(types)} layer_types for {layers} layers")
    unknown = next((kind for kind in types if kind not in kinds), None)
    if unknown is not None:
        known = ", ".join(repr(kind) for kind in kinds)
        raise UnsupportedModelError(f"{where}: a layer of type {unknown!r} is not supported (only {known})")
    found = tuple(kinds[kind] for kind in types)
    size = next(n for n in range(1, layers + 1) if all(one == found[i % n] for i, one in enumerate(found)))
    return found[:size]


def layer_types(spec: TransformerSpec, state: str, attention: str) -> list[str]:
    """The inverse."""
    return [attention if spec.mixer(layer) == "attention" else state for layer in range(spec.layers)]


def convolution(ours: str, theirs: str) -> Rule:
    """Weights [features, width] of a convolution, in theirs [features, 1, width]."""

    def forward(tensors: Tensors, spec: TransformerSpec) -> Tensors:
        return [one[:, None] for one in tensors]

    def inverse(tensors: Tensors, spec: TransformerSpec) -> Tensors:
        return [one[:, 0] for one in tensors]

    return Rule((ours,), (theirs,), forward, inverse)
