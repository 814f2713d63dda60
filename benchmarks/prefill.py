"""Prefill of 512 tokens against llama.cpp (the same GGUF) and transformers (its fastest dtype here), batch 1, tokens
per second; and how far that is from the product peak of our kernel.

usage: prefill.py [--base gemma3-270m] [--weights int4] [--repeats 9]
"""

from __future__ import annotations

import argparse

import goals
import roof
import sampling
from comparison import interleaved, report, start
from peers import THREADS, add_base, contest

TOKENS, TRIAL = 512, 128


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", default="int4", choices=("bfloat16", "int8", "int4"))
    parser.add_argument("--repeats", type=int, default=9)
    add_base(parser)
    started = start(parser)
    weights, repeats = started.options.weights, started.options.repeats
    with contest(TOKENS, weights, lambda peer, tokens: peer.prefill(tokens[:TRIAL]), started.options.base) as sides:
        runs = {
            "ours": lambda: sides.ours(1),
            "llama.cpp": lambda: sides.llama_cpp.prefill(sides.tokens),
            "transformers": lambda: sides.transformers.prefill(sides.tokens),
        }
        seconds = interleaved(runs, repeats)
        print(f"{TOKENS} tokens, {THREADS} threads, ours in {weights} ({sides.engine.kernel}), median of {repeats}")
        speed = {name: TOKENS / value for name, value in seconds.items()}
        print(roof.prefill(sides.engine.base.spec, weights, TOKENS, speed["ours"], started.machine))
        if started.options.profile:
            print(sampling.largest_parts(lambda: sides.ours(1)))
        goal = goals.of_base(started.machine.level, started.options.base)
        report(sides.rows("prefill", speed, goal["prefill"], goal["prefill_transformers"]))


if __name__ == "__main__":
    main()
