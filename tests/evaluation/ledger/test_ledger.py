"""Openings are counted, whoever asks from wherever, and what ledgers lack is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.forked import CONTEXT

from bedplate.core.errors import DataError
from bedplate.core.files import bedplate_home, file_lock, read_jsonl
from bedplate.evaluation.ledger import Opening, TestLedger, keys_of
from bedplate.evaluation.ledger import ledger as ledgers


def open_verdict(ledger: TestLedger, verdict: str, rows: list[str]) -> Opening:
    return ledger.open(verdict, rows, task="t", reason="r")


def rows_of(ledger: TestLedger, verdict: str, *texts: str) -> Opening:
    keys = keys_of((str(i), {"text": text}) for i, text in enumerate(texts))
    return ledger.open(verdict, keys, task="t", reason="r")


def test_verdicts_on_the_same_rows_are_counted(tmp_path: Path):
    ledger = TestLedger(tmp_path / "l.jsonl")
    assert [open_verdict(ledger, v, ["a", "b"]).number for v in ("1", "2", "3")] == [1, 2, 3]
    assert not open_verdict(ledger, "1", ["a", "b"]).exploratory
    assert open_verdict(ledger, "2", ["a", "b"]).exploratory


def test_the_same_question_spends_nothing_again(tmp_path: Path):
    ledger = TestLedger(tmp_path / "l.jsonl")
    open_verdict(ledger, "1", ["a"])
    open_verdict(ledger, "2", ["a"])
    size = ledger.path.stat().st_size
    assert open_verdict(ledger, "1", ["a"]).number == 1
    assert ledger.path.stat().st_size == size


def test_one_known_row_is_enough_and_fresh_rows_start_anew(tmp_path: Path):
    ledger = TestLedger(tmp_path / "l.jsonl")
    open_verdict(ledger, "1", ["a", "b"])
    assert open_verdict(ledger, "2", ["b", "c"]).number == 2
    assert open_verdict(ledger, "3", ["c", "d"]).number == 2
    assert open_verdict(ledger, "4", ["x", "y"]).number == 1


def test_a_killed_writers_line_is_no_entry(tmp_path: Path):
    ledger = TestLedger(tmp_path / "l.jsonl")
    open_verdict(ledger, "1", ["a"])
    whole = ledger.path.read_text()
    ledger.path.write_text(whole + whole[:20])
    assert open_verdict(ledger, "2", ["a"]) == Opening("2", 2)
    assert open_verdict(ledger, "3", ["a"]) == Opening("3", 3)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("how", ["taken out", "changed", "no entry", "no json"])
def test_a_broken_chain_is_said_and_counts(tmp_path: Path, how: str, place: int):
    ledger = TestLedger(tmp_path / "l.jsonl")
    for verdict in "123":
        open_verdict(ledger, verdict, ["a"])
    ledger_lines = lines(ledger.path)
    ledger_lines[place] = {
        "taken out": "",
        "changed": ledger_lines[place].replace('"a"', '"z"'),
        "no entry": '{"verdict": "1"}\n',
        "no json": "so\n",
    }[how]
    ledger.path.write_text("".join(ledger_lines))
    opening = open_verdict(ledger, "4", ["a"])
    assert opening.number == 4  # two that are left, and one for what was done to it
    assert "is damaged at line" in opening.notes[0]
    assert "restore the file" in opening.notes[0]
    assert open_verdict(ledger, "5", ["b"]).number == 2  # of which nobody knows that it is new
    assert len(open_verdict(ledger, "5", ["b"]).notes) == 1  # the chain goes on, and is broken at that place


def test_the_last_entry_cannot_be_changed_either(tmp_path: Path):
    ledger = TestLedger(tmp_path / "l.jsonl")
    for verdict in "12":
        open_verdict(ledger, verdict, ["a"])
    ledger_lines = lines(ledger.path)
    ledger.path.write_text(ledger_lines[0] + ledger_lines[1].replace('"a"', '"z"'))
    opening = open_verdict(ledger, "3", ["a"])
    assert opening.number == 3
    assert "is damaged at line 2:" in opening.notes[0]
    assert open_verdict(ledger, "4", ["a"]).number == 4  # the chain goes on from there, with one break


def test_a_ledger_from_before_the_chain_is_read_and_goes_on(tmp_path: Path):
    ledger = TestLedger(tmp_path / "l.jsonl")
    old = [{"verdict": str(n), "number": n, "task": "t", "reason": "r", "at": "x", "rows": ["a"]} for n in (1, 2)]
    ledger.path.write_text("".join(json.dumps(record) + "\n" for record in old))
    assert open_verdict(ledger, "3", ["a"]) == Opening("3", 3)
    assert open_verdict(ledger, "4", ["a"]) == Opening("4", 4)
    ledger_lines = lines(ledger.path)
    ledger.path.write_text("".join([*ledger_lines, json.dumps(old[0] | {"verdict": "new"}) + "\n"]))
    assert open_verdict(ledger, "5", ["a"]).number == 7  # one that was put behind the chain is one, and breaks it


def test_it_lies_apart_from_the_cache():
    assert TestLedger().path.parent == bedplate_home() / "ledger"
    assert "hub" not in TestLedger().path.parts


def test_rows_that_were_written_once_are_not_written_again(tmp_path: Path):
    ledger = TestLedger(tmp_path / "l.jsonl")
    texts = [f"a text of several words that has the number {n} in it" for n in range(50)]
    for verdict in "123":
        assert rows_of(ledger, verdict, *texts).number == int(verdict)
    sizes = [len(line) for line in lines(ledger.path)]
    assert sizes[1] < sizes[0] / 10
    assert rows_of(ledger, "4", texts[7]).number == 4


# --- beside the data


def two(tmp_path: Path, home: str = "home") -> TestLedger:
    (tmp_path / "data").mkdir(exist_ok=True)
    return TestLedger(tmp_path / home / "l.jsonl", data_ledgers=[tmp_path / "data" / ".bedplate" / "o.jsonl"])


def test_another_home_knows_from_the_ledger_beside_the_data(tmp_path: Path):
    assert rows_of(two(tmp_path), "1", "some text") == Opening("1", 1)
    opening = rows_of(two(tmp_path, "other"), "2", "Some text!")
    assert opening.number == 2
    assert "an earlier opening of these rows is known from the ledger beside the data alone" in opening.notes[0]
    assert rows_of(two(tmp_path), "3", "some  text").number == 3
    assert rows_of(two(tmp_path), "2", "Some text!").number == 2  # one question, whichever home asks


def test_a_ledger_that_was_taken_from_beside_the_data_is_missed(tmp_path: Path):
    for verdict in "12":
        rows_of(two(tmp_path), verdict, "some text")
    data_ledger = two(tmp_path).data_ledgers[0]
    data_ledger.unlink()
    opening = rows_of(two(tmp_path), "3", "some text")
    assert opening.number == 3
    assert "is not there any more" in opening.notes[0]


def test_a_verdict_of_another_home_that_is_asked_again_here_is_not_missed(tmp_path: Path):
    rows_of(two(tmp_path), "1", "some text")
    rows_of(two(tmp_path, "other"), "2", "some text")
    assert rows_of(two(tmp_path), "2", "some text") == Opening("2", 2)
    assert rows_of(two(tmp_path), "3", "some text") == Opening("3", 3)


def test_openings_of_others_that_were_taken_out_still_count(tmp_path: Path):
    rows_of(two(tmp_path), "1", "some text")
    for verdict in "23":
        rows_of(two(tmp_path, "other"), verdict, "some text")
    rows_of(two(tmp_path), "4", "some text")
    data_ledger = two(tmp_path).data_ledgers[0]
    data_ledger.write_text(lines(data_ledger)[0])
    opening = rows_of(two(tmp_path), "5", "some text")
    assert opening.number == 5  # this home's two, and two of the other's that stood there when it wrote last
    assert "lacks 3 of the openings that it had" in opening.notes[0]


def test_a_kill_between_the_two_is_made_good_by_the_same_question(tmp_path: Path):
    rows_of(two(tmp_path), "1", "some text")
    two(tmp_path).data_ledgers[0].unlink()
    assert rows_of(two(tmp_path), "1", "some text") == Opening("1", 1)
    assert [record["verdict"] for record in read_jsonl(two(tmp_path).data_ledgers[0])] == ["1"]


def test_an_entry_cut_off_the_end_of_both_is_missed_from_then_on(tmp_path: Path):
    for verdict in "123":
        rows_of(two(tmp_path), verdict, "some text")
    for path in (two(tmp_path).path, *two(tmp_path).data_ledgers):
        path.write_text("".join(lines(path)[:-1]))
    opening = rows_of(two(tmp_path), "4", "some text")
    assert opening.number == 4
    assert "lacks 1 of the verdicts that it had" in " ".join(opening.notes)
    assert rows_of(two(tmp_path), "5", "some text").number == 5
    assert rows_of(two(tmp_path), "3", "some text") == Opening("3", 5)  # known again: nothing is lacking


def test_a_kill_before_the_head_is_written_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows_of(two(tmp_path), "1", "some text")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ledgers, "atomic_write", killed)
        with pytest.raises(KeyboardInterrupt):
            rows_of(two(tmp_path), "2", "some text")
    assert rows_of(two(tmp_path), "3", "some text") == Opening("3", 3)
    assert rows_of(two(tmp_path), "2", "some text") == Opening("2", 2)


@pytest.mark.parametrize("content", ["", "[]", '{"verdicts": 1}'])
def test_a_damaged_head_is_noted_and_written_anew(tmp_path: Path, content: str):
    rows_of(two(tmp_path), "1", "some text")
    [head] = (ledgers.bedplate_home() / "ledger-heads").iterdir()
    head.write_text(content)
    opening = rows_of(two(tmp_path), "2", "some text")
    assert opening.number == 2
    assert f"{head} is damaged" in " ".join(opening.notes)
    assert rows_of(two(tmp_path), "3", "some text").notes == ()


def test_data_that_cannot_be_written_beside_is_said(tmp_path: Path):
    rows_of(two(tmp_path), "1", "some text")
    place = two(tmp_path).data_ledgers[0]
    (tmp_path / "data" / "file").write_text("")
    blocked = TestLedger(tmp_path / "home" / "l.jsonl", data_ledgers=[place, tmp_path / "data" / "file" / "o.jsonl"])
    with pytest.raises(DataError, match="cannot be read"):
        rows_of(blocked, "2", "some text")
    missing = TestLedger(
        tmp_path / "home" / "l.jsonl", data_ledgers=[place, tmp_path / "none" / ".bedplate" / "o.jsonl"]
    )
    opening = rows_of(missing, "2", "some text")
    assert opening.number == 2
    assert "cannot be written" in opening.notes[0]
    off = TestLedger(tmp_path / "third" / "l.jsonl", data_ledgers=[place], keep_beside=False)
    size = place.stat().st_size
    opening = rows_of(off, "3", "some text")
    assert (opening.number, place.stat().st_size) == (3, size)  # read all the same
    assert "BEDPLATE_DATA_LEDGER is off" in opening.notes[0]


@pytest.mark.parametrize("place", [0, 1])
def test_rows_that_were_taken_out_of_one_of_two_entries_are_known_by_the_other(tmp_path: Path, place: int):
    rows_of(two(tmp_path), "1", "some text")
    path = [two(tmp_path).path, two(tmp_path).data_ledgers[0]][place]
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "rows": [], "exact": [], "like": []}) + "\n")
    assert rows_of(two(tmp_path), "2", "some text").number == 3  # that verdict, and what was done to its entry


# --- several at once


def _open(root: str, number: int) -> None:
    rows_of(two(Path(root), f"home{number % 2}"), str(number), "some text")


def test_concurrent_writers_each_get_a_number(tmp_path: Path):
    (tmp_path / "data" / ".bedplate").mkdir(parents=True)
    writers = [CONTEXT.Process(target=_open, args=(str(tmp_path), i)) for i in range(3)]
    with file_lock(two(tmp_path).data_ledgers[0].with_name("o.jsonl.lock")):
        for writer in writers:
            writer.start()
    for writer in writers:
        writer.join()
    entries = read_jsonl(two(tmp_path).data_ledgers[0])
    assert sorted(record["number"] for record in entries) == [1, 2, 3]
    assert not any("damaged" in note for note in rows_of(two(tmp_path), "4", "some text").notes)
