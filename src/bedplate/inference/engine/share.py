"""What a step computes of a job: so many of its next tokens.

Of what an encoder reads, shares are given like others, and all of it is read when the last one is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bedplate.inference.engine.job import Job


@dataclass(frozen=True)
class Share:
    """`count` next tokens of a job, and what is guessed to follow them."""

    job: Job
    count: int
    draft: Sequence[int] = ()

    @property
    def end(self) -> int:
        """Position after the job's last token of it."""
        return self.job.done + self.count

    @property
    def begin(self) -> int:
        """Position of the first token that goes through the model as one of a sequence. What an encoder reads is read
        as a whole when the last share of it is given."""
        job = self.job
        if job.reads:
            return 0 if self.end == job.source else self.end
        return min(max(job.done, job.source), self.end)

    @property
    def tokens(self) -> int:
        """How many go through the model so."""
        return self.end - self.begin + len(self.draft)


def together(work: Sequence[Share]) -> dict[tuple[int | None, bool], list[Share]]:
    """What can go through the model together: to one depth, and on one side of an encoder–decoder."""
    parts: dict[tuple[int | None, bool], list[Share]] = defaultdict(list)
    for one in work:
        parts[one.job.depth, one.job.reads].append(one)
    return parts
