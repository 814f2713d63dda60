"""Choosing demonstrations among 100,000 labelled examples, vectors of 384 numbers, as a knn skin does in each call.

Against scikit-learn's brute-force NearestNeighbors (cosine), and faiss's IndexFlatIP where it is installed. Seconds of
one query alone; the rows found must be the same. With `--embed`, also a whole lookup: minilm-l6 embeds the question.

usage: knn.py [--rows 100000] [--size 384] [--k 8] [--repeats 30] [--embed]
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from importlib.metadata import version
from typing import Any

import numpy as np
from sklearn.neighbors import NearestNeighbors

from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.lookup import embed_texts
from bedplate.skins.lookup_index import Neighbours
from bedplate.skins.prompt import Demonstration
from comparison import Row, interleaved, report, start

GOAL_MS = 20.0
QUESTION = "The battery lasts two days, but the screen scratches if you only look at it."


def pool(rows: int, size: int, k: int) -> Neighbours:
    """Random directions: no structure that a search could use."""
    vectors = np.random.default_rng(0).normal(size=(rows, size)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    shown = tuple(Demonstration({"review": f"row {i}"}, " positive") for i in range(rows))
    return Neighbours(vectors, shown, k)


def faiss_search(ours: Neighbours) -> Any:
    """faiss's exact search over the same vectors, or None."""
    if importlib.util.find_spec("faiss") is None:
        return None
    import faiss  # pyright: ignore[reportMissingImports]

    index = faiss.IndexFlatIP(ours.size)
    index.add(ours.vectors)
    return lambda query: index.search(query[None], ours.k)[1][0].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--embed", action="store_true")
    options = start(parser).options
    ours = pool(options.rows, options.size, options.k)
    query = np.random.default_rng(1).normal(size=options.size).astype(np.float32)
    query /= np.linalg.norm(query)
    brute = NearestNeighbors(n_neighbors=options.k, metric="cosine", algorithm="brute").fit(ours.vectors)
    peers: dict[str, tuple[str, Any]] = {
        "scikit-learn brute": (
            version("scikit-learn"),
            lambda q: brute.kneighbors(q[None], return_distance=False)[0].tolist(),
        )
    }
    faiss = faiss_search(ours)
    if faiss is not None:
        peers["faiss IndexFlatIP"] = (version("faiss-cpu"), faiss)
    for name, (_, search) in peers.items():
        if search(query) != ours.nearest(query):
            raise SystemExit(f"{name} finds other rows")
    runs = {name: (lambda search=search: search(query)) for name, (_, search) in peers.items()}
    seconds = interleaved({"ours": lambda: ours.nearest(query), **runs}, options.repeats)
    mine = 1000 * seconds["ours"]
    print(
        f"one choice among {options.rows:,}: {mine:.2f} ms (goal {GOAL_MS:g}, {'met' if mine < GOAL_MS else 'MISSED'})"
    )
    if options.embed:
        whole(ours, options.repeats)
    report(
        [
            Row(f"choice among {options.rows:,}", mine, 1000 * seconds[name], "ms", name, number, None, True)
            for name, (number, _) in peers.items()
        ]
    )


def whole(ours: Neighbours, repeats: int) -> None:
    """A call's whole choice: the question embedded by minilm-l6, then searched for."""
    encoder = load("minilm-l6")
    timings: list[float] = []
    try:
        for turn in range(repeats + 3):
            began = time.perf_counter()
            ours.demonstrations(embed_texts(encoder.engine, [QUESTION], "mean")[0])
            if turn >= 3:
                timings.append(1000 * (time.perf_counter() - began))
    finally:
        encoder.close()
    print(
        f"with the question embedded by minilm-l6: median {statistics.median(timings):.2f} ms, "
        f"worst {max(timings):.2f} ms"
    )


if __name__ == "__main__":
    main()
