"""Perplexity of held-out prose by a GGUF's quantised weights: ours against llama.cpp's on the same file and tokens.

They are to lie within half a percent. llama.cpp rounds activations to 8 bits before it multiplies, which moves short
texts by more than that, either way; built with a BLAS (build_peers.py blas) it multiplies a prompt in float32, and is
compared as well. The text is that of quality.py, in windows of 512 tokens. About four minutes.

usage: perplexity.py [--base gemma3-270m] [--tokens 8192]
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import masks
from bedplate.inference.engine.engine import Engine
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.checkpoint import locate
from comparison import Row, report, start
from peers import LlamaCpp, add_base, need
from quality import WINDOW, perplexity, windows

ALLOWED = 0.005
BLAS = "blas"
FORMATS = (("float32", "float32", "torch"), ("bfloat16", "bfloat16", "torch"), ("bfloat16", "int4", "native"))
"""dtype, weights and kernel of ours; the last takes a file's blocks as they lie."""


def texts(base: Base, tokens: int) -> list[tuple[int, ...]]:
    """Windows, each behind the token that begins a text, where the vocabulary has one."""
    first = base.need_tokenizer().bos_id
    return [text if first is None else (first, *text[:-1]) for text in windows(base, tokens)]


def llama_perplexity(path: Path, texts: Sequence[tuple[int, ...]]) -> float:
    """As `quality.perplexity`, of the llama.cpp that this process loads."""
    model = LlamaCpp(path, WINDOW, every_logit=True)
    losses = [model.loss(text) for text in texts]
    return math.exp(sum(losses) / sum(len(text) - 1 for text in texts))


def with_blas(name: str, tokens: int) -> float | None:
    """llama.cpp's, multiplying in float32: a process of its own, for a process loads one llama.cpp."""
    place = masks.llama_place(BLAS)
    if not place.is_dir():
        return None
    command = [sys.executable, __file__, "--base", name, "--tokens", str(tokens), "--only-llama"]
    environment = {**os.environ, "LLAMA_CPP_LIB_PATH": str(place)}
    completed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(completed.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--only-llama", action="store_true", help=argparse.SUPPRESS)
    add_base(parser)
    if "--only-llama" in sys.argv:
        options = parser.parse_args()
        base = load_base(locate(options.base))
        print(llama_perplexity(locate(options.base), texts(base, options.tokens)))
        return
    options = start(parser).options
    version, path = need("llama_cpp", "llama-cpp-python"), locate(options.base)
    perplexities: dict[str, float] = {}
    for dtype, weights, kernel in FORMATS:
        base = load_base(path, dtype=dtype)
        with Engine(base, weights=weights, kernel=kernel) as engine:
            perplexities[f"{dtype if kernel == 'torch' else 'as they lie'}, {kernel}"] = perplexity(
                engine, texts(base, options.tokens)
            )
    plain, exact = llama_perplexity(path, texts(base, options.tokens)), with_blas(options.base, options.tokens)
    print(f"{options.base}: {options.tokens // WINDOW} windows of {WINDOW} tokens of vader-news")
    for name, value in perplexities.items():
        against = "" if exact is None else f", {100 * (value / exact - 1):+.2f}% of it with a BLAS"
        print(f"  {name}: {value:.3f} ({100 * (value / plain - 1):+.2f}% of llama.cpp's own{against})")
    if exact is None:
        print(f"llama.cpp with a BLAS was not compared: build it (python benchmarks/build_peers.py {BLAS})")
    peers = {"llama.cpp": plain} if exact is None else {"llama.cpp with a BLAS": exact, "llama.cpp": plain}
    rows: list[Row] = []
    for peer, reference in peers.items():
        for name, value in perplexities.items():
            agreement = min(value / reference, reference / value)
            rows.append(Row(f"agreement, {name}", agreement, 1.0, "of 1", peer, version, 1 - ALLOWED))
            print(f"{peer} {reference:.3f}, ours {name} {value:.3f}: {agreement:.4f}")
    report(rows)


if __name__ == "__main__":
    main()
