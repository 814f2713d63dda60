"""What configs and tensors of these families share: which layers are of which kind, and convolutions' weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bedplate.models.families.decoders import check_types, shortest
from bedplate.models.families.field_map import Field, Values
from bedplate.models.families.fields import Fields
from bedplate.models.families.weights import Rule, Tensors
from bedplate.models.specs.transformer import TransformerSpec


def state_layers(
    mixer: Field,
    types: Mapping[str, bool],
    default: Callable[[Fields, Values], Sequence[str]],
    older: str | None = None,
) -> Field:
    """Which layers keep a state, and what mixes their tokens. mixer: reads `state`. types: the types of layers, and
    whether they keep one; the first that does and the first that does not are written. default: the types where the
    config has none, also not under the name `older`."""
    state, attention = (next(name for name, keeps in types.items() if keeps is stateful) for stateful in (True, False))

    def read(fields: Fields, values: Values) -> Values:
        layer_types, older_types = fields.sequence("layer_types"), fields.sequence(older) if older else None
        usual = default(fields, values)
        layer_types = next((listed for listed in (layer_types, older_types) if listed is not None), usual)
        check_types(layer_types, values["layers"], types, fields.origin)
        pattern = shortest([types[layer_type] for layer_type in layer_types], False)
        state_fields = mixer.read(fields, values)
        return {**state_fields, "state_layers": pattern} if pattern else {}

    def write(flat: Values, spec: TransformerSpec) -> Values:
        named = [attention if spec.mixer(layer) == "attention" else state for layer in range(spec.layers)]
        return {**mixer.write(flat, spec), "layer_types": named}

    return Field(read, write)


def convolution(ours: str, theirs: str) -> Rule:
    """Weights [features, width] of a convolution, in theirs [features, 1, width]."""

    def forward(tensors: Tensors, spec: TransformerSpec) -> Tensors:
        return [tensor[:, None] for tensor in tensors]

    def inverse(tensors: Tensors, spec: TransformerSpec) -> Tensors:
        return [tensor[:, 0] for tensor in tensors]

    return Rule((ours,), (theirs,), forward, inverse)
