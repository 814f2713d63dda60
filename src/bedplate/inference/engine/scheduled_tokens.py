"""The tokens that a step computes for each job, and the batch that is built from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from bedplate.inference.engine.requests.job import PassRequest, RequestJob
from bedplate.inference.forward.batch import EncoderSource, FlatBatch, LatentInput, LoadedAdapter, VectorInput
from bedplate.inference.forward.spans import Span


@dataclass(frozen=True)
class ScheduledTokens:
    """One job's share of a step: its `count` next tokens, and drafted tokens to follow them.

    An encoder's text is scheduled in shares like any other, but goes through the model whole, with the last of them.
    """

    job: RequestJob
    count: int
    draft: Sequence[int] = ()

    @property
    def end(self) -> int:
        """The position after the share's last token."""
        return self.job.computed_tokens + self.count

    @property
    def begin(self) -> int:
        """The position of the first token that goes through the model in this step; `end` where none does."""
        job = self.job
        if job.reads:
            return 0 if self.end == job.source else self.end
        return min(max(job.computed_tokens, job.source), self.end) if job.is_sequence else self.end

    @property
    def tokens(self) -> int:
        """The number of tokens that go through the model, drafted ones included."""
        return self.end - self.begin + len(self.draft)


def compatible_shares(work: Sequence[ScheduledTokens], tokens_only: bool) -> list[list[ScheduledTokens]]:
    """Groups the shares that can go through the model in one pass: the same depth, and the same side of an
    encoder–decoder. tokens_only: the forward pass takes only tokens; vectors and latents need a separate one."""
    groups: dict[Hashable, list[ScheduledTokens]] = defaultdict(list)
    for share in work:
        job = share.job
        groups[job.depth, job.reads, tokens_only and job.has_features].append(share)
    return list(groups.values())


def build_batch(work: Sequence[ScheduledTokens]) -> tuple[FlatBatch, list[tuple[PassRequest, int]]]:
    """The batch of compatible shares, and for each share its pass request with the index of its first logits."""
    tokens: list[int] = []
    spans: list[Span] = []
    adapters: list[LoadedAdapter] = []
    sources: list[EncoderSource] = []
    types: list[int] = []
    logit_indices: list[int] = []
    vectors: list[VectorInput] = []
    latents: list[LatentInput] = []
    pass_requests: list[tuple[PassRequest, int]] = []
    for share in work:
        job, begin, end = share.job, share.begin, share.end
        row, offset = 0 if job.row is None else job.row, len(tokens) - begin
        pass_request = job.pass_request(job.computed_tokens, end)
        pass_requests.append((pass_request, len(logit_indices)))
        logit_indices += [offset + position for position in pass_request.logits]
        if job.has_features:
            features = pass_request.vectors or job.prompt_vectors(begin, end)
            vectors += [VectorInput(offset + position, vectors_PD) for position, vectors_PD in features]
            if pass_request.latents is not None:
                latents.append(pass_request.latents)
        if share.tokens:
            spans.append(Span(row, begin, share.tokens, 0 if job.reads else job.source))
            adapters.append(job.adapter)
        if job.types:
            types += [0] * (len(tokens) - len(types)) + list(job.types[begin:end])
        tokens += job.tokens[begin:end]
        logit_indices += range(len(tokens), len(tokens) + len(share.draft))
        tokens += share.draft
        if job.computed_tokens < job.source <= end and not job.reads:
            sources.append(EncoderSource(row, job.tokens[: job.source], job.adapter))
    batch = FlatBatch(
        tokens,
        spans,
        adapters,
        logit_indices,
        depth=work[0].job.depth,
        states=any(pass_request.states for pass_request, _ in pass_requests),
        types=types + [0] * (len(tokens) - len(types)) if types else (),
        sources=sources,
        reads=work[0].job.reads,
        likeliest=all(pass_request.likeliest or not pass_request.logits for pass_request, _ in pass_requests),
        vectors=vectors,
        latents=latents,
    )
    return batch, pass_requests
