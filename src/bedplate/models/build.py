"""From a spec to a module."""

from __future__ import annotations

from typing import Any

import torch

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.decoder import Decoder
from bedplate.models.encoder import Encoder
from bedplate.models.encoder_decoder import EncoderDecoder
from bedplate.models.layers.block import BLOCK_FIELDS, FEEDFORWARDS, MIXERS
from bedplate.models.layers.feedforward import ACTIVATIONS
from bedplate.models.model import Model
from bedplate.models.specs import EncoderDecoderSpec, Spec
from bedplate.models.specs.flat import flat_defaults
from bedplate.models.specs.transformer import TransformerSpec

ARCHITECTURES: dict[str, type[Decoder | Encoder]] = {"decoder": Decoder, "encoder": Encoder}
"""By a spec's kind, the module of one stack; its `reads` says which fields it does something with."""


def build(spec: Spec, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> Model:
    """A module with random weights (from torch's global generator), or without storage on device "meta".

    Raises UnsupportedModelError, naming the field, for what a spec can say and no module can do.
    """
    if isinstance(spec, EncoderDecoderSpec):
        _check_sides(spec)
        return EncoderDecoder(spec, device, dtype)
    if not isinstance(spec, TransformerSpec):
        raise UnsupportedModelError(f"a model of {type(spec).__name__} cannot be built yet, only counted and priced")
    architecture = ARCHITECTURES.get(spec.kind)
    _check(spec, BLOCK_FIELDS if architecture is None else architecture.reads)
    assert architecture is not None
    return architecture(spec, device, dtype)


def _check_sides(spec: EncoderDecoderSpec) -> None:
    """Raises UnsupportedModelError where a side, or what binds the two, cannot be built."""
    if not isinstance(spec.encoder, TransformerSpec):
        raise UnsupportedModelError("an encoder–decoder that hears cannot be built yet, only counted and priced")
    for side in (spec.encoder, spec.decoder):
        if side.norm.placement not in ("pre", "post") or side.parallel:
            raise UnsupportedModelError(
                "a parallel side of an encoder–decoder, or one with such norms, cannot be built yet"
            )
        _check(side, EncoderDecoder.reads)


def _check(spec: TransformerSpec, reads: frozenset[str]) -> None:
    field = unbuildable(spec, reads)
    if field is not None:
        value: Any = spec.flat()[field]
        raise UnsupportedModelError(f"a {spec.kind} with {field} = {value!r} cannot be built yet, only counted")


def unbuildable(spec: TransformerSpec, reads: frozenset[str]) -> str | None:
    """The first field that asks for what its module, which reads these, does not do, or None if it can be built."""
    wrong = {
        "kind": spec.kind not in ARCHITECTURES,
        "activation": spec.feedforward.activation not in ACTIVATIONS and not _clamps_in_experts_only(spec),
        # Both parts would be normalised after the sum.
        "parallel": spec.parallel and spec.norm.placement == "post",
        "latent": any(spec.mixer(layer) not in MIXERS for layer in range(spec.layers)),
        "experts": any(spec.feedforward_kind(layer) not in FEEDFORWARDS for layer in range(spec.layers)),
    }
    wrong_field = next((name for name, is_wrong in wrong.items() if is_wrong), None)
    if wrong_field is not None:
        return wrong_field
    defaults = flat_defaults(type(spec))
    others = {name: value for name, value in spec.flat().items() if name not in reads | wrong.keys()}
    return next((name for name, value in others.items() if value != defaults[name]), None)


def _clamps_in_experts_only(spec: TransformerSpec) -> bool:
    """gpt-oss's gate is one of the experts'; dense feed-forwards and what layers are told of a token do not have it."""
    part = spec.experts
    experts_only = part is not None and not part.shared_size and all(map(spec.has_experts, range(spec.layers)))
    elsewhere = spec.layer_input_size > 0 or (part is not None and part.beside)
    return spec.feedforward.activation == "clamped_silu" and spec.feedforward.gated and experts_only and not elsewhere
