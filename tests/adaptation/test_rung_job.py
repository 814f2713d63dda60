"""A rung's fit travels: another process rebuilds everything from the task file and the run's directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.adaptation.conftest import write_task
from tests.forked import CONTEXT

from bedplate.adaptation.context.clock import Clock
from bedplate.adaptation.search.candidates import candidates_of
from bedplate.adaptation.search.start import begin, climb_candidate, fit_planned, opened, reopened
from bedplate.adaptation.task.task_file import load_adapt_task
from bedplate.core.errors import DataError, UsageError
from bedplate.core.executor import Executor, ProcessExecutor
from bedplate.evaluation.examples import load_examples

RUNGS = ("zero_shot", "lora")


def climbed(task_file: Path, out: Path, executor: Executor | None) -> dict[str, tuple[str | None, list[object]]]:
    """Rung → the id of its skin and every row's answer and scores on valid."""
    task, spec = load_adapt_task(task_file, rungs=RUNGS)
    data = load_examples(task)
    with opened(task, spec, data, out, Clock(None), seed=3, executor=executor) as contexts:
        begin(contexts, data, out, task_file)
        results: dict[str, tuple[str | None, list[object]]] = {}
        for candidate in candidates_of(contexts, RUNGS):
            outcome = climb_candidate(candidate)
            assert outcome.result is not None, outcome.reason
            rows = outcome.result.evaluation.rows
            results[candidate.name] = outcome.result.skin_id, [(row.prediction, row.scores) for row in rows]
    return results


@pytest.fixture(scope="module")
def task_file(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    directory = tmp_path_factory.mktemp("task")
    return write_task(directory, tiny_base, groups=24, dtype="float32", kernel="torch")


def test_a_fit_in_another_process_is_equal(task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes that are there at once; that they may be started anew, `tests.core.test_executor` shows."""
    monkeypatch.setattr("bedplate.core.executor.get_context", lambda _: CONTEXT)
    here = climbed(task_file, tmp_path / "here", None)
    assert climbed(task_file, tmp_path / "there", ProcessExecutor()) == here


def test_a_job_without_its_plan_or_rows_says_so(task_file: Path, tmp_path: Path) -> None:
    task, spec = load_adapt_task(task_file, rungs=RUNGS)
    data = load_examples(task)
    with opened(task, spec, data, tmp_path / "run", Clock(None), seed=0) as contexts:
        begin(contexts, data, tmp_path / "run", task_file)
    with pytest.raises(UsageError, match="holds no plan of zero_shot"):
        fit_planned(str(tmp_path / "run"), "", "zero_shot")
    with pytest.raises(UsageError, match="no rung 'dora'"):
        fit_planned(str(tmp_path / "run"), "", "dora")
    rows = task_file.parent / "rows.jsonl"
    before = rows.read_text()
    rows.write_text(before.replace("terrible", "dreadful", 1))
    try:
        with pytest.raises(DataError, match="no longer those that the run began with"), reopened(tmp_path / "run"):
            pass
    finally:
        rows.write_text(before)
