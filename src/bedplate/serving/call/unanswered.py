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


def when_over(streams: Sequence[Stream], then: Callable[[], None]) -> None:
    """Calls `then` in the event loop once the engine has let go of all of them."""
    loop, left = asyncio.get_running_loop(), set(streams)

    def over(stream: Stream) -> None:
        if stream in left:
            left.discard(stream)
            if not left:
                then()

    def ended(stream: Stream) -> None:
        if stream.done:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(over, stream)

    for stream in streams:
        stream.listen(partial(ended, stream))


def spent_on(streams: Sequence[Stream]) -> tuple[int, int, float]:
    """Prompt tokens, tokens of the answers, and seconds of compute. The choices of one prompt are the same request
    again and count it once; what failed by the server's own fault counts nothing."""
    prompt = said = 0
    seconds, lookups = 0.0, dict[int, LookedUp]()
    for _, same in groupby(streams, lambda stream: stream.request.tokens):
        choices = [one for one in same if one.failure is None or isinstance(one.failure, RequestError | DeadlineError)]
        prompt += max((one.spent.usage.prompt_tokens for one in choices), default=0)
        said += sum(one.spent.usage.completion_tokens for one in choices)
        seconds += sum(one.spent.compute for one in choices)
        lookups |= {id(found): found for one in choices if (found := one.request.looked_up) is not None}
    return prompt, said, seconds + sum(found.compute for found in lookups.values())
