"""A mixture of experts in the shape of OLMoE-1B-7B against llama.cpp from the same GGUF: greedy decode of one sequence
and of 16, tokens per second, and how far that is from reading the chosen experts at the memory's bandwidth.

The weights are random, in Q4_0 with a head in Q8_0, written once into BEDPLATE_HOME; a router over random states
chooses evenly, so that 16 tokens touch 56 of the 64 experts. Blocks are read from the file by the kernel alone, and
never as bfloat16; llama.cpp's own copies come beside them: so half of the 16 layers by default, which cost alike.

usage: olmoe.py [--layers 8] [--tokens 64] [--repeats 3]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

import goals
import roof
import sampling
from apart import PeerProcess
from bedplate.core.files import atomic_directory, bedplate_home
from bedplate.inference.engine.engine import Engine
from bedplate.inference.predict.opening import OpenOptions, open_base
from bedplate.models.build import build
from bedplate.models.checkpoints.conversion import write_parameters
from bedplate.models.checkpoints.gguf import add_field
from bedplate.models.families import FAMILIES
from bedplate.models.specs.transformer import Experts, Rope, TransformerSpec
from comparison import Row, interleaved, report, start
from peers import THREADS, generations, prompt_tokens, versions_of_peers

SEQUENCES, PROMPT, NAME = 16, 64, "olmoe.gguf"
FAMILY = FAMILIES["gguf", "olmoe"]


def spec_of(layers: int) -> TransformerSpec:
    """https://huggingface.co/allenai/OLMoE-1B-7B-0924, with so many of its 16 layers."""
    return TransformerSpec.from_fields(
        kind="decoder",
        vocab_size=50304,
        hidden_size=2048,
        layers=layers,
        heads=16,
        kv_heads=16,
        head_dim=128,
        feedforward_size=1024,
        context_length=4096,
        rope=Rope(10_000.0),
        qk_norm="projection",
        tied_head=False,
        experts=Experts(64, 8, 1024, renormalise=False),
    )


def tensors_of(spec: TransformerSpec) -> Iterator[tuple[str, tuple[int, ...], GGMLQuantizationType]]:
    """Names, shapes and types of a file's tensors."""
    parameters = dict(build(spec, device="meta").named_parameters())
    for name, tensor in write_parameters(FAMILY, spec, parameters):
        quant_type = GGMLQuantizationType.Q8_0 if name == "output.weight" else GGMLQuantizationType.Q4_0
        plain = tensor.dim() == 1 or "gate_inp" in name  # norms and routers
        yield name, tuple(tensor.shape), GGMLQuantizationType.F32 if plain else quant_type


def drawn(shape: tuple[int, ...], quant_type: GGMLQuantizationType, random: np.random.Generator) -> NDArray[np.generic]:
    """Values of a tensor, as they lie: norms are ones, everything else spreads by about 0.02."""
    if quant_type == GGMLQuantizationType.F32:
        is_norm = len(shape) == 1
        return np.ones(shape, np.float32) if is_norm else random.standard_normal(shape, np.float32) * np.float32(0.02)
    values, size = gguf.GGML_QUANT_SIZES[quant_type]
    blocks = np.frombuffer(random.bytes(int(np.prod(shape)) // values * size), np.uint8).reshape(-1, size).copy()
    step = 0.02 / (74.0 if quant_type == GGMLQuantizationType.Q8_0 else 4.6)  # the spread of evenly drawn numbers
    blocks[:, :2] = np.frombuffer(np.float16(step).tobytes(), np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def written(spec: TransformerSpec, folder: Path) -> Path:
    """The file, made where it is not there yet: tensor by tensor, so that none of it stays in memory."""
    if folder.is_dir():
        return folder / NAME
    with atomic_directory(folder) as scratch:
        writer = gguf.GGUFWriter(scratch / NAME, FAMILY.key[1])
        metadata: Mapping[str, object] = FAMILY.to_config(spec) | {"tokenizer.ggml.model": "none"}
        for key, value in metadata.items():
            add_field(writer, key, value)
        tensors = list(tensors_of(spec))
        for name, shape, quant_type in tensors:
            values, size = gguf.GGML_QUANT_SIZES[quant_type]
            dtype = np.dtype(np.float32)
            writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) // values * size, quant_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        random = np.random.default_rng(0)
        for _, shape, quant_type in tensors:
            writer.write_tensor_data(drawn(shape, quant_type, random))
        writer.close()
    return folder / NAME


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    started = start(parser)
    options = started.options
    version = versions_of_peers()["llama-cpp-python"]
    spec, length = spec_of(options.layers), options.tokens
    path = written(spec, bedplate_home() / "benchmarks" / f"olmoe-{options.layers}")
    base = open_base(path, OpenOptions(weights="int4")).base
    with Engine(base, weights="int4", max_rows=SEQUENCES, speculate=False) as engine:
        single = PeerProcess("peers:LlamaCpp", path)
        batched = PeerProcess("peers:LlamaCppBatch", path, SEQUENCES, PROMPT + length)
        prompts = [prompt_tokens(PROMPT, spec.vocab_size, seed) for seed in range(SEQUENCES)]
        seeds = count(SEQUENCES)

        def ours(sequences: int, tokens: int) -> None:  # prompts of its own each time, so that nothing is cached
            fresh = [prompt_tokens(PROMPT, spec.vocab_size, next(seeds)) for _ in range(sequences)]
            engine.run(generations(fresh, tokens))

        def theirs(tokens: int) -> None:
            single.prefill(prompts[0])
            single.decode(tokens)

        seconds = interleaved(
            {
                "ours 1": lambda: ours(1, length + 1),
                "ours 1, prompt": lambda: ours(1, 1),
                "theirs 1": lambda: theirs(length),
                "theirs 1, prompt": lambda: theirs(0),
                "ours 16": lambda: ours(SEQUENCES, length),
                "theirs 16": lambda: batched.generate(prompts, length),
            },
            options.repeats,
        )
        parts = sampling.largest_parts(lambda: ours(SEQUENCES, length)) if options.profile else None
    decode = {side: length / (seconds[f"{side} 1"] - seconds[f"{side} 1, prompt"]) for side in ("ours", "theirs")}
    batch = {side: SEQUENCES * length / seconds[f"{side} 16"] for side in ("ours", "theirs")}
    print(
        f"{options.layers} of 16 layers, {PROMPT} in, {length} out, {THREADS} threads, ours in Q4_0 as it lies "
        f"({engine.kernel}), medians of {options.repeats}; prompts are in the time of 16 sequences"
    )
    context = PROMPT + length / 2
    for rows, speed in ((1, decode["ours"]), (SEQUENCES, batch["ours"])):
        print(roof.decode(spec, "int4", context, rows, speed, started.machine))
    if parts is not None:
        print(parts)
    report(
        [
            Row(f"olmoe {name}", of["ours"], of["theirs"], "tokens/s", "llama.cpp", version, goal=goals.EXPERTS[name])
            for name, of in (("decode", decode), ("batch16", batch))
        ]
    )


if __name__ == "__main__":
    main()
