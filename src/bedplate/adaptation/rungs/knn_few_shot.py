"""Worked examples that are chosen for each call: the rows of train nearest to its inputs.

Liu et al., What Makes Good In-Context Examples for GPT-3? (https://arxiv.org/abs/2101.06804). What embeds, how many are
shown and in which order are chosen on valid; the pool is train alone, in the search as in the skin, so no row of valid
is ever shown, least of all to itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.embedding import Embedder, embedders_of, named_weights
from bedplate.adaptation.context.outcome import RungPlan, RungResult, Skip, no_time
from bedplate.adaptation.rungs import successive_halving as halving
from bedplate.adaptation.rungs.rung import Rung, Traits
from bedplate.adaptation.rungs.zero_shot import finish
from bedplate.skins.lookup_index import Neighbours, Order, text_of
from bedplate.skins.prompt import Demonstration, answer_text

SIZES = (8, 4, 2)
FIRST_ROWS = 48
SURVIVORS = (3, 1)
SHARE = 0.3
POOL_SHARE = 0.5
"""At least so much of train must be short enough to be shown, or a size is not tried."""


@dataclass(frozen=True)
class _Row:
    """A row of train that can be shown: its place in train, and about how many tokens that takes."""

    index: int
    shown: Demonstration
    tokens: int


class KnnFewShot(Rung):
    """A skin of kind knn."""

    name = "knn_few_shot"
    traits = Traits(side="prompt", whole_prompt=True)

    def plan(self, context: Context) -> RungPlan | Skip:
        rows, room = self._rows(context), halving.room_beside(context, *context.default_prompt())
        sizes = [k for k in SIZES if len(_pool(rows, k, room)) >= max(k, POOL_SHARE * len(rows))]
        if not sizes:
            limit = halving.prompt_limit(context)
            return Skip(f"{SIZES[-1]} rows of train do not fit {limit:,} prompt tokens beside the longest input")
        embedders = embedders_of(context)
        orders: tuple[Order, ...] = get_args(Order)
        tried: list[list[Any]] = [[number, k, orders[0]] for k in sizes for number in range(len(embedders))]
        tried += [[number, sizes[0], orders[1]] for number in range(len(embedders))]
        n, planned, left_out = len(context.valid), len(tried), list[str]()
        first_rows = halving.first_rows_of(context, FIRST_ROWS)
        mean = sum(row.tokens for row in rows) / len(rows)
        while True:
            used = sorted({number for number, _, _ in tried})
            texts = len(rows) + n * len(tried)
            seconds = sum(embedders[number].pace * texts for number in used)
            row_factor = 1 + sum(k for _, k, _ in tried) / len(tried) * mean / context.throughput.tokens
            stages = halving.stages_for(n, first_rows, SURVIVORS)
            # attention over the demonstrations makes a row dearer than as many bare ones
            seconds += context.throughput.rows(halving.row_cost(stages, len(tried), n) * row_factor) * 1.2
            seconds += context.timing * row_factor
            if seconds <= context.room(SHARE) or len(tried) <= 1:
                break
            tried.pop()
        if seconds > context.seconds_left:
            return no_time(seconds)
        if len(tried) < planned:
            left_out.append(
                f"{planned - len(tried)} of {planned} ways to choose demonstrations were not tried: no time"
            )
        settings = {"tried": tried, "embedders": [asdict(embedder) for embedder in embedders], "first_rows": first_rows}
        return RungPlan(settings, seconds, tuple(left_out))

    def settings(self, context: Context) -> Any:
        return named_weights(context, context.spec.embedders)

    def fit(self, context: Context, plan: RungPlan, directory: Path) -> RungResult:
        start = time.perf_counter()
        embedders = [Embedder(**values) for values in plan.settings["embedders"]]
        rows, room = self._rows(context), halving.room_beside(context, *context.default_prompt())
        vectors: dict[int, np.ndarray] = {}
        variants: list[halving.Variant] = []
        for number, k, order in plan.settings["tried"]:
            embedder = embedders[number]
            if number not in vectors:
                texts = [text_of(context.train[row.index].inputs, context.fields) for row in rows]
                vectors[number] = embedder.embed(context, texts, directory / f"pool-{number}.safetensors")
            shown = _pool(rows, k, room, vectors[number])
            chosen = Neighbours(
                np.ascontiguousarray(vectors[number][shown]),
                tuple(rows[i].shown for i in shown),
                k,
                order,
                embedder.pooling,
                embedder.depth,
            )
            prompt, output = context.default_prompt()
            name = f"{k} nearest by {embedder.name}, {order.replace('_', ' ')}"
            variants.append(halving.Variant(name, prompt, output, neighbours=chosen, embedder=embedder.source))
        stages = halving.stages_for(len(context.valid), plan.settings["first_rows"], SURVIVORS)
        winner, order, tried = halving.choose(context, variants, stages, directory / "answers")
        pool = winner.neighbours
        assert pool is not None
        details = {
            "k": pool.k,
            "order": pool.order,
            "embedder": winner.embedder or "the base itself",
            "depth": pool.depth,
            "pool": {"rows": len(pool), "split": "train", "too_long": len(context.train) - len(pool)},
        }
        return finish(context, self.name, winner, order, tried, plan, start, details)

    @staticmethod
    def _rows(context: Context) -> list[_Row]:
        prompt, output = context.default_prompt()
        tokenizer = context.model.tokenizer
        bare = len(prompt.tokens(tokenizer, context.train[0].inputs))
        rows: list[_Row] = []
        for index, example in enumerate(context.train):
            shown = Demonstration(example.inputs, answer_text(prompt, output, example.target))
            tokens = len(prompt.tokens(tokenizer, context.train[0].inputs, (shown,))) - bare
            rows.append(_Row(index, shown, tokens))
        return rows


def _pool(rows: Sequence[_Row], k: int, room: int, vectors: np.ndarray | None = None) -> list[int]:
    """Which rows may be shown: any k of them fit. Those without a vector are too long for what embeds."""
    fits = [i for i, row in enumerate(rows) if row.tokens * k <= room]
    if vectors is None:
        return fits
    embedded = set(np.flatnonzero(vectors.any(axis=1)).tolist())
    return [i for i in fits if i in embedded]
