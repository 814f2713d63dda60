"""Jobs run in order; the failure of one does not stop the others; an interrupt stops them all."""

from __future__ import annotations

import pytest

from bedplate.core.executor import Executor, Job, LocalExecutor


def test_outcomes_in_order_with_errors_kept() -> None:
    ran: list[str] = []

    def job(name: str) -> Job[int]:
        def call() -> int:
            ran.append(name)
            if name == "b":
                raise ValueError("no")
            return len(ran)

        return Job(name, call)

    executor: Executor = LocalExecutor()
    outcomes = executor.run([job("a"), job("b"), job("c")])
    first = next(outcomes)
    assert ran == ["a"]  # lazily: nothing runs ahead
    assert (first.name, first.value, first.error) == ("a", 1, None)
    assert first.seconds >= 0
    second, third = outcomes
    assert second.value is None
    assert isinstance(second.error, ValueError)
    assert third.value == 3


def test_interrupt_passes_through() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(LocalExecutor().run([Job("x", interrupt), Job("y", lambda: None)]))
