"""Time to first token behind a skin's prompt of 2,000 tokens: computed anew, and found in the prefix cache.

usage: warm_prefix.py [--weights int4] [--repeats 9]
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import count

from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Sampling
from comparison import Row, report, start
from peers import THREADS, our_base, prompt_tokens

PROMPT, QUESTION = 2000, 24


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", default="int4", choices=("bfloat16", "int8", "int4"))
    parser.add_argument("--repeats", type=int, default=9)
    arguments = start(parser).options
    base = our_base()
    seeds = count(1)
    skin = prompt_tokens(PROMPT, base.spec.vocab_size)
    with Engine(base, weights=arguments.weights, speculate=False) as engine:

        def first_token(prompt: list[int]) -> float:
            tokens = (*prompt, *prompt_tokens(QUESTION, base.spec.vocab_size, next(seeds)))
            request = Generate(tokens, Sampling(max_tokens=1, ignore_eos=True), shared_tokens=PROMPT)
            began = time.perf_counter()
            engine.run([request])
            return time.perf_counter() - began

        engine.pin(skin)
        cold, warm = [], []
        for turn in range(arguments.repeats + 1):
            seconds = first_token(prompt_tokens(PROMPT, base.spec.vocab_size, next(seeds))), first_token(skin)
            if turn:
                cold.append(seconds[0])
                warm.append(seconds[1])
        kernel = engine.kernel
    print(
        f"{PROMPT} prompt tokens and {QUESTION} of the question, {THREADS} threads, {arguments.weights} ({kernel}), "
        f"medians of {arguments.repeats}"
    )
    ours, peer = 1000 * statistics.median(warm), 1000 * statistics.median(cold)
    report([Row("warm_prefix", ours, peer, "ms", "cold", "-", goal=10.0, lower_is_better=True)])


if __name__ == "__main__":
    main()
