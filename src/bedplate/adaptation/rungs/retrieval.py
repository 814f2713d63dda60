"""Passages of the task's documents in the prompt, those nearest to each call's inputs: for what the base lacks.

Lewis et al., Retrieval-Augmented Generation (https://arxiv.org/abs/2005.11401). How long passages are, how many a
prompt has and what embeds them are chosen on valid.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.embedding import SAMPLE, Embedder, embedders_of, named_weights, pace_of
from bedplate.adaptation.context.outcome import RungPlan, RungResult, Skip, no_time
from bedplate.adaptation.rungs import successive_halving as halving
from bedplate.adaptation.rungs.rung import Rung, Traits
from bedplate.adaptation.rungs.zero_shot import finish
from bedplate.adaptation.task.adapt_parts import cut, task_documents
from bedplate.data.documents import Documents
from bedplate.inference.predict.text_reading import text_tokens
from bedplate.skins.lookup_index import Passages
from bedplate.skins.prompt import Prompt

FIRST_ROWS = 48
SURVIVORS = (2, 1)
SHARE = 0.4
FRAME = 8
"""Tokens at most of a passage's number and the line it stands on."""
BLOCK = "{% for passage in passages %}[{{ passage.number }}] {{ passage.text }}\n{% endfor %}\n"


class RetrievalRung(Rung):
    """A skin of kind retrieval."""

    name = "retrieval"
    traits = Traits(side="prompt", whole_prompt=True, no_curve="it learns from documents")

    def plan(self, context: Context) -> RungPlan | Skip:
        spec = context.spec.documents
        if spec is None:
            return Skip("the task file gives no `adapt.documents`")
        room = halving.room_beside(context, *context.default_prompt()) - FRAME
        chunkings = [[size, k] for k in spec.k for size in spec.chunk_tokens if k * (size + FRAME) <= room]
        if not chunkings:
            size, k, limit = min(spec.chunk_tokens), min(spec.k), halving.prompt_limit(context)
            return Skip(f"{k} passages of {size} tokens do not fit {limit:,} prompt tokens beside the longest input")
        documents = task_documents(spec, context.task.directory)
        embedders = embedders_of(context)
        tried = [[number, size, k] for size, k in chunkings for number in range(len(embedders))]
        mean_input = max(1.0, context.throughput.tokens)
        paces = {
            (number, size): self._pace(context, documents, embedder, size)
            for number, embedder in enumerate(embedders)
            for size in {size for size, _ in chunkings}
        }
        n, planned, left_out = len(context.valid), len(tried), list[str]()
        first_rows = halving.first_rows_of(context, FIRST_ROWS)
        while True:
            indexed = {(number, size) for number, size, _ in tried}
            seconds = sum(paces[index_key] for index_key in indexed) * len(documents.documents)
            seconds += sum(embedders[number].pace * n for number, _, _ in tried)
            row_factor = 1 + sum(size * k for _, size, k in tried) / len(tried) / mean_input
            stages = halving.stages_for(n, first_rows, SURVIVORS)
            seconds += context.throughput.rows(halving.row_cost(stages, len(tried), n) * row_factor) * 1.1
            seconds += context.timing * row_factor
            if seconds <= context.room(SHARE) or len(tried) <= 1:
                break
            tried.pop()
        if seconds > context.seconds_left:
            return no_time(seconds)
        if len(tried) < planned:
            left_out.append(f"{planned - len(tried)} of {planned} ways to look passages up were not tried: no time")
        settings = {
            "tried": tried,
            "embedders": [asdict(embedder) for embedder in embedders],
            "first_rows": first_rows,
            "documents": documents.sha256,
        }
        return RungPlan(settings, seconds, tuple(left_out))

    def settings(self, context: Context) -> Any:
        spec = context.spec.documents
        if spec is None:
            return None
        read = task_documents(spec, context.task.directory)
        return [spec.model_dump(mode="json"), read.sha256, named_weights(context, context.spec.embedders)]

    def fit(self, context: Context, plan: RungPlan, directory: Path) -> RungResult:
        start = time.perf_counter()
        spec = context.spec.documents
        assert spec is not None
        documents = task_documents(spec, context.task.directory)
        embedders = [Embedder(**values) for values in plan.settings["embedders"]]
        prompt, output = context.default_prompt()
        # the prompt that the other rungs have, with the passages before it
        with_passages = Prompt(BLOCK + prompt.template, prompt.format, prompt.system)
        indices: dict[tuple[int, int], Passages] = {}
        variants: list[halving.Variant] = []
        for number, size, k in plan.settings["tried"]:
            embedder = embedders[number]
            if (number, size) not in indices:
                cache_file = directory / f"documents-{documents.sha256[:12]}-{number}-{size}.safetensors"
                indices[number, size] = self._index(context, documents, embedder, size, cache_file)
            index = indices[number, size]
            index = replace(index, k=min(k, len(index)))
            name = f"{index.k} passages of {size} tokens by {embedder.name}"
            variants.append(halving.Variant(name, with_passages, output, passages=index, embedder=embedder.source))
        stages = halving.stages_for(len(context.valid), plan.settings["first_rows"], SURVIVORS)
        winner, order, tried = halving.choose(context, variants, stages, directory / "answers")
        assert winner.passages is not None
        counts = {"number": len(documents.documents), "sha256": documents.sha256}
        details = {
            "k": winner.passages.k,
            "passages": len(winner.passages),
            "embedder": winner.embedder or "the base itself",
            "depth": winner.passages.depth,
            "documents": {**counts, "repeated": documents.repeated, "empty": documents.empty},
        }
        return finish(context, self.name, winner, order, tried, plan, start, details)

    @staticmethod
    def _pace(context: Context, documents: Documents, embedder: Embedder, size: int) -> float:
        """Measured seconds for the passages of one document, from a sample of documents."""
        sample = documents.documents[:: max(1, len(documents.documents) // SAMPLE)][:SAMPLE]
        spec = context.spec.documents
        assert spec is not None
        chunks = cut(sample, size, spec.overlap, _counter(context, embedder))
        texts = [chunk.text for chunk in chunks[:: max(1, len(chunks) // SAMPLE)]]
        return pace_of(embedder.engine(context), texts, embedder.depth) * len(chunks) / len(sample)

    @staticmethod
    def _index(context: Context, documents: Documents, embedder: Embedder, size: int, cache_file: Path) -> Passages:
        spec = context.spec.documents
        assert spec is not None
        chunks = cut(documents.documents, size, spec.overlap, _counter(context, embedder))
        vectors = embedder.embed(context, [chunk.text for chunk in chunks], cache_file)
        whole = np.flatnonzero(vectors.any(axis=1)).tolist()
        return Passages(
            np.ascontiguousarray(vectors[whole]), tuple(chunks[i] for i in whole), 1, embedder.pooling, embedder.depth
        )


def _counter(context: Context, embedder: Embedder) -> Callable[[str], int]:
    """Tokens of a text for the base, and for what embeds, if that has more or cannot take so many."""
    tokenizer = context.model.tokenizer
    if embedder.source is None:
        return lambda text: len(tokenizer.reading.encode(text, parse_special=False))
    base = embedder.engine(context).base
    embedder_tokenizer, max_length = base.need_tokenizer(), base.spec.context_length

    def count(text: str) -> int:
        base_tokens = len(tokenizer.reading.encode(text, parse_special=False))
        theirs = len(text_tokens(embedder_tokenizer, text))
        # what the embedder cannot take whole is longer than any passage
        return base_tokens if theirs <= max_length else max(base_tokens, 1 << 30)

    return count
