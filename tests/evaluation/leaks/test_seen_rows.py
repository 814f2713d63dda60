"""Rows that a skin was trained on or chosen by are no test of it, whatever split another seed puts them in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.adaptation.conftest import write_rows, write_task
from tests.tiny import write_tiny_base

import bedplate
from bedplate.cli.main import main
from bedplate.core.config import dump_config
from bedplate.core.errors import UsageError
from bedplate.core.files import bedplate_home, read_jsonl
from bedplate.data.splits import SplitRecord, split
from bedplate.evaluation.examples import SPLITS, load_examples
from bedplate.evaluation.leaks.seen_rows import read_splits, write_splits
from bedplate.evaluation.task import load_task
from bedplate.models.checkpoints.base import load_base
from bedplate.skins.files import write_skin
from bedplate.skins.output import LabelOutput
from bedplate.skins.phrasings import default_continuations, default_prompt
from bedplate.skins.records import SETTINGS_FILE, Run
from bedplate.skins.skin import BaseReference, EvaluatedWith, InputField, Provenance, Skin


@pytest.fixture(scope="module")
def skin_and_task(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A skin in the directory of the run that made it, and the task that it was made for."""
    place = tmp_path_factory.mktemp("seen")
    base = write_tiny_base(place / "base")
    path = write_task(place / "task", base, rows=write_rows(place / "rows.jsonl", groups=80))
    task = load_task(path)
    data, labels = load_examples(task), task.labels
    run_fields = {"task": task.task, "task_file": str(path), "seed": 0, "rungs": ("zero_shot",), "exhaustive": False}
    (place / "run").mkdir()
    Run.model_validate({"id": "1" * 64, "budget_seconds": None, "data": dict(data.hashes), **run_fields}).write(
        place / "run"
    )
    (place / "run" / SETTINGS_FILE).write_text(dump_config(task), "utf-8")
    write_splits(place / "run", data)
    skin = Skin(
        name="plain",
        bases={"main": BaseReference.of(str(base), "llama", load_base(base).identity)},
        inputs={"review": InputField()},
        output=LabelOutput(labels=labels, continuations=default_continuations(labels)),
        prompt=default_prompt(task.task, task.instructions, ["review"], labels),
        evaluated_with=EvaluatedWith(weights="float32"),
        provenance=Provenance(task=task.task, splits={name: data.hashes[name] for name in SPLITS}),
    )
    return write_skin(skin, place / "run" / "skins" / skin.name), path


def groups(task: Path, *overrides: str) -> dict[str, set[str]]:
    data = load_examples(load_task(task, overrides))
    return {name: {e.group for e in data.examples(name, "to count")} for name in ("train", "valid", "test")}


def test_its_own_splits_are_judged_whole(skin_and_task: tuple[Path, Path]) -> None:
    skin, task = skin_and_task
    evaluation = bedplate.evaluate(skin, task, split="test")
    assert (evaluation.left_out, evaluation.seen) == (0, {"train": 0, "valid": 0, "test": evaluation.n})
    evaluation = bedplate.evaluate(skin, task)
    assert (evaluation.left_out, evaluation.seen) == (0, {"train": 0, "valid": evaluation.n, "test": 0})


@pytest.mark.parametrize("split", ["valid", "test"])
def test_what_another_seed_mixes_is_left_out_and_counted(skin_and_task: tuple[Path, Path], split: str) -> None:
    skin, task = skin_and_task
    before, after = groups(task), groups(task, "data.seed=1")
    reseeded = load_task(task, ["data.seed=1"])
    evaluation = bedplate.evaluate(skin, reseeded, split=split)
    had = before["train"] | (before["valid"] if split == "test" else set())
    assert {row.group for row in evaluation.rows} == after[split] - had
    assert evaluation.left_out == 2 * len(after[split] & had) > 0
    assert evaluation.seen == {name: 2 * len(after[split] & before[name]) for name in before}
    unfiltered = bedplate.evaluate(skin, reseeded, split=split, include_seen=True)
    assert (unfiltered.n, unfiltered.left_out, unfiltered.seen) == (
        evaluation.n + evaluation.left_out,
        0,
        evaluation.seen,
    )


def test_rows_of_other_groups_are_known_by_their_texts(skin_and_task: tuple[Path, Path]) -> None:
    skin, task = skin_and_task
    data = load_examples(load_task(task))
    trained = {e.row_hash for e in data.train} | {e.row_hash for e in data.valid}
    overrides = ["data.group_by=null", "data.seed=2"]
    evaluation = bedplate.evaluate(skin, load_task(task, overrides), split="test")
    row_hashes = load_examples(load_task(task, overrides)).test.row_hashes
    assert {row.row_hash for row in evaluation.rows} == {*row_hashes} - trained
    assert evaluation.left_out > 0


