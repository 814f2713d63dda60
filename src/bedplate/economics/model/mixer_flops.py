"""What stands in the place of attention where layers keep a state: its weights, operations and activations.

A recurrence is counted token by token, as its formula stands: what is written into a head's matrix and what is read of
it, 2 operations a value each, and once more for the delta rule, which reads before it writes. Chunked forms do more.
"""

from __future__ import annotations

from collections.abc import Iterator

from bedplate.models.specs.parts import DeltaRule, Mamba2, ShortConvolution
from bedplate.models.specs.transformer import TransformerSpec

ATTENDING = ("attention", "latent")
"""Mixers that see every token by itself."""


def attends(spec: TransformerSpec, layer: int) -> bool:
    """Whether a layer has attention."""
    return spec.mixer(layer) in ATTENDING


def linear_maps(spec: TransformerSpec) -> Iterator[tuple[str, int, int, bool]]:
    """(name, inputs, outputs, bias) of each."""
    part, hidden = spec.state.mixer, spec.hidden_size
    if isinstance(part, ShortConvolution):
        yield "input", hidden, 3 * hidden, part.bias
        yield "output", hidden, hidden, part.bias
    elif isinstance(part, DeltaRule):
        inner = part.heads * part.value_dim
        sizes = {"qkv": part.channels, "gate": inner, "rate": part.heads, "step": part.heads}
        yield from ((name, hidden, size, False) for name, size in sizes.items())
        yield "output", inner, hidden, False
    elif isinstance(part, Mamba2):
        yield "input", hidden, part.inner + part.channels + part.heads, part.bias
        yield "output", part.inner, hidden, part.bias


def vectors(spec: TransformerSpec) -> Iterator[tuple[str, int]]:
    """(name, values) of what is no linear map."""
    part = spec.state.mixer
    if isinstance(part, ShortConvolution):
        yield "convolution", spec.hidden_size * (part.width + part.bias)
    elif isinstance(part, DeltaRule):
        yield "convolution", part.channels * part.width
        yield "decay", 2 * part.heads
        yield "norm", part.value_dim
    elif isinstance(part, Mamba2):
        yield "convolution", part.channels * (part.width + part.convolution_bias)
        yield "decay", 3 * part.heads
        yield "norm", part.inner


def recurrent_flops(spec: TransformerSpec) -> int:
    """Operations of one token in one layer, beside its linear maps."""
    part = spec.state.mixer
    if isinstance(part, DeltaRule):
        return 6 * part.heads * part.key_dim * part.value_dim
    return 4 * part.inner * part.state_dim if isinstance(part, Mamba2) else 0


def state_values(spec: TransformerSpec) -> int:
    """Values of one token that a layer keeps for its gradients: what goes into its linear maps and comes out of them,
    and what goes into the convolution's activation; the recurrence is computed again."""
    return sum(inputs + outputs for _, inputs, outputs, _ in linear_maps(spec))
