"""Which way of running a base's blocks is faster on this machine: a short measurement, kept on disk.

Torch in bfloat16 and the native decoder in each weight format run the same passes of 1, 16 and 256 tokens through two
of the base's blocks, taking turns; the head is left out. The best of each way counts, so that other work on the
machine disturbs less. Only bfloat16 bases that the native decoder supports can be calibrated.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import nn

from bedplate.core.errors import UsageError
from bedplate.core.files import atomic_write, bedplate_home, sha256_json
from bedplate.inference.native.compiler import cpu_name
from bedplate.inference.native.decoder import NativeDecoder, WeightFormat, unsupported
from bedplate.inference.native.library import load
from bedplate.models.checkpoints.base import Base
from bedplate.models.decoder import Decoder
from bedplate.models.inputs import Inputs

Way = Literal["torch", "bfloat16", "int8", "int4"]
COUNTS = (1, 16, 256)
_BLOCKS, _SECONDS, _VOCABULARY = 2, 1.0, 64
_STORED: dict[str, WeightFormat] = {"q4_0": "int4", "q4_1": "int4", "q8_0": "int8"}


@dataclass(frozen=True)
class Calibration:
    """Tokens per second through all of a base's blocks, by way and by tokens of a pass."""

    speeds: Mapping[Way, Mapping[int, float]]

    def fastest(self, ways: Sequence[Way], tokens: int = 1) -> Way:
        """The fastest of some ways for passes of so many tokens (one of COUNTS)."""
        return max(ways, key=lambda way: self.speeds[way][tokens])

    def never_slower(self, weights: WeightFormat) -> bool:
        """Whether native passes of any size were no slower than torch's."""
        return all(self.speeds[weights][count] >= self.speeds["torch"][count] for count in COUNTS)


def calibrated(base: Base, threads: int | None = None) -> Calibration:
    """The measurement for this machine, a base's shape and the number of threads (default: torch's): read, or made
    now.

    Raises UsageError where the native decoder cannot run the base.
    """
    reason, library = unsupported(base.model, base.dtype, base.device), load()
    if reason is not None or isinstance(library, str) or not isinstance(base.model, Decoder):
        raise UsageError(f"{base.name} cannot be calibrated: {reason or library}")
    count = threads or torch.get_num_threads()
    key = {
        "cpu": cpu_name(),
        "threads": count,
        "library": library.digest,
        "torch": str(torch.__version__),
        "spec": base.spec.key(),
    }
    path = bedplate_home() / "machine" / f"calibration-{sha256_json(key)[:16]}.json"
    try:
        return _parse(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or a damaged one: measured again
    found = _measure(base.model, count)
    atomic_write(path, json.dumps({**key, "speeds": found.speeds}, indent=2) + "\n")
    return found


def fastest_as_stored(base: Base) -> Way:
    """The fastest way to decode on weights that are the checkpoint's own: bfloat16, or the integers of a GGUF whose
    blocks are all taken as they are. Torch where the native decoder cannot run the base."""
    if unsupported(base.model, base.dtype, base.device) is not None:
        return "torch"
    blocks = set(base.stored_dtype.split("+")) - {"f32", "f16", "bf16"} if base.family.key[0] == "gguf" else set()
    ways: list[Way] = ["torch", "bfloat16"]
    if blocks and blocks <= set(_STORED):
        # Blocks of 8 bits stay what they are beside those of 4.
        ways.append("int4" if "int4" in {_STORED[kind] for kind in blocks} else "int8")
    return calibrated(base).fastest(ways)


def _parse(record: Mapping[str, Any]) -> Calibration:
    speeds = {way: {count: float(record["speeds"][way][str(count)]) for count in COUNTS} for way in get_args(Way)}
    return Calibration(cast("dict[Way, dict[int, float]]", speeds))


def _measure(model: Decoder, threads: int) -> Calibration:
    short = _first_blocks(model)
    spec = short.spec
    shape = (1, spec.kv_heads, max(COUNTS), spec.head_dim)
    keys, values = ([torch.zeros(shape, dtype=torch.bfloat16) for _ in range(spec.layers)] for _ in range(2))
    runs: dict[tuple[Way, int], Callable[[], object]] = {}
    for count in COUNTS:
        runs["torch", count] = _torch_run(short, count)
    for weights in get_args(WeightFormat):
        native = NativeDecoder(short, weights, threads=threads)
        for count in COUNTS:
            runs[weights, count] = _native_run(native, keys, values, count)
    best = dict.fromkeys(runs, float("inf"))
    until = time.perf_counter() + _SECONDS
    while time.perf_counter() < until or max(best.values()) == float("inf"):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    share = spec.layers / model.spec.layers
    ways: tuple[Way, ...] = get_args(Way)
    return Calibration({way: {count: share * count / best[way, count] for count in COUNTS} for way in ways})


def _first_blocks(model: Decoder) -> Decoder:
    """A decoder of the first blocks, which it shares with `model`, and of a small vocabulary."""
    short = Decoder(model.spec.with_(layers=min(_BLOCKS, model.spec.layers), vocab_size=_VOCABULARY), "meta")
    rows = model.embedding.weight.detach()
    short.embedding.weight = nn.Parameter(rows[torch.arange(_VOCABULARY) % len(rows)].clone(), requires_grad=False)
    short.layers = model.layers[: short.spec.layers]
    short.norm = model.norm
    if short.lm_head is not None:
        short.lm_head.weight = short.embedding.weight
    return short.eval()


def _torch_run(model: Decoder, count: int) -> Callable[[], object]:
    tokens = torch.arange(count)[None] % _VOCABULARY

    def run() -> None:
        with torch.inference_mode():
            model(Inputs(tokens), depth=model.spec.layers)

    return run


def _native_run(
    native: NativeDecoder, keys: list[torch.Tensor], values: list[torch.Tensor], count: int
) -> Callable[[], object]:
    tokens = [token % _VOCABULARY for token in range(count)]
    return lambda: native.forward(tokens, [0] * count, range(count), keys, values, [], depth=native.spec.layers)
