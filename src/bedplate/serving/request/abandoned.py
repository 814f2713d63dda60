"""What was computed for a call that nobody got an answer to: its client left early, or its time was over."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

from bedplate.core.errors import DeadlineError, RequestError
from bedplate.inference.engine.requests import LookedUp
from bedplate.inference.engine.scheduler import Stream


def when_over(streams: Sequence[Stream], callback: Callable[[], None]) -> None:
    """Calls `callback` in the event loop once the engine has let go of all of them."""
    loop, pending = asyncio.get_running_loop(), set(streams)

    def over(stream: Stream) -> None:
        if stream in pending:
            pending.discard(stream)
            if not pending:
                callback()

    def ended(stream: Stream) -> None:
        if stream.finished:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(over, stream)

    for stream in streams:
        stream.listen(partial(ended, stream))


def spent_on(streams: Sequence[Stream]) -> tuple[int, int, float]:
    """Prompt tokens, tokens of the answers, and seconds of compute. The choices of one prompt are the same request
    again and count it once; what failed by the server's own fault counts nothing."""
    prompt = completion = 0
    seconds, lookups = 0.0, dict[int, LookedUp]()
    for _, group in groupby(streams, lambda stream: stream.request.tokens):
        choices = [
            choice
            for choice in group
            if choice.failure is None or isinstance(choice.failure, RequestError | DeadlineError)
        ]
        prompt += max((choice.spent.usage.prompt_tokens for choice in choices), default=0)
        completion += sum(choice.spent.usage.completion_tokens for choice in choices)
        seconds += sum(choice.spent.compute for choice in choices)
        lookups |= {id(lookup): lookup for choice in choices if (lookup := choice.request.looked_up) is not None}
    return prompt, completion, seconds + sum(looked_up.compute for looked_up in lookups.values())