def test_rows_that_were_touched_up_are_known(skin_and_task: tuple[Path, Path], tmp_path: Path) -> None:
    skin, task = skin_and_task
    lines = [json.loads(line) for line in (task.parent.parent / "rows.jsonl").read_text().splitlines()]
    for i, line in enumerate(lines):
        line |= {"text": line["text"].upper() + "\u200b!", "group": f"other {i // 2}", "id": f"x{i}"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation = bedplate.evaluate(skin, load_task(task, [f"data.source={tmp_path / 'rows.jsonl'}"]), split="test")
    assert evaluation.seen is not None
    assert sum(evaluation.seen.values()) == evaluation.n + evaluation.left_out
    assert evaluation.n == evaluation.seen["test"]


def test_nothing_is_left(skin_and_task: tuple[Path, Path], tmp_path: Path) -> None:
    skin, task = skin_and_task
    data = load_examples(load_task(task))
    lines = {json.loads(line)["id"]: line for line in (task.parent.parent / "rows.jsonl").read_text().splitlines()}
    parts = {"train": data.test.open("to mix"), "valid": data.valid, "test": data.train}
    for name, examples in parts.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines[e.id] for e in examples) + "\n")
    files = json.dumps({name: str(tmp_path / f"{name}.jsonl") for name in parts})
    mixed = load_task(task, ["data.source=null", f"data.split={files}"])
    with pytest.raises(UsageError, match=r"has seen all .* rows of test: its run had .* of them in train"):
        bedplate.evaluate(skin, mixed, split="test")
    assert not (bedplate_home() / "ledger" / "test-openings.jsonl").exists()  # nothing was looked at


def test_the_rows_that_are_left_have_the_shares_of_the_traffic(
    skin_and_task: tuple[Path, Path], tmp_path: Path
) -> None:
    skin, task = skin_and_task
    lines = [json.loads(line) for line in (task.parent.parent / "rows.jsonl").read_text().splitlines()]
    trained = {e.id for e in load_examples(load_task(task)).train}
    rows = [line | {"kind": "a" if line["id"] in trained and i % 4 < 2 else "b"} for i, line in enumerate(lines)]
    rows += [
        row | {"id": f"new{i}", "text": f"{i} new and {i} fine", "kind": "ab"[i % 2], "group": f"n{i}"}
        for i, row in enumerate(rows)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shares = "data.traffic={shares: {kind: {a: 0.9, b: 0.1}}}"
    overrides = [f"data.source={tmp_path / 'rows.jsonl'}", shares, "data.seed=1"]
    evaluation = bedplate.evaluate(skin, load_task(task, overrides), split="test")
    assert evaluation.left_out > 0
    assert sum(
        row.weight for row in evaluation.rows if (row.slices or {})["kind"] == "a"
    ) / evaluation.n == pytest.approx(0.9)


def test_a_group_is_known_by_its_columns_and_values_whatever_it_is_called_now(
    skin_and_task: tuple[Path, Path], tmp_path: Path
) -> None:
    """A group of several columns has the name of its least value, which other rows change."""
    task = skin_and_task[1]
    lines = [json.loads(line) for line in (task.parent.parent / "rows.jsonl").read_text().splitlines()]
    old = [line | {"day": f"d{line['group']}"} for line in lines]
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    group_by, source = "data.group_by=[group, day]", f"data.source={tmp_path / 'old.jsonl'}"
    grouped_task = load_task(task, [source, group_by])
    data = load_examples(grouped_task)
    write_splits(tmp_path, data)
    (tmp_path / SETTINGS_FILE).write_text(dump_config(grouped_task), "utf-8")
    value = data.train[0].links[0].partition("=")[2]
    several = SplitRecord("x", "0" * 64, "positive", "aaa", links=("aaa=1", f"group={value}"))
    unrelated = SplitRecord("y", "1" * 64, "positive", value, links=(f"product={value}",))
    for overrides in ([group_by], ["data.group_by=[day, group]"], ["data.group_by=group"], ["data.group_by=product"]):
        learned = read_splits(tmp_path, load_task(task, [source, *overrides]))
        assert (learned.splits_of(several), learned.splits_of(unrelated)) == ({"train"}, set())
        assert split([several], {"train": 0.1, "test": 0.9}, 0, learned)["train"] == (several,)


def test_a_name_of_a_group_of_other_columns_says_nothing(skin_and_task: tuple[Path, Path]) -> None:
    skin, task = skin_and_task
    trained = load_examples(load_task(task)).train[0].group
    row = SplitRecord("x", "0" * 64, "positive", trained)  # without links, as runs had them before there were any
    earlier_splits = {
        by: read_splits(skin.parent.parent, load_task(task, [f"data.group_by={by}"])) for by in ("group", "id")
    }
    assert {by: splits.splits_of(row) for by, splits in earlier_splits.items()} == {"group": {"train"}, "id": set()}


def test_the_command_says_it_and_looks_are_in_the_ledger(
    skin_and_task: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    skin, task = skin_and_task
    for arguments in (["--split", "test"], ["--split", "test"], [], ["--split", "train"]):
        with pytest.raises(SystemExit):
            main(["evaluate", str(skin), str(task), *arguments, "data.seed=1"])
        shown = " ".join(capsys.readouterr().out.split())
        assert ("are left out" in shown) == (arguments != ["--split", "train"])
    data = load_examples(load_task(task, ["data.seed=1"]))
    entries = read_jsonl(bedplate_home() / "ledger" / "test-openings.jsonl")
    assert len(entries) == 3  # test once, valid and train
    with pytest.raises(SystemExit):
        main(["evaluate", str(skin), str(task), "--split", "test", "--include-seen", "--json", "data.seed=1"])
    report = json.loads(capsys.readouterr().out)
    assert (report["n"], report["left_out"]) == (data.test.n, 0)
    assert report["seen"]["train"] > 0
