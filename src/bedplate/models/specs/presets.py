"""Published models by name. Counts beside a spec are the publisher's own, as printed."""

from __future__ import annotations

from dataclasses import dataclass

from bedplate.models.specs import Spec
from bedplate.models.specs.transformer import Rope, TransformerSpec


@dataclass(frozen=True)
class Preset:
    """A published model. total, active: parameters as its publisher prints them (None: not printed); source: where."""

    spec: Spec
    source: str
    total: float | None = None
    active: float | None = None


def llama(
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    feedforward: int,
    context: int,
    vocab: int = 32_000,
    theta: float = 10_000.0,
    tied: bool = False,
) -> TransformerSpec:
    return TransformerSpec(
        "decoder",
        vocab,
        hidden,
        layers,
        heads,
        kv_heads,
        hidden // heads,
        feedforward,
        context,
        rope=Rope(theta),
        tied_head=tied,
    )


PRESETS: dict[str, Preset] = {
    "llama-2-7b": Preset(llama(4096, 32, 32, 32, 11008, 4096), "https://arxiv.org/abs/2307.09288", 7e9),
    "llama-2-70b": Preset(llama(8192, 80, 64, 8, 28672, 4096), "https://arxiv.org/abs/2307.09288", 70e9),
    "llama-3.1-8b": Preset(llama(4096, 32, 32, 8, 14336, 131072, 128256, 5e5), "https://arxiv.org/abs/2407.21783", 8e9),
    "llama-3.1-70b": Preset(
        llama(8192, 80, 64, 8, 28672, 131072, 128256, 5e5), "https://arxiv.org/abs/2407.21783", 70e9
    ),
    "llama-3.1-405b": Preset(
        llama(16384, 126, 128, 8, 53248, 131072, 128256, 5e5), "https://arxiv.org/abs/2407.21783", 405e9
    ),
    "smollm2-135m": Preset(
        llama(576, 30, 9, 3, 1536, 8192, 49152, 1e5, True), "https://arxiv.org/abs/2502.02737", 135e6
    ),
}
