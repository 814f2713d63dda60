"""Perplexity of held-out prose under int8 and int4 weights against the bfloat16 weights, the same engine and tokens.

The text: editorials of the catalogue's `vader-news`, which neither the base's quantisation nor anything here was fitted
on, in windows of 512 tokens. Goals: at most 1% worse for int8, 3% for int4.

usage: quality.py [--tokens 16384]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from bedplate.data.sources import read_rows
from bedplate.inference.engine.engine import Engine
from bedplate.inference.engine.requests import Generate, Generation, Sampling
from bedplate.models.checkpoints.base import Base
from comparison import Row, report, start
from peers import our_base

WINDOW = 512


def windows(base: Base, tokens: int) -> list[tuple[int, ...]]:
    """The editorials' sentences in their order, as token windows."""
    rows = read_rows("vader-news").rows
    text = " ".join(str(row["text"]) for row in rows)
    ids = base.need_tokenizer().encode(text, parse_special=False)[:tokens]
    return [tuple(ids[i : i + WINDOW]) for i in range(0, len(ids) - WINDOW + 1, WINDOW)]


def perplexity(engine: Engine, texts: Sequence[tuple[int, ...]]) -> float:
    """exp of the mean negative log-likelihood of every token but the windows' first."""
    total, count = 0.0, 0
    for text in texts:
        [result] = engine.run([Generate(text, Sampling(max_tokens=0, prompt_logprobs=0))])
        assert isinstance(result, Generation)
        logprobs = [logprob for logprob in result.prompt_logprobs or () if logprob is not None]
        total, count = total - sum(logprobs), count + len(logprobs)
    return math.exp(total / count)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=16384)
    arguments = start(parser).options
    base = our_base()
    texts = windows(base, arguments.tokens)
    perplexities: dict[str, float] = {}
    for weights, kernel in (("bfloat16", "torch"), ("bfloat16", "native"), ("int8", "native"), ("int4", "native")):
        with Engine(base, weights=weights, kernel=kernel) as engine:
            perplexities[f"{weights}, {kernel}"] = perplexity(engine, texts)
    reference = perplexities["bfloat16, torch"]
    print(f"{len(texts)} windows of {WINDOW} tokens of vader-news")
    for name, value in perplexities.items():
        print(f"  {name}: perplexity {value:.3f} ({100 * (value / reference - 1):+.2f}%)")
    report(
        [
            Row(name, perplexities[f"{weights}, native"], reference, "perplexity", "bfloat16 (torch)", "-", goal, True)
            for name, weights, goal in (("ppl_int8", "int8", 1 / 1.01), ("ppl_int4", "int4", 1 / 1.03))
        ]
    )


if __name__ == "__main__":
    main()
