"""Prefill of 512 tokens against llama.cpp (the same GGUF) and transformers (bfloat16), batch 1, tokens per second."""

from __future__ import annotations

from comparison import interleaved, report
from peers import THREADS, contest

TOKENS, REPEATS = 512, 9


def main() -> None:
    with contest(TOKENS) as sides:
        runs = {
            "ours": lambda: sides.ours(1),
            "llama.cpp": lambda: sides.llama_cpp.prefill(sides.tokens),
            "transformers": lambda: sides.transformers.prefill(sides.tokens),
        }
        seconds = interleaved(runs, REPEATS)
        print(f"{TOKENS} tokens, {THREADS} threads, ours in {sides.engine.base.dtype}, median of {REPEATS}")
        report(sides.rows("prefill", {name: TOKENS / value for name, value in seconds.items()}, goal=2.5))


if __name__ == "__main__":
    main()
