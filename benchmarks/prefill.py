"""Prefill of 512 tokens against llama.cpp (the same GGUF) and transformers (bfloat16), batch 1, tokens per second.

usage: prefill.py [--weights int4]
"""

from __future__ import annotations

import argparse

from comparison import interleaved, report
from peers import THREADS, contest

TOKENS, REPEATS = 512, 9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", default="int4", choices=("bfloat16", "int8", "int4"))
    weights: str = parser.parse_args().weights
    with contest(TOKENS, weights) as sides:
        runs = {
            "ours": lambda: sides.ours(1),
            "llama.cpp": lambda: sides.llama_cpp.prefill(sides.tokens),
            "transformers": lambda: sides.transformers.prefill(sides.tokens),
        }
        seconds = interleaved(runs, REPEATS)
        print(f"{TOKENS} tokens, {THREADS} threads, ours in {weights} ({sides.engine.kernel}), median of {REPEATS}")
        report(sides.rows("prefill", {name: TOKENS / value for name, value in seconds.items()}, goal=3.0))


if __name__ == "__main__":
    main()
