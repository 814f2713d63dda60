"""What a step computes of a job: so many of its next tokens.

Of what an encoder reads, shares are given like others, and all of it is read when the last one is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bedplate.inference.engine.requests.job import RequestJob


@dataclass(frozen=True)
class ScheduledTokens:
    """`count` next tokens of a job, and what is guessed to follow them."""

    job: RequestJob
    count: int
    draft: Sequence[int] = ()

    @property
    def end(self) -> int:
        """Position after the job's last token of it."""
        return self.job.computed_tokens + self.count

    @property
    def begin(self) -> int:
        """Position of the first token that goes through the model as one of a sequence. What an encoder reads is read
        as a whole when the last share of it is given."""
        job = self.job
        if job.reads:
            return 0 if self.end == job.source else self.end
        return min(max(job.computed_tokens, job.source), self.end)

    @property
    def tokens(self) -> int:
        """How many go through the model so."""
        return self.end - self.begin + len(self.draft)


def together(work: Sequence[ScheduledTokens]) -> dict[tuple[int | None, bool], list[ScheduledTokens]]:
    """What can go through the model together: to one depth, and on one side of an encoder–decoder."""
    parts: dict[tuple[int | None, bool], list[ScheduledTokens]] = defaultdict(list)
    for share in work:
        parts[share.job.depth, share.job.reads].append(share)
    return parts
