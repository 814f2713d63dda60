"""What it takes to load a quantised mixture for the kernel: hardly more than what is there at the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bedplate.inference.native.library import load
from bedplate.models.build import build
from bedplate.models.checkpoints.conversion import write_parameters
from bedplate.models.checkpoints.gguf import write_gguf
from bedplate.models.families import FAMILIES
from bedplate.models.specs.transformer import Experts, Rope, TransformerSpec

pytestmark = [
    pytest.mark.slow,  # a file of 270 million weights
    pytest.mark.skipif(isinstance(load(), str), reason=f"no native kernel here: {load()}"),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says what a process has taken"),
]
SPEC = TransformerSpec.from_fields(
    kind="decoder",
    vocab_size=512,
    hidden_size=512,
    layers=20,
    heads=8,
    kv_heads=8,
    head_dim=64,
    feedforward_size=512,
    context_length=512,
    rope=Rope(10_000.0),
    qk_norm="projection",
    tied_head=False,
    experts=Experts(16, 2, 512, renormalise=False),
)
LOAD = """
import sys, torch
from bedplate.inference.native.packed_weights import NativeDecoder
from bedplate.inference.execution.choice import stored_blocks
from bedplate.models.checkpoints.base import load_base
torch.ones(8, 8) @ torch.ones(8, 8)
def taken(what):
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines[what].split()[0]) * 1024
before = taken("VmRSS")
base = load_base(sys.argv[1])
loaded = taken("VmHWM") - before
native = NativeDecoder(base.model, "int4", blocks=stored_blocks(base), threads=1)
own = sum(p.numel() * p.element_size() for p in base.model.parameters())
print(own, native.weight_bytes, loaded, taken("VmHWM") - before)
"""


def test_the_peak_is_what_stays(tmp_path: Path) -> None:
    family, path = FAMILIES["gguf", "olmoe"], tmp_path / "x.gguf"
    parameters = dict(build(SPEC, torch.float32).named_parameters())
    metadata = family.to_config(SPEC) | {"tokenizer.ggml.model": "none"}
    write_gguf(path, "olmoe", metadata, write_parameters(family, SPEC, parameters), "q4_0")
    process = subprocess.run(
        [sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, timeout=200, check=True
    )
    model_bytes, packed, loaded, peak = map(int, process.stdout.split())
    assert model_bytes > 500e6  # beside which what libraries take when they are first used is little
    assert packed < 0.3 * model_bytes
    # What the C library keeps of freed pieces is in it.
    assert peak <= 1.15 * (model_bytes + packed), peak / (model_bytes + packed)
    assert loaded <= 1.15 * model_bytes, loaded / model_bytes
