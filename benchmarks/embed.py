"""Embedding 1,000 texts of mixed length with minilm-l6 against sentence-transformers: texts per second.

The texts are runs of sentences of the catalogue's `vader-news` and `vader-movies`, from a few words to the encoder's
own 256 tokens; both sides tokenise, cut, embed and normalise them in one call. The peer gets its fastest setting here,
tried first: dtype, batch size and threads. Ours is tried in the same dtypes, of which one counts whose least cosine to
the library's float32 is 0.9999 or more; how near both come to it is said beside.

usage: embed.py [--texts 1000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bedplate.data.sources import read_rows
from bedplate.inference.predict.local import LocalModel
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.checkpoint import locate
from comparison import Row, best_seconds, interleaved, need, report, start
from peers import DTYPES, THREADS

GOAL = 1.5
MIN_COSINE = 0.9999
BASE = "minilm-l6"
BATCHES = (8, 16, 32, 64)
TRIAL = 80
Embeds = Callable[[list[str]], Any]


def mixed_texts(count: int) -> list[str]:
    """Sentences in a row, from 3 to some 190 words, as many short texts as documents have: log-normal."""
    rows = [*read_rows("vader-news").rows, *read_rows("vader-movies").rows]
    words = " ".join(str(row["text"]) for row in rows).split()
    generator, texts, at = random.Random(0), list[str](), 0
    for _ in range(count):
        length = max(3, min(190, round(generator.lognormvariate(3.6, 0.9))))
        if at + length > len(words):
            at = 0
        texts.append(" ".join(words[at : at + length]))
        at += length
    generator.shuffle(texts)
    return texts


def library(dtype: str) -> Any:
    """The encoder in sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(locate(BASE)), device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})


def fastest_peer(texts: list[str]) -> tuple[Embeds, str]:
    """sentence-transformers in its fastest setting for some of the texts."""
    trials: dict[str, tuple[float, Embeds]] = {}
    for dtype in DTYPES:
        model = library(dtype)
        for batch in BATCHES:
            for threads in sorted({1, THREADS}):

                def embed(inputs: list[str], model: Any = model, batch: int = batch, threads: int = threads) -> Any:
                    torch.set_num_threads(threads)
                    try:
                        return model.encode(inputs, batch_size=batch, show_progress_bar=False)
                    finally:
                        torch.set_num_threads(THREADS)

                seconds = best_seconds(
                    lambda embed=embed: embed(texts[:TRIAL]), min((trial[0] for trial in trials.values()), default=1e9)
                )
                trials[f"{dtype}, batches of {batch}, {threads} threads"] = (seconds, embed)
    tried = ", ".join(f"{name} {seconds:.3g} s" for name, (seconds, _) in trials.items())
    best = min(trials, key=lambda name: trials[name][0])
    print(f"sentence-transformers tried at {TRIAL} texts in {tried}: {best} it is", flush=True)
    return trials[best][1], best


def least_cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (a, b))
    return float((a * b).sum(1).min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    options = start(parser).options
    peer_version = need("sentence_transformers", "sentence-transformers")
    warnings.simplefilter("ignore")
    texts = mixed_texts(options.texts)
    peer, setting = fastest_peer(texts)
    models = {dtype: LocalModel(load_base(BASE, dtype=dtype)) for dtype in DTYPES}
    try:
        ours = {
            dtype: (lambda inputs, model=model: model.embed(inputs, truncate=True)) for dtype, model in models.items()
        }
        exact = library("float32").encode(texts, batch_size=32, show_progress_bar=False)
        cosines = {dtype: least_cosine(run(texts[:TRIAL]), exact[:TRIAL]) for dtype, run in ours.items()}
        trials = {dtype: best_seconds(lambda run=run: run(texts[:TRIAL])) for dtype, run in ours.items()}
        dtype = min(
            (candidate for candidate in trials if cosines[candidate] >= MIN_COSINE),
            key=lambda candidate: trials[candidate],
        )
        tried = ", ".join(
            f"{candidate} {trials[candidate]:.3g} s (cosine {cosines[candidate]:.6f})" for candidate in trials
        )
        print(f"ours tried in {tried}: {dtype} by {models[dtype].engine.kernel} it is", flush=True)
        seconds = interleaved({"ours": lambda: ours[dtype](texts), "peer": lambda: peer(texts)}, options.repeats)
        tokens = sum(len(encoded.ids) for encoded in models[dtype].tokenizer.encoder_inputs(texts, 256))
        print(
            f"{len(texts)} texts of {tokens} tokens, {THREADS} threads, median of {options.repeats}; least cosine to "
            f"the library's float32: ours {least_cosine(ours[dtype](texts), exact):.6f}, the peer's "
            f"{least_cosine(np.asarray(peer(texts), dtype=np.float32), exact):.6f}"
        )
        report(
            [
                Row(
                    f"embedding {len(texts)} texts",
                    len(texts) / seconds["ours"],
                    len(texts) / seconds["peer"],
                    "texts/s",
                    "sentence-transformers",
                    peer_version,
                    GOAL,
                    peer_setting=setting,
                )
            ]
        )
    finally:
        for model in models.values():
            model.close()


if __name__ == "__main__":
    main()
