"""The weights of what surrounds or replaces a language model: stems, towers, projectors, diffusion transformers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from bedplate.economics.model.weight_list import Weight, affine, stack_weights
from bedplate.models.specs import AudioSpec, DiffusionSpec, MultimodalSpec, VisionSpec


@lru_cache(maxsize=64)
def audio_weights(spec: AudioSpec) -> tuple[Weight, ...]:
    """A stem of two convolutions with biases, and the tower."""
    hidden = spec.tower.hidden_size
    stem = (
        *affine("stem.0", spec.kernel * spec.mel_bins, hidden, True, per="input"),
        *affine("stem.1", spec.kernel * hidden, hidden, True),
    )
    return (*stem, *stack_weights(spec.tower))


@lru_cache(maxsize=64)
def vision_weights(spec: VisionSpec) -> tuple[Weight, ...]:
    """The patches' projection, the class token, the tower, and what makes one vector of it."""
    return (*_vision_stem(spec), *stack_weights(spec.tower), *_vision_end(spec))


def _vision_stem(spec: VisionSpec) -> Iterator[Weight]:
    hidden = spec.tower.hidden_size
    pixels = spec.patch_size**2 * spec.channels * spec.frames
    yield from affine("stem", pixels, hidden, spec.patch_bias, per="input")
    if spec.class_token:
        yield Weight("class_token", hidden, "vector")


def _vision_end(spec: VisionSpec) -> Iterator[Weight]:
    tower, hidden = spec.tower, spec.tower.hidden_size
    if spec.pooling == "linear":
        yield from affine("pooling", hidden, hidden, True, per="sequence")
    if spec.pooling == "map":
        yield Weight("pooling.query", hidden, "vector")
        for part in ("k", "v"):
            yield from affine(f"pooling.{part}", hidden, hidden, True)
        for part in ("q", "o"):
            yield from affine(f"pooling.{part}", hidden, hidden, True, per="sequence")
        yield Weight("pooling.norm", 2 * hidden, "vector")
        yield from affine("pooling.up", hidden, tower.feedforward.size, True, per="sequence")
        yield from affine("pooling.down", tower.feedforward.size, hidden, True, per="sequence")
    if spec.projection_size:
        yield Weight("projection", hidden * spec.projection_size, per="sequence")
    if spec.classes:
        yield from affine("classes", hidden, spec.classes, True, per="sequence")


@lru_cache(maxsize=64)
def projector_weights(spec: MultimodalSpec) -> tuple[Weight, ...]:
    """From the tower's states to the language model; its tokens are those that the language model sees."""
    part, tower = spec.projector, spec.vision.tower.hidden_size
    inputs, outputs = tower * part.merge**2, spec.language.hidden_size
    weights: list[Weight] = []
    if part.norm is not None:
        weights.append(Weight("projector.norm", tower * (2 if part.norm == "layer" else 1), "vector"))
    if part.hidden_size is None:
        weights.extend(affine("projector", inputs, outputs, part.bias))
    else:
        weights.extend(affine("projector.up", inputs, part.hidden_size, part.bias))
        weights.extend(affine("projector.down", part.hidden_size, outputs, part.bias))
    return tuple(weights)


@lru_cache(maxsize=64)
def diffusion_weights(spec: DiffusionSpec) -> tuple[Weight, ...]:
    """DiT, or MMDiT where there is text."""
    blocks = (
        replace(weight, layer=layer)
        for layer in range(spec.layers)
        for weight in (_mm_block(spec, layer) if spec.text is not None else _dit_stream(spec, "image", 6, True))
    )
    return (*_diffusion_stem(spec), *blocks, *_diffusion_end(spec))


def _diffusion_stem(spec: DiffusionSpec) -> Iterator[Weight]:
    hidden, text = spec.hidden_size, spec.text
    yield from affine("stem", spec.patch_size**2 * spec.latent_channels, hidden, True)
    yield from affine("timestep.up", spec.timestep_size, hidden, True, per="sequence")
    yield from affine("timestep.down", hidden, hidden, True, per="sequence")
    if spec.classes:
        yield Weight("classes", spec.classes * hidden, "table")
    if text is not None:
        yield from affine("pooled.up", text.pooled_size, hidden, True, per="sequence")
        yield from affine("pooled.down", hidden, hidden, True, per="sequence")
        yield from affine("context", text.size, hidden, True, per="source")


def _diffusion_end(spec: DiffusionSpec) -> Iterator[Weight]:
    hidden = spec.hidden_size
    yield from affine("end.modulation", hidden, 2 * hidden, True, per="sequence")
    yield from affine("end", hidden, spec.patch_size**2 * spec.out_channels, True)


def _mm_block(spec: DiffusionSpec, layer: int) -> Iterator[Weight]:
    yield from _dit_stream(spec, "image", 6, True)
    # After the last block nobody reads the text's states: there it has queries, keys and values, and no more.
    last = layer == spec.layers - 1
    for weight in _dit_stream(spec, "text", 2 if last else 6, not last):
        yield weight if weight.per == "sequence" else replace(weight, per="source")


def _dit_stream(spec: DiffusionSpec, name: str, modulations: int, goes_on: bool) -> Iterator[Weight]:
    """One stream's weights in a block. Its norms have no weights: the modulation gives them scale and shift."""
    hidden = spec.hidden_size
    yield from affine(f"{name}.modulation", hidden, modulations * hidden, True, per="sequence")
    for part in ("q", "k", "v"):
        yield from affine(f"{name}.{part}", hidden, hidden, True)
    if spec.qk_norm is not None:
        yield Weight(f"{name}.qk_norm", 2 * spec.head_dim, "vector")
    if goes_on:
        yield from affine(f"{name}.o", hidden, hidden, True)
        yield from affine(f"{name}.up", hidden, spec.feedforward_size, True)
        yield from affine(f"{name}.down", spec.feedforward_size, hidden, True)
