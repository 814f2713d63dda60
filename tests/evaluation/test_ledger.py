from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from bedplate.core.errors import DataError
from bedplate.core.files import bedplate_home
from bedplate.evaluation.ledger import Ledger


def ask(ledger: Ledger, verdict: str, rows: list[str]):
    return ledger.open(verdict, rows, task="t", reason="r")


def test_verdicts_on_the_same_rows_are_counted(tmp_path: Path):
    ledger = Ledger(tmp_path / "l.jsonl")
    assert [ask(ledger, v, ["a", "b"]).number for v in ("1", "2", "3")] == [1, 2, 3]
    assert not ask(ledger, "1", ["a", "b"]).exploratory
    assert ask(ledger, "2", ["a", "b"]).exploratory


def test_the_same_question_spends_nothing_again(tmp_path: Path):
    ledger = Ledger(tmp_path / "l.jsonl")
    ask(ledger, "1", ["a"])
    ask(ledger, "2", ["a"])
    size = ledger.path.stat().st_size
    assert ask(ledger, "1", ["a"]).number == 1
    assert ledger.path.stat().st_size == size


def test_one_known_row_is_enough_and_fresh_rows_start_anew(tmp_path: Path):
    ledger = Ledger(tmp_path / "l.jsonl")
    ask(ledger, "1", ["a", "b"])
    assert ask(ledger, "2", ["b", "c"]).number == 2
    assert ask(ledger, "3", ["c", "d"]).number == 2
    assert ask(ledger, "4", ["x", "y"]).number == 1


def test_a_killed_writers_line_is_no_entry_and_damage_is_an_error(tmp_path: Path):
    ledger = Ledger(tmp_path / "l.jsonl")
    ask(ledger, "1", ["a"])
    whole = ledger.path.read_text()
    ledger.path.write_text(whole + whole[:20])
    assert ask(ledger, "2", ["a"]).number == 2
    assert ask(ledger, "3", ["a"]).number == 3
    ledger.path.write_text('{"verdict": "1"}\n')
    with pytest.raises(DataError, match="line 1"):
        ask(ledger, "4", ["a"])


def test_it_lies_apart_from_the_cache():
    assert Ledger().path.parent == bedplate_home() / "ledger"
    assert "hub" not in Ledger().path.parts


def _open(path: str, number: int) -> None:
    ask(Ledger(Path(path)), str(number), ["a"])


def test_concurrent_writers_each_get_a_number(tmp_path: Path):
    path = tmp_path / "l.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_open, args=(str(path), i)) for i in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(ask(Ledger(path), str(i), ["a"]).number for i in range(3)) == [1, 2, 3]
