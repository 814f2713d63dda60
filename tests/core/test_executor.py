"""Jobs run in order; the failure of one does not stop the others; an interrupt stops them all; they travel as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Generator

import pydantic
import pytest

from bedplate.core.errors import UsageError
from bedplate.core.executor import Executor, Job, LocalExecutor, ProcessExecutor

RAN: list[str] = []


def note(name: str) -> int:
    RAN.append(name)
    if name == "b":
        raise ValueError("no")
    return len(RAN)


def interrupt() -> None:
    raise KeyboardInterrupt


class Interrupted(pydantic.BaseModel):
    """Ctrl-C while pydantic calls one of our functions: it raises an error of its own."""

    @pydantic.model_serializer
    def _written(self) -> str:
        raise KeyboardInterrupt


def interrupt_in_pydantic() -> None:
    Interrupted().model_dump()


def rest(seconds: float) -> None:
    time.sleep(seconds)


def scaled(number: int, by: int) -> int:
    return number * by


def test_outcomes_in_order_with_errors_kept() -> None:
    RAN.clear()
    executor: Executor = LocalExecutor()
    outcomes = executor.run([Job(name, f"{__name__}:note", {"name": name}) for name in "abc"])
    first = next(outcomes)
    assert RAN == ["a"]  # lazily: nothing runs ahead
    assert (first.name, first.value, first.error) == ("a", 1, None)
    assert first.seconds >= 0
    second, third = outcomes
    assert second.value is None
    assert isinstance(second.error, ValueError)
    assert third.value == 3


@pytest.mark.parametrize("name", ["interrupt", "interrupt_in_pydantic"])
def test_interrupt_passes_through(name: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        list(LocalExecutor().run([Job("x", f"{__name__}:{name}"), Job("y", "json:dumps", {"obj": 1})]))


def test_a_job_is_the_same_after_it_has_travelled() -> None:
    job = Job("scale", f"{__name__}:scaled", {"number": 3}, needs=("by",))
    assert Job.from_json(json.loads(json.dumps(job.to_json()))) == job
    assert next(LocalExecutor({"by": 5}).run([job])).value == 15


def test_what_is_not_there_is_named() -> None:
    outcome = next(LocalExecutor().run([Job("scale", f"{__name__}:scaled", {"number": 3}, needs=("by",))]))
    assert isinstance(outcome.error, UsageError)
    assert "the job scale cannot run here: it needs by" in outcome.error.message


def test_jobs_run_in_other_processes() -> None:
    executor: Executor = ProcessExecutor(2)
    jobs = [
        Job("own", "os:getpid"),
        Job("fails", "json:loads", {"s": "no"}),
        Job("written", "json:dumps", {"obj": {"a": [1, None]}}),
        Job("bound", "json:dumps", needs=("obj",)),
    ]
    pid, fails, written, bound = executor.run(jobs)
    assert pid.value not in (None, next(LocalExecutor().run(jobs)).value)
    assert isinstance(fails.error, json.JSONDecodeError)
    assert written.value == '{"a": [1, null]}'
    assert written.seconds >= 0
    assert isinstance(bound.error, UsageError)


def test_who_stops_asking_ends_the_processes() -> None:
    running = ProcessExecutor(1).run([Job("own", "os:getpid"), Job("long", f"{__name__}:rest", {"seconds": 60})])
    assert next(running).value
    started = time.perf_counter()
    assert isinstance(running, Generator)
    running.close()
    assert time.perf_counter() - started < 30
