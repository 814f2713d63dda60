"""16 sequences at once, 128 tokens in and 128 out, greedy: output tokens per second, prompts included in the time.

Engine against engine in one process: ours, llama.cpp's batch API on the same GGUF, transformers (bfloat16) as one
static batch and with its continuous batching. Beside it the whole of our server over HTTP on the same two cores, with
the share of the time that the load client's own process took.

usage: batch.py [--weights int4] [--repeats 3] [--no-http]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import count

import torch

from bedplate.inference.engine import Engine
from bedplate.models.checkpoints.base import load_base, locate
from comparison import Row, interleaved, report
from peers import BASE, THREADS, LlamaCppBatch, Transformers, exported, generations, prompt_tokens, versions_of_peers
from servers import load, running

SEQUENCES, PROMPT, OUTPUT = 16, 128, 128


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", default="int4", choices=("bfloat16", "int8", "int4"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-http", action="store_true")
    arguments = parser.parse_args()
    versions = versions_of_peers()
    torch.set_num_threads(THREADS)
    path = locate(BASE)
    base = load_base(path)
    prompts = [prompt_tokens(PROMPT, base.spec.vocab_size, seed) for seed in range(SEQUENCES)]
    with (
        exported() as directory,
        Engine(base, weights=arguments.weights, max_rows=SEQUENCES, speculate=False) as engine,
    ):
        llama = LlamaCppBatch(path, SEQUENCES, PROMPT + OUTPUT)
        static, paged = Transformers(directory), Transformers(directory, "paged|sdpa")

        seeds = count(SEQUENCES)

        def ours() -> None:  # prompts of its own each time, so that nothing of them is cached
            fresh = [prompt_tokens(PROMPT, base.spec.vocab_size, next(seeds)) for _ in range(SEQUENCES)]
            engine.run(generations(fresh, OUTPUT))

        def continuous() -> None:
            made = paged.continuous(prompts, OUTPUT)
            assert made == SEQUENCES * OUTPUT, f"transformers made {made} tokens"

        runs: dict[str, Callable[[], object]] = {
            "ours": ours,
            "llama.cpp": lambda: llama.generate(prompts, OUTPUT),
            "transformers, static": lambda: static.generate(prompts, OUTPUT),
        }
        seconds = interleaved(runs, arguments.repeats)
        # It takes minutes: once, without a turn before it.
        start = time.perf_counter()
        continuous()
        seconds["transformers, continuous"] = time.perf_counter() - start
        kernel = engine.kernel
    speed = {name: SEQUENCES * OUTPUT / value for name, value in seconds.items()}
    print(
        f"{SEQUENCES} sequences, {PROMPT} in, {OUTPUT} out, {THREADS} threads, ours {arguments.weights} ({kernel}), "
        f"medians of {arguments.repeats}, transformers' continuous batching once"
    )
    peers = (
        ("batch16", "llama.cpp", "llama-cpp-python", 3.0),
        ("batch16_static", "transformers, static", "transformers", 3.0),
        ("batch16_continuous", "transformers, continuous", "transformers", 3.0),
    )
    rows = [Row(n, speed["ours"], speed[p], "tokens/s", p, versions[v], goal=g) for n, p, v, g in peers]
    if not arguments.no_http:
        over_http(arguments.weights, arguments.repeats, speed["ours"])
    report(rows)


def over_http(weights: str, repeats: int, engine_speed: float) -> None:
    """Prints the whole server's speed, the load client on the same cores."""
    with running(BASE, "--weights", weights, "--allow-other-weights") as url:
        speed, share = load(url, [BASE], repeats)
    print(
        f"the same over HTTP: {speed:.0f} tokens/s, {speed / engine_speed:.2f} of the engine alone; the load client "
        f"computed {100 * share:.0f}% of one core's time"
    )


if __name__ == "__main__":
    main()
