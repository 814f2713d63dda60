"""Prefill of 512 tokens against llama.cpp (the same GGUF) and transformers (bfloat16), batch 1, tokens per second."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from common import Row, interleaved, need, report
from peers import THREADS, LlamaCpp, Transformers, prompt_tokens

TOKENS, REPEATS = 512, 9


def main() -> None:
    llama_version, transformers_version = (
        need("llama_cpp", "llama-cpp-python"),
        need("transformers", "transformers"),
    )
    torch.set_num_threads(THREADS)
    from bedplate.inference.engine import Engine
    from bedplate.inference.requests import Generate, Sampling
    from bedplate.models.checkpoints.base import load_base, locate
    from bedplate.models.checkpoints.export import export_base

    path = locate("smollm2-135m")
    base = load_base(path)
    tokens = tuple(prompt_tokens(TOKENS, base.spec.vocab_size))
    with tempfile.TemporaryDirectory() as scratch, Engine(base) as engine:
        theirs = Transformers(export_base(load_base(path, dtype="float32"), Path(scratch) / "base"))
        peer = LlamaCpp(path)
        request = Generate(tokens, Sampling(max_tokens=1, ignore_eos=True))
        runs = {
            "ours": lambda: engine.run([request]),
            "llama.cpp": lambda: peer.prefill(tokens),
            "transformers": lambda: theirs.prefill(tokens),
        }
        seconds = interleaved(runs, REPEATS)
    print(f"{TOKENS} tokens, {THREADS} threads, ours in {base.dtype}, median of {REPEATS}")
    speed = {name: TOKENS / value for name, value in seconds.items()}
    ours, unit = speed["ours"], "tokens/s"
    report(
        [
            Row("prefill", ours, speed["llama.cpp"], unit, "llama-cpp-python", llama_version, goal=2.5),
            Row("prefill_transformers", ours, speed["transformers"], unit, "transformers", transformers_version),
        ]
    )


if __name__ == "__main__":
    main()
