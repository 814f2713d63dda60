"""Asking the same test rows again under another name is counted, from the task file on."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from bedplate.adaptation.postprocess.evaluate import evaluate
from bedplate.core.files import bedplate_home
from bedplate.evaluation.examples import load_examples
from bedplate.evaluation.leaks.seen_rows import write_splits
from bedplate.evaluation.ledger import Opening, ledger_for
from bedplate.evaluation.task import load_task
from bedplate.skins.catalog import Catalog

VERBS = ("broke", "works", "arrived", "smells", "shines", "leaks", "sings", "burns")
NOUNS = [
    f"{a}{b}" for a in ("tea", "sun", "rain", "book", "snow", "fire") for b in ("pot", "hat", "coat", "shelf", "light")
]
Row = Mapping[str, Any]


@pytest.fixture(autouse=True)
def data_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BEDPLATE_DATA_LEDGER")


def rows(seed: int = 0, count: int = 120) -> list[Row]:
    draw = random.Random(seed)
    records: list[Row] = []
    for number in range(count):
        long = " ".join(draw.choices(NOUNS, k=draw.choice((2, 5, 18))))
        text = f"the {long} {draw.choice(VERBS)} {draw.choice(NOUNS)} {draw.randrange(10**6)}"
        records.append({"id": f"{seed}-{number}", "text": text, "label": "no" if number % 2 else "yes"})
    return records


def task(place: Path, records: list[Row], inputs: Mapping[str, str], name: str = "rows.jsonl") -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_text("".join(json.dumps(row) + "\n" for row in records), "utf-8")
    values = {
        "task": "asked",
        "inputs": {field: {"column": column} for field, column in inputs.items()},
        "output": {"kind": "label", "labels": ["no", "yes"]},
        "data": {"source": name, "target": "label", "split": {"train": 0.4, "valid": 0.2, "test": 0.4}},
        "metric": "accuracy",
    }
    (place / "task.yaml").write_text(yaml.safe_dump(values), "utf-8")
    return place / "task.yaml"


def opened(path: Path, verdict: str) -> Opening:
    """As the ladder and `evaluate` do before they ask anything."""
    read = load_task(path)
    return ledger_for(read).open(verdict, load_examples(read).test.keys, task=read.task, reason="test")


def changed(change: Callable[[str], str]) -> Callable[[list[Row]], list[Row]]:
    return lambda records: [{**row, "text": change(row["text"])} for row in records]


def one_word(text: str) -> str:
    words = text.split()
    return " ".join([*words[:-2], "another", words[-1]])


@pytest.mark.parametrize(
    ("change", "inputs", "location"),
    [
        (lambda records: [{**row, "body": row["text"]} for row in records], {"renamed": "body"}, "here"),
        (
            lambda records: [{**row, "shop": "books"} for row in records],
            {"text": "text", "shop": "shop"},
            "another home",
        ),
        (changed(lambda text: text + "."), {"text": "text"}, "another place"),
        (changed(lambda text: text.replace("e", "e\u200b")), {"text": "text"}, "another home"),
        (lambda records: records[::-1], {"text": "text"}, "another place"),
        (changed(one_word), {"text": "text"}, "here"),
        (changed(one_word), {"words": "text"}, "another home"),
        (lambda records: [{**row, "id": f"new{i}"} for i, row in enumerate(records)], {"text": "text"}, "here"),
    ],
    ids=["renamed", "added", "full stop", "zero width", "order", "one word", "one word at another home", "ids"],
)
def test_the_same_rows_are_counted(
    change: Callable[[list[Row]], list[Row]],
    inputs: Mapping[str, str],
    location: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert opened(task(tmp_path / "data", rows(), {"text": "text"}), "first").number == 1
    if location == "another home":
        monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path / "elsewhere"))
    place = tmp_path / ("copied" if location == "another place" else "data")
    opening = opened(task(place, change(rows()), inputs, "mine.jsonl"), "second")
    assert (opening.number, opening.exploratory) == (2, True)
    assert (
        opened(task(place, rows(1), {"text": "text"}, "fresh.jsonl"), "third").number == 1
    )  # rows of which none is known


def test_evaluate_writes_both_and_says_which_was_taken_away(tmp_path: Path) -> None:
    class Yes:
        def predict(self, rows: Any, /) -> list[str]:
            return ["yes" for _ in rows]

    path = task(tmp_path / "data", rows(), {"text": "text"})
    evaluate(Yes(), path, split="test")
    ledger_path = tmp_path / "data" / ".bedplate" / "test-openings.jsonl"
    assert ledger_path.is_file()
    shutil.rmtree(ledger_path.parent)
    opening = opened(path, "next")
    assert opening.number == 2
    assert f"{ledger_path}) is not there any more" in opening.notes[0]
    shutil.rmtree(bedplate_home() / "ledger")
    opening = opened(path, "last")
    assert opening.number == 3  # the first is known by the head alone; the second stands beside the data
    assert "lacks 1 of the verdicts that it had" in opening.notes[0]
    assert "known from the ledger beside the data alone" in opening.notes[1]


def judged(path: Path, out: Path, verdict: str) -> Path:
    """What a run leaves at home: its report in the catalogue, its splits beside that."""
    out.mkdir(parents=True)
    write_splits(out, load_examples(load_task(path)))
    report = out / "report.json"
    report.write_text(json.dumps({"task": "asked", "ledger": {"verdict_id": verdict}}), "utf-8")
    with Catalog.open() as catalog:
        assert catalog.add([out]).counts == {"report": 1}
    return report


def test_what_every_ledger_has_lost_is_known_from_the_reports(tmp_path: Path) -> None:
    path = task(tmp_path / "data", rows(), {"text": "text"})
    for verdict in ("first", "second"):
        opened(path, verdict)
        judged(path, tmp_path / verdict, verdict)
    assert opened(path, "second").notes == ()
    shutil.rmtree(bedplate_home() / "ledger")
    shutil.rmtree(tmp_path / "data" / ".bedplate")
    touched: list[Row] = [{"id": row["id"], "body": row["text"] + ".", "label": row["label"]} for row in rows()]
    opening = opened(task(tmp_path / "copy", touched, {"b": "body"}), "third")
    assert opening.number == 3
    assert opening.notes[0].startswith("2 earlier openings are known from reports alone (")
    assert "is not there, though the catalogue beside it knows of 2 verdicts" in opening.notes[1]
    assert opened(task(tmp_path / "other", rows(3), {"text": "text"}), "of others").number == 1


def test_a_ledger_that_is_gone_with_its_reports_is_missed(tmp_path: Path) -> None:
    path = task(tmp_path / "data", rows(), {"text": "text"})
    opened(path, "first")
    judged(path, tmp_path / "run", "first").unlink()
    shutil.rmtree(bedplate_home() / "ledger")
    shutil.rmtree(tmp_path / "data" / ".bedplate")
    note, head = opened(path, "second").notes
    assert "lacks 1 of the verdicts that it had" in head
    assert note.endswith("of 1 the rows are not known any more, so that this may be a later verdict than it says")


def test_the_first_verdict_of_a_home_says_so(tmp_path: Path) -> None:
    path = task(tmp_path / "data", rows(), {"text": "text"})
    (note,) = opened(path, "first").notes
    assert note.startswith(
        f"no earlier verdict on these rows is known: the test ledger begins here, at home ({bedplate_home()}"
    )
    assert opened(path, "second").notes == ()


def test_rows_without_a_file_have_their_ledger_beside_the_task(tmp_path: Path) -> None:
    path = task(tmp_path / "data", rows(), {"text": "text"})
    read = load_task(path, ["data.source=vader-news"])
    assert [ledger.parent.parent for ledger in ledger_for(read).data_ledgers] == [tmp_path / "data"]
    assert ledger_for(load_task(path), leave=tmp_path / "data").data_ledgers == ledger_for(read).data_ledgers
    assert ledger_for(None, tmp_path / "new.jsonl").data_ledgers[0].parent.parent == tmp_path
