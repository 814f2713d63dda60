"""16 sequences at once, 128 tokens in and 128 out, greedy: output tokens per second, prompts included in the time.

Engine against engine, each peer in a process of its own: ours, llama.cpp's batch API on the same GGUF, transformers (in
its fastest dtype here) as one static batch and with its continuous batching. Beside it our whole server over HTTP
on the same cores, with the share of the time that the load client's own process took.

usage: batch.py [--base gemma3-270m] [--weights int4] [--repeats 3] [--no-http]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import count

import goals
import roof
import sampling
from apart import PeerProcess
from bedplate.inference.engine.engine import Engine
from bedplate.models.checkpoints.checkpoint import locate
from comparison import Row, interleaved, report, start, timed
from peers import (
    THREADS,
    add_base,
    exported,
    fastest,
    generations,
    our_base,
    prompt_tokens,
    titled,
    versions_of_peers,
)
from servers import load, running

SEQUENCES, PROMPT, OUTPUT, TRIAL = 16, 128, 128, 8


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", default="int4", choices=("bfloat16", "int8", "int4"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-http", action="store_true")
    add_base(parser)
    started = start(parser)
    arguments = started.options
    versions = versions_of_peers()
    path, base = locate(arguments.base), our_base(arguments.base)
    prompts = [prompt_tokens(PROMPT, base.spec.vocab_size, seed) for seed in range(SEQUENCES)]
    with (
        exported(base=arguments.base) as directory,
        Engine(base, weights=arguments.weights, max_rows=SEQUENCES, speculate=False) as engine,
    ):
        llama = PeerProcess("peers:LlamaCppBatch", path, SEQUENCES, PROMPT + OUTPUT)
        static, dtype = fastest(
            lambda dtype: PeerProcess("peers:Transformers", directory, dtype),
            lambda peer: peer.generate(prompts, TRIAL),
        )
        paged = PeerProcess("peers:Transformers", directory, dtype, "paged|sdpa")

        seeds = count(SEQUENCES)

        def ours() -> None:  # prompts of its own each time, so that nothing of them is cached
            fresh = [prompt_tokens(PROMPT, base.spec.vocab_size, next(seeds)) for _ in range(SEQUENCES)]
            engine.run(generations(fresh, OUTPUT))

        def continuous() -> None:
            token_count = paged.continuous(prompts, OUTPUT)
            assert token_count == SEQUENCES * OUTPUT, f"transformers made {token_count} tokens"

        runs: dict[str, Callable[[], object]] = {
            "ours": ours,
            "llama.cpp": lambda: llama.generate(prompts, OUTPUT),
            "transformers, static": lambda: static.generate(prompts, OUTPUT),
        }
        seconds = interleaved(runs, arguments.repeats)
        # It takes minutes: once, without a turn before it.
        seconds["transformers, continuous"] = timed("transformers, continuous", continuous)
        kernel = engine.kernel
        parts = sampling.largest_parts(ours) if arguments.profile else None
    speed = {name: SEQUENCES * OUTPUT / value for name, value in seconds.items()}
    print(
        f"{SEQUENCES} sequences, {PROMPT} in, {OUTPUT} out, {THREADS} threads, ours {arguments.weights} ({kernel}), "
        f"medians of {arguments.repeats}, transformers' continuous batching once"
    )
    # Prompts are in the time as well: the bound is one for the steps alone, and cannot be reached.
    context = PROMPT + OUTPUT / 2
    print(roof.decode(base.spec, arguments.weights, context, SEQUENCES, speed["ours"], started.machine))
    if parts is not None:
        print(parts)
    goal = goals.of_base(started.machine.level, arguments.base)
    peers = (
        ("batch16", "llama.cpp", "llama-cpp-python", goal["batch16"], ""),
        ("batch16_static", "transformers, static", "transformers", goal["batch16_transformers"], dtype),
        ("batch16_continuous", "transformers, continuous", "transformers", goal["batch16_transformers"], dtype),
    )
    rows = [
        Row(titled(arguments.base, n), speed["ours"], speed[p], "tokens/s", p, versions[v], goal=g, peer_setting=s)
        for n, p, v, g, s in peers
    ]
    if not arguments.no_http:
        over_http(arguments.base, arguments.weights, arguments.repeats, speed["ours"])
    report(rows)


def over_http(base: str, weights: str, repeats: int, engine_speed: float) -> None:
    """Prints the whole server's speed, the load client on the same cores."""
    with running(base, "--dtype", "bfloat16", "--weights", weights, "--allow-other-weights") as url:
        speed, share = load(url, [base], repeats)
    print(
        f"the same over HTTP: {speed:.0f} tokens/s, {speed / engine_speed:.2f} of the engine alone; the load client "
        f"computed {100 * share:.0f}% of one core's time"
    )


if __name__ == "__main__":
    main()
