"""Forward passes of a base for the engine: prefill of mixed requests in one flat batch, and decode steps.

Shapes: N tokens of a flat batch, B running rows, V vocabulary, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.adapters.bank import BASE_ROW, Bank
from bedplate.inference.kv_cache import DecodeAttention, Document, DocumentAttention, Prefix, SlotCache
from bedplate.inference.requests import (
    Classification,
    Classify,
    Embed,
    Embedding,
    FinishReason,
    Generate,
    Generation,
    Pooling,
    Score,
    Scores,
    Step,
    Usage,
)
from bedplate.inference.sampler import RowState, sample
from bedplate.inference.scheduler import Job, depth_of
from bedplate.inference.stopping import TextStream
from bedplate.models.checkpoints.base import Base
from bedplate.models.decoder import Decoder
from bedplate.models.inputs import Inputs

# Rows of logits computed at once where a whole prompt's are wanted: bounds memory at 256 × V floats.
HEAD_ROWS = 256

Alternatives = tuple[tuple[int, float], ...]


class Runner:
    """Owns the cache and the running rows. Called by one thread at a time."""

    def __init__(self, base: Base, bank: Bank | None) -> None:
        self.base, self.bank = base, bank
        self.slots: dict[str, int] = {}
        self.active: list[Job] = []
        self.causal = isinstance(base.model, Decoder)
        self.cache = SlotCache(base.spec, base.dtype, base.device)
        eos = base.generation_defaults.get("eos_token_id")
        listed = eos if isinstance(eos, list) else [] if eos is None else [eos]
        self.eos = frozenset(listed) | frozenset(base.tokenizer.eos_ids if base.tokenizer is not None else ())

    @torch.inference_mode()
    def build_prefix(self, tokens: tuple[int, ...], adapter: str | None, known: Prefix | None) -> Prefix:
        """Keys and values of `tokens`, going on from the part that is `known`."""
        start = 0 if known is None else len(known)
        document = Document(tokens[start:], start, known)
        attention = DocumentAttention([document], self.cache, self.base.device)
        attention.collect = True
        self._forward([document], [adapter], attention, None)
        keys, values = attention.keys, attention.values
        if known is not None:
            keys = [torch.cat(pair) for pair in zip(known.keys, keys, strict=True)]
            values = [torch.cat(pair) for pair in zip(known.values, values, strict=True)]
        return Prefix(tokens, tuple(keys), tuple(values))

    @torch.inference_mode()
    def prefill(self, jobs: Sequence[Job]) -> None:
        """First forward pass of these jobs; all but generations are finished by it."""
        documents: list[Document] = []
        adapters: list[str | None] = []
        first: list[int] = []
        generations = sum(isinstance(job.request, Generate) for job in jobs)
        longest = max(len(job.request.tokens) for job in jobs) + 1
        if generations:
            self.cache.reserve(len(self.active) + generations, longest)
        row = len(self.active)
        for job in jobs:
            first.append(len(documents))
            tokens = job.request.tokens
            main = Document(tokens[job.cached :], job.cached, job.prefix)
            if isinstance(job.request, Generate):
                main.row, row = row, row + 1
                if job.prefix is not None:
                    self.cache.fill(main.row, job.prefix)
            documents.append(main)
            if isinstance(job.request, Score):
                branches = [c[:-1] for c in job.request.continuations if len(c) > 1]
                documents += [Document(c, len(tokens), job.prefix, first[-1]) for c in branches]
            adapters += [job.request.adapter] * (len(documents) - len(adapters))
        depth = depth_of(jobs[0].request)
        hidden_ND = self._run(documents, adapters, depth)
        self._answer(jobs, documents, first, hidden_ND)

    def _run(self, documents: list[Document], adapters: list[str | None], depth: int | None) -> Tensor:
        if not self.causal:
            return self._forward(documents, adapters, None, depth)
        return self._forward(documents, adapters, DocumentAttention(documents, self.cache, self.base.device), depth)

    def _forward(
        self,
        documents: list[Document],
        adapters: list[str | None],
        attention: DocumentAttention | None,
        depth: int | None,
    ) -> Tensor:
        """Hidden states [N, D] of the flat batch."""
        device = self.base.device
        begin = 0
        for d in documents:
            d.begin = begin
            begin += len(d)
        tokens = torch.tensor([[t for d in documents for t in d.tokens]], device=device)
        positions = torch.tensor([[d.start + i for d in documents for i in range(len(d))]], device=device)
        segments = None
        if attention is None:
            segments = torch.tensor([[i + 1 for i, d in enumerate(documents) for _ in d.tokens]], device=device)
        self._select([self._slot(a) for a in adapters], [len(d) for d in documents])
        try:
            return self.base.model(Inputs(tokens, positions, segments), cache=attention, depth=depth).hidden[0]
        finally:
            self._select([], [])

    def _slot(self, adapter: str | None) -> int:
        return BASE_ROW if adapter is None else self.slots[adapter]

    def _select(self, slots: list[int], lengths: list[int]) -> None:
        if self.bank is None:
            return
        distinct = set(slots)
        if distinct <= {BASE_ROW}:
            self.bank.select(None)
        elif len(distinct) == 1:
            self.bank.select(slots[0])
        else:
            self.bank.select(torch.tensor(slots).repeat_interleave(torch.tensor(lengths)))

    def _answer(self, jobs: Sequence[Job], documents: list[Document], first: list[int], hidden_ND: Tensor) -> None:
        last_logits = self._last_logits(jobs, documents, first, hidden_ND)
        rows = {
            j: i for i, j in enumerate(j for j, job in enumerate(jobs) if isinstance(job.request, Generate | Score))
        }
        starting: list[Job] = []
        for j, (job, at) in enumerate(zip(jobs, first, strict=True)):
            request, document = job.request, documents[at]
            states = hidden_ND[document.begin : document.begin + len(document)]
            usage = Usage(len(request.tokens), cached_tokens=job.cached)
            if isinstance(request, Generate):
                if request.sampling.prompt_logprobs is not None:
                    count = request.sampling.prompt_logprobs
                    job.prompt_logprobs, job.prompt_top_logprobs = self._prompt_logprobs(request.tokens, states, count)
                starting.append(job)
            elif isinstance(request, Score):
                assert last_logits is not None
                totals = self._score(request, documents[at + 1 :], hidden_ND, last_logits[rows[j]])
                job.stream.finish(Scores(totals, tuple(len(c) for c in request.continuations), usage))
            elif isinstance(request, Classify):
                scores = request.head(pool(states, request.pooling)[None])[0]
                job.stream.finish(Classification(tuple(scores.tolist()), usage))
            else:
                job.stream.finish(Embedding(self._embed(request, states), usage))
        if starting:
            assert last_logits is not None
            self._begin(starting, last_logits[[rows[j] for j, job in enumerate(jobs) if job in starting]])

    def _last_logits(
        self, jobs: Sequence[Job], documents: list[Document], first: list[int], hidden_ND: Tensor
    ) -> Tensor | None:
        """Logits [·, V] at the last prompt token of every generation and scoring, float32."""
        ends = [
            documents[at].begin + len(documents[at]) - 1
            for job, at in zip(jobs, first, strict=True)
            if isinstance(job.request, Generate | Score)
        ]
        return self.base.model.head(hidden_ND[ends]).float() if ends else None

    def _score(self, request: Score, branches: list[Document], hidden_ND: Tensor, last_V: Tensor) -> tuple[float, ...]:
        start_V = F.log_softmax(last_V, dim=-1)
        totals: list[float] = []
        used = 0
        for continuation in request.continuations:
            total = float(start_V[continuation[0]])
            if len(continuation) > 1:
                d = branches[used]
                used += 1
                logits = self.base.model.head(hidden_ND[d.begin : d.begin + len(d)]).float()
                rest = torch.tensor(continuation[1:], device=logits.device)
                total += float(F.log_softmax(logits, dim=-1).gather(1, rest[:, None]).double().sum())
            totals.append(total)
        return tuple(totals)

    def _prompt_logprobs(
        self, tokens: Sequence[int], states_TD: Tensor, count: int
    ) -> tuple[tuple[float | None, ...], tuple[Alternatives, ...]]:
        """Each token's log-probability after those before it, and the `count` likeliest in its place."""
        found: list[float | None] = [None]
        top: list[Alternatives] = [()]
        for begin in range(0, len(tokens) - 1, HEAD_ROWS):
            end = min(begin + HEAD_ROWS, len(tokens) - 1)
            logits = self.base.model.head(states_TD[begin:end]).float()
            target = torch.tensor(tokens[begin + 1 : end + 1], device=logits.device)
            found += F.log_softmax(logits, dim=-1).gather(1, target[:, None])[:, 0].tolist()
            top += [_top(logits_V, count) for logits_V in logits]
        return tuple(found), tuple(top)

    def _embed(self, request: Embed, states_TD: Tensor) -> tuple[float, ...]:
        vector = pool(states_TD, request.pooling or self.base.spec.pooling)
        return tuple((F.normalize(vector, dim=0) if request.normalise else vector).tolist())

    def _begin(self, jobs: list[Job], logits_BV: Tensor) -> None:
        for job in jobs:
            assert isinstance(job.request, Generate)
            job.length = len(job.request.tokens)
            job.state = RowState(job.request.sampling, job.request.tokens)
            job.text = TextStream(self.base.tokenizer, job.request.sampling.stop)
            self.active.append(job)
        running = [job for job in jobs if job.limit > 0]
        if running:
            kept = [i for i, job in enumerate(jobs) if job.limit > 0]
            self._advance(running, logits_BV[kept])
        for job in jobs:
            if job.limit == 0:
                self._end(job, "length")
        self._compact()

    @torch.inference_mode()
    def decode(self) -> None:
        """One token more for every running row."""
        device = self.base.device
        lengths = [job.length for job in self.active]
        self.cache.reserve(len(self.active), max(lengths) + 1)
        tokens = torch.tensor([[_last(job)] for job in self.active], device=device)
        positions = torch.tensor(lengths, device=device)[:, None]
        attention = DecodeAttention(self.cache, lengths, device)
        self._select([self._slot(job.request.adapter) for job in self.active], [1] * len(self.active))
        try:
            hidden = self.base.model(Inputs(tokens, positions), cache=attention).hidden[:, 0]
        finally:
            self._select([], [])
        logits_BV = self.base.model.head(hidden).float()
        for job in self.active:
            job.length += 1
        self._advance(list(self.active), logits_BV)
        self._compact()

    def _advance(self, jobs: list[Job], logits_BV: Tensor) -> None:
        """Samples a token for each job and passes it on; ends the jobs that are finished by it."""
        states = [job.state for job in jobs if job.state is not None]
        chosen = sample(logits_BV, states)
        picked = (logits_BV.gather(1, chosen[:, None])[:, 0] - logits_BV.logsumexp(dim=-1)).tolist()
        for i, (job, token, logprob) in enumerate(zip(jobs, chosen.tolist(), picked, strict=True)):
            assert job.state is not None
            assert job.text is not None
            settings = job.state.sampling
            if token in self.eos and not settings.ignore_eos:
                self._end(job, "stop")
                continue
            job.state.output.append(token)
            job.logprobs.append(logprob)
            top = _top(logits_BV[i], settings.logprobs)
            job.top_logprobs.append(top)
            job.stream.push(Step(token, job.text.push(token), logprob, top))
            if job.text.stopped:
                self._end(job, "stop")
            elif len(job.state.output) >= job.limit:
                self._end(job, "length")

    def _end(self, job: Job, reason: FinishReason) -> None:
        """Finishes a running job's stream. Its row is freed by the next `_compact`."""
        assert job.state is not None
        assert job.text is not None
        assert isinstance(job.request, Generate)
        tail = job.text.finish()
        if job.text.stopped:
            reason = "stop"
        job.stream.push(Step(None, tail, finish_reason=reason))
        usage = Usage(len(job.request.tokens), len(job.state.output), job.cached)
        result = Generation(
            text=job.text.text,
            token_ids=tuple(job.state.output),
            logprobs=tuple(job.logprobs),
            finish_reason=reason,
            usage=usage,
            top_logprobs=tuple(job.top_logprobs) if job.request.sampling.logprobs is not None else (),
            prompt_logprobs=job.prompt_logprobs,
            prompt_top_logprobs=job.prompt_top_logprobs,
        )
        job.stream.finish(result)

    def drop_cancelled(self) -> None:
        """Ends running rows whose caller has gone."""
        for job in self.active:
            if job.stream.cancelled and not job.stream.done:
                self._end(job, "cancelled")
        self._compact()

    def _compact(self) -> None:
        """Frees the rows of finished jobs: the last running row moves into each hole."""
        row = 0
        while row < len(self.active):
            if not self.active[row].stream.done:
                row += 1
                continue
            last = self.active.pop()
            if row < len(self.active):
                if not last.stream.done:
                    self.cache.move(len(self.active), row, last.length)
                self.active[row] = last


def pool(states_TD: Tensor, pooling: Pooling) -> Tensor:
    """[T, D] → [D], float32."""
    if pooling == "mean":
        return states_TD.float().mean(0)
    return states_TD[0 if pooling == "first" else -1].float()


def _last(job: Job) -> int:
    assert job.state is not None
    return job.state.output[-1]


def _top(logits_V: Tensor, count: int | None) -> Alternatives:
    if not count:
        return ()
    values, ids = F.log_softmax(logits_V, dim=-1).topk(count)
    return tuple(zip(ids.tolist(), values.tolist(), strict=True))
