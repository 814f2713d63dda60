"""Decode of 128 tokens after 512, batch 1, greedy, against llama.cpp and transformers (its fastest dtype here), tokens
per second; and how far that is from reading the weights at the memory's bandwidth.

Each turn runs the prompt alone and then the prompt with its continuation; the difference is the decode.

usage: decode.py [--base gemma3-270m] [--tokens 128] [--repeats 5] [--weights int4]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import goals
import roof
import sampling
from apart import PeerProcess
from comparison import interleaved, report, start
from peers import THREADS, add_base, contest

PROMPT, TRIAL = 512, 16


def trial(peer: PeerProcess, tokens: Sequence[int]) -> None:
    """A few steps after a short prompt."""
    peer.prefill(tokens[:32])
    peer.decode(TRIAL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--weights", default="int4", choices=("bfloat16", "int8", "int4"))
    add_base(parser)
    started = start(parser)
    arguments = started.options
    count: int = arguments.tokens
    with contest(PROMPT, arguments.weights, trial, arguments.base) as sides:

        def whole(peer: PeerProcess) -> Callable[[], None]:
            def run() -> None:
                peer.prefill(sides.tokens)
                peer.decode(count)

            return run

        runs: dict[str, Callable[[], object]] = {
            "ours": lambda: sides.ours(count + 1),
            "ours, prompt": lambda: sides.ours(1),
            "llama.cpp": whole(sides.llama_cpp),
            "llama.cpp, prompt": lambda: sides.llama_cpp.prefill(sides.tokens),
            "transformers": whole(sides.transformers),
            "transformers, prompt": lambda: sides.transformers.prefill(sides.tokens),
        }
        seconds = interleaved(runs, arguments.repeats)
        names = ("ours", "llama.cpp", "transformers")
        speed = {name: count / (seconds[name] - seconds[f"{name}, prompt"]) for name in names}
        print(
            f"{count} tokens after {PROMPT}, {THREADS} threads, ours in {arguments.weights} ({sides.engine.kernel}), "
            f"medians of {arguments.repeats}"
        )
        spec, context = sides.engine.base.spec, PROMPT + count / 2
        print(roof.decode(spec, arguments.weights, context, 1, speed["ours"], started.machine))
        if arguments.profile:
            print(sampling.largest_parts(lambda: sides.ours(count + 1)))
        report(sides.rows("decode", speed, goals.of_base(started.machine.level, arguments.base)["decode"]))


if __name__ == "__main__":
    main()
