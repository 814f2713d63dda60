"""Decode under a JSON schema against free decode: output tokens per second, batch 1 and batch 8.

Both make the same number of tokens: the schema asks for a list of records long enough never to end before. Guessing by
prompt look-up is off for both; where the schema leaves no choice its tokens are taken several at a time, and a second
pair of rows is without that.

usage: constrained.py [--weights int4] [--tokens 128] [--repeats 7]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from importlib.metadata import version
from itertools import count

import goals
import sampling
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Grammar
from comparison import Row, interleaved, report, start
from peers import THREADS, generations, our_base, prompt_tokens

PROMPT = 32
RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 8, "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2, "maxItems": 4},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": RECORD, "minItems": 40, "maxItems": 50}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", default="int4", choices=("bfloat16", "int8", "int4"))
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    started = start(parser)
    arguments = started.options
    base = our_base()
    grammar, seeds = Grammar("json_schema", json.dumps(SCHEMA)), count()
    with (
        Engine(base, weights=arguments.weights, speculate=True) as ahead,
        Engine(base, weights=arguments.weights, speculate=False) as plain,
    ):

        def run(rows: int, constrained: bool, engine: Engine = plain) -> None:
            prompts = [prompt_tokens(PROMPT, base.spec.vocab_size, next(seeds)) for _ in range(rows)]
            requests = generations(prompts, arguments.tokens)
            if constrained:
                requests = [replace(request, grammar=grammar) for request in requests]
            generated = engine.run(requests)
            assert all(generation.usage.completion_tokens == arguments.tokens for generation in generated), (
                "a row ended early"
            )

        seconds = interleaved(
            {
                "free 1": lambda: run(1, False),
                "schema 1": lambda: run(1, True, ahead),
                "stepwise 1": lambda: run(1, True),
                "free 8": lambda: run(8, False),
                "schema 8": lambda: run(8, True, ahead),
                "stepwise 8": lambda: run(8, True),
            },
            arguments.repeats,
        )
        kernel = plain.kernel
        if arguments.profile:
            print(sampling.largest_parts(lambda: run(8, True)))
    print(
        f"{arguments.tokens} tokens after {PROMPT}, {THREADS} threads, {arguments.weights} ({kernel}), medians of "
        f"{arguments.repeats}, llguidance {version('llguidance')}"
    )
    speed = {name: int(name.split()[1]) * arguments.tokens / value for name, value in seconds.items()}
    goal = goals.of(started.machine.level)["constrained"]
    report(
        [
            Row(
                f"constrained{n}{how}",
                speed[f"{mode} {n}"],
                speed[f"free {n}"],
                "tokens/s",
                "free decode",
                "-",
                row_goal,
            )
            for n in (1, 8)
            for how, mode, row_goal in (("", "schema", goal), ("_stepwise", "stepwise", None))
        ]
    )


if __name__ == "__main__":
    main()
