"""Compiles every kernel of ours for a device that need not be here; run as a program, as Triton is told at its import
whether it interprets."""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bedplate.inference.forward import triton_kernels as cache
from bedplate.models.layers.fused import triton_kernels as layers

INTEGERS = ("at", "place", "table", "span", "tile")
NUMBERS = ("eps", "offset", "scale", "cap")
TENSORS = (
    *("x", "y", "weight", "total", "normed", "cos", "sin", "out", "both"),
    *("keys", "values", "k", "v", "q", "sinks"),
)


def compiled(kernel: Any, **constants: Any) -> None:
    types = dict.fromkeys(TENSORS, "*bf16") | dict.fromkeys(INTEGERS, "*i64") | dict.fromkeys(NUMBERS, "fp32")
    signature = {name: "constexpr" if name in constants else types.get(name, "i64") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    binary = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=places), target=GPUTarget("cuda", 80, 32)
    )
    assert binary.asm["cubin"]
    print(kernel.__name__, binary.metadata.shared)


compiled(layers._add_norm, D=576, WIDE=1024, WEIGHTED=True)
compiled(layers._rotate, D=80, R=32, WIDE=128, INTERLEAVED=True)
compiled(layers._gated, WIDE=1024, GATE=2)
compiled(cache._write_kv_kernel, D=64, V=64, WIDE=64)
for tokens, enabled in ((1, False), (16, True)):
    compiled(
        cache._attend,
        b=16,
        H=8,
        R=4,
        D=64,
        V=64,
        T=tokens,
        ROWS=max(4 * tokens, 16),
        TOKENS=tokens,
        WIDE_D=64,
        WIDE_V=64,
        KEYS=cache.KEYS,
        CAPPED=enabled,
        WINDOWED=enabled,
        SINKS=enabled,
    )
