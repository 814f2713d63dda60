"""Decode of 128 tokens after 512, batch 1, greedy, against llama.cpp and transformers (bfloat16), tokens per second."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

from common import Row, need, report
from peers import THREADS, LlamaCpp, Steps, Transformers, prompt_tokens

PROMPT, TOKENS, REPEATS = 512, 128, 7


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
    tokens = tuple(prompt_tokens(PROMPT, base.spec.vocab_size))
    with tempfile.TemporaryDirectory() as scratch, Engine(base) as engine:
        theirs = Transformers(export_base(load_base(path, dtype="float32"), Path(scratch) / "base"))

        peer = LlamaCpp(path)

        def ours() -> float:
            """From the first token, which the prefill yields, to the last."""
            stream = iter(engine.submit(Generate(tokens, Sampling(max_tokens=TOKENS + 1, ignore_eos=True))))
            next(stream)
            start = time.perf_counter()
            for _ in stream:
                pass
            return time.perf_counter() - start

        runs = {
            "ours": ours,
            "llama.cpp": lambda: Steps(peer, tokens, TOKENS).seconds(time.perf_counter),
            "transformers": lambda: Steps(theirs, tokens, TOKENS).seconds(time.perf_counter),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(REPEATS + 1):
            for name, run in runs.items():
                value = run()
                if turn:
                    seconds[name].append(value)
    print(f"{TOKENS} tokens after {PROMPT}, {THREADS} threads, ours in {base.dtype}, median of {REPEATS}")
    speed = {name: TOKENS / statistics.median(values) for name, values in seconds.items()}
    mine, unit = speed["ours"], "tokens/s"
    report(
        [
            Row("decode", mine, speed["llama.cpp"], unit, "llama-cpp-python", llama_version),
            Row("decode_transformers", mine, speed["transformers"], unit, "transformers", transformers_version),
        ]
    )


if __name__ == "__main__":
    main()
