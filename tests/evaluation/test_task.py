"""The task file refuses what it cannot do, by name; bad rows are named; splits hold what they should."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from bedplate.core.config import dump_config, parse_config
from bedplate.core.errors import ConfigError, DataError, UnreachableError, UsageError
from bedplate.data.splits import row_hash
from bedplate.evaluation.examples import load_examples
from bedplate.evaluation.task import OutputSpec, Task, load_task

EXAMPLE = Path(__file__).parents[2] / "examples" / "reviews" / "task.yaml"

BASE = {
    "task": "t",
    "inputs": {"review": {"column": "text"}},
    "output": {"kind": "label", "labels": ["no", "yes"]},
    "data": {
        "source": "rows.jsonl",
        "target": "y",
        "split": {"train": 0.6, "valid": 0.2, "test": 0.2},
    },
    "metric": "accuracy",
}

JSON = {
    "kind": "json",
    "json_schema": {
        "type": "object",
        "properties": {"stars": {"type": "integer"}, "good": {"type": "boolean"}},
        "required": ["stars", "good"],
        "additionalProperties": False,
    },
}


def rows(n: int = 50, **extra) -> list[dict]:
    return [{"text": f"text {i}", "y": ("no", "yes")[i % 2], **extra} for i in range(n)]


def write(directory: Path, data: list[dict] | None = None, text: str | None = None, **changes) -> Path:
    """A task file with its rows; `a__b=value` changes a nested key."""
    task = json.loads(json.dumps(BASE))
    for key, value in changes.items():
        node = task
        *parents, last = key.split("__")
        for parent in parents:
            node = node[parent]
        if value is None:
            node.pop(last)
        else:
            node[last] = value
    if data is not None:
        (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data), "utf-8")
    path = directory / "task.yaml"
    path.write_text(text if text is not None else yaml.safe_dump(task), "utf-8")
    return path


def test_the_example_is_the_demo() -> None:
    task = load_task(EXAMPLE)
    assert task.labels == ("negative", "positive")
    assert task.data.split.fractions == {"train": 0.6, "valid": 0.2, "test": 0.2}
    assert task.data.split.files is None
    assert task.adapt is not None
    assert task.adapt["target"] == {"value": 0.80, "confidence": 0.95}
    assert task.directory == EXAMPLE.parent


def test_the_hash_follows_the_resolved_file(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert load_task(path).hash == load_task(path).hash
    assert load_task(path, ["data.seed=1"]).data.seed == 1
    assert load_task(path, ["data.seed=1"]).hash != load_task(path).hash
    assert load_task(path, ["data.seed=0"]).hash == load_task(path).hash


@pytest.mark.parametrize(
    ("output", "metric", "digest"),
    [
        ({"kind": "label", "labels": ["a", "b"]}, "accuracy", "fb226dd656cb9ed7"),
        (
            {"kind": "label", "labels": ["a", "b"], "abstain": {"coverage": 0.5}},
            "selective_accuracy",
            "3d96fd187eb30415",
        ),
        ({"kind": "labels", "labels": ["a", "b"], "separator": ";", "max_tokens": 9}, "macro_f1", "647c1c5c21a16126"),
        ({"kind": "text", "max_tokens": 8, "stop": ["x"]}, "exact_match", "6f53d45dbc079d7d"),
        ({"kind": "json", "json_schema": {"type": "object"}}, "json_match", "624c4cd64c7b9372"),
        ({"kind": "embedding", "documents": {"source": "d.jsonl"}}, "ndcg@10", "3903eb88780a8338"),
    ],
)
def test_hashes_stay_what_they_were(output: dict[str, object], metric: str, digest: str) -> None:
    """A verdict is known by the task's hash, so a field that comes later may not change that of tasks without it."""
    task_fields = {"task": "t", "inputs": {"x": {"column": "x"}}, "output": output, "metric": metric}
    data = {"source": "x.csv", "target": "y", "split": {"train": 0.6, "valid": 0.2, "test": 0.2}}
    assert Task.model_validate(task_fields | {"data": data}).hash[:16] == digest


@pytest.mark.parametrize("late", ["json_schema", "separator", "documents", "abstain"])
def test_late_fields_are_written_only_where_they_are_given(late: str) -> None:
    assert late not in OutputSpec.model_validate(BASE["output"]).model_dump()


def test_the_resolved_file_reads_back_equal(tmp_path: Path) -> None:
    for path in (write(tmp_path), EXAMPLE):
        task = load_task(path)
        reloaded = parse_config(dump_config(task), Task, "resolved")
        assert reloaded.model_dump(mode="json") == task.model_dump(mode="json")
        assert reloaded.hash == task.hash


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrc": "accuracy"}, "'metrc'.*did you mean 'metric'"),
        ({"data__taget": "y"}, "'taget'.*did you mean 'target'"),
        (
            {"output__kind": "image"},
            "output kind 'image' is not supported yet; supported: label, labels, text, json, embedding",
        ),
        ({"output": {"kind": "json"}, "metric": "json_match"}, "needs `json_schema`"),
        (
            {"output": JSON, "metric": "accuracy"},
            "'accuracy' does not fit an output of kind json; json_match, json_fields would",
        ),
        ({"output": JSON | {"labels": ["a", "b"]}, "metric": "json_match"}, "kind label or labels, not json"),
        ({"output": JSON | {"stop": ["x"]}, "metric": "json_match"}, "`stop` belongs to"),
        ({"output": {"kind": "json", "json_schema": {"if": {}}}, "metric": "json_match"}, "'if'"),
        ({"output__json_schema": {"type": "object"}}, "`json_schema` belongs to outputs of kind json"),
        ({"output__kind": "lable"}, "no output kind 'lable'"),
        ({"inputs__review": {"column": "text", "kind": "image"}}, "input kind 'image' is not supported yet"),
        ({"inputs": {}}, "inputs"),
        ({"inputs": {"the review": {"column": "text"}}}, "the input name 'the review'"),
        ({"output__labels": ["yes", "yes", "no"]}, "the label 'yes' stands 2 times"),
        ({"output__labels": ["yes"]}, "at least 2"),
        ({"output__labels": [" yes", "no"]}, "' yes' is empty or has spaces"),
        ({"output__labels": None}, "needs `labels`"),
        ({"output__max_tokens": 3}, "`max_tokens` belongs to outputs of kind labels, text or json, not label"),
        ({"output": {"kind": "text", "labels": ["a", "b"]}, "metric": "exact_match"}, "`labels` belongs to"),
        ({"metric": "f1"}, "no metric 'f1'; there are (?!.*rouge)accuracy, macro_f1, "),  # only what fits a label
        (
            {"output": {"kind": "text"}},
            "'accuracy' does not fit an output of kind text; exact_match, squad_exact, token_f1, .* would",
        ),
        ({"data__split": {"train": 0.6, "valid": 0.2, "test": 0.3}}, "must sum to 1, not 1.1"),
        ({"data__split": {"train": 0.8, "valid": 0.2}}, r"data.split.test: .*required"),
        ({"data__split__test": 1.5}, "data.split.test"),
        ({"data__split__test": "t.csv"}, "not some of each"),
        ({"data__split": {"train": "a.csv", "valid": "a.csv", "test": "b.csv"}}, "three different files"),
        ({"data__split": {"train": "a.csv", "valid": "v.csv", "test": "b.csv"}}, "do not go with files"),
        ({"data__source": None}, "`source` is missing"),
        ({"data__limit": 0}, "data.limit"),
        ({"task": "a/b"}, "task"),
        ({"metric": None}, "metric: .*required"),
    ],
)
def test_a_wrong_task_file_is_named(tmp_path: Path, changes: dict, message: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message) as caught:
        load_task(path)
    assert "task.yaml" in str(caught.value)


def test_unquoted_yes_and_no_say_quote_it(tmp_path: Path) -> None:
    text = yaml.safe_dump(BASE).replace("- 'no'", "- no").replace("- 'yes'", "- yes")
    with pytest.raises(ConfigError, match="quote it"):
        load_task(write(tmp_path, text=text))


def test_rows_become_examples(tmp_path: Path) -> None:
    data = [{**row, "id": f"r{i}", "g": i // 5} for i, row in enumerate(rows())]
    task = load_task(write(tmp_path, data, data__group_by="g"))
    loaded = load_examples(task)
    everything = [*loaded.train, *loaded.valid, *loaded.test.open("a test")]
    assert sorted(e.id for e in everything) == sorted(row["id"] for row in data)
    by_id = {row["id"]: row for row in data}
    for example in everything:
        row = by_id[example.id]
        assert example.inputs == {"review": row["text"]}
        assert (example.target, example.group) == (row["y"], str(row["g"]))
        assert example.row_hash == row_hash(example.inputs)
    parts = [{e.group for e in part} for part in (loaded.train, loaded.valid, loaded.test.open("again"))]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 10
    assert loaded.counts["train"] + loaded.counts["valid"] + loaded.counts["test"] == loaded.counts["read"] == 50
    assert (loaded.test.n, loaded.test.groups) == (len(loaded.test.open("n")), len(parts[2]))


def test_test_is_opened_for_a_reason_and_remembers(tmp_path: Path) -> None:
    loaded = load_examples(load_task(write(tmp_path, rows())))
    assert loaded.test.openings == []
    assert "text" not in repr(loaded.test)
    with pytest.raises(UsageError, match="reason"):
        loaded.test.open(" ")
    assert tuple(e.row_hash for e in loaded.examples("test", "final verdict")) == loaded.test.row_hashes
    assert loaded.test.openings == ["final verdict"]
    assert loaded.examples("valid", "tune") == loaded.valid
    with pytest.raises(UsageError, match="no split 'dev'; there are train, valid, test"):
        loaded.examples("dev", "x")


def test_splits_do_not_depend_on_the_order_of_the_file(tmp_path: Path) -> None:
    first = load_examples(load_task(write(tmp_path, rows())))
    second = load_examples(load_task(write(tmp_path, rows()[::-1])))
    for name in ("train", "valid", "test"):
        assert first.hashes[name] == second.hashes[name]
    assert first.hashes["file:rows.jsonl"] != second.hashes["file:rows.jsonl"]
    reseeded = load_examples(load_task(write(tmp_path, rows()), ["data.seed=3"]))
    assert reseeded.hashes["test"] != first.hashes["test"]


def test_what_is_dropped_is_counted_and_noted(tmp_path: Path) -> None:
    data = [
        *rows(),
        {"text": " TEXT  3 ", "y": "yes"},
        {"text": "  ", "y": "no"},
        {"text": None, "y": "no"},
        {"text": "text 4", "y": "yes"},
    ]
    loaded = load_examples(load_task(write(tmp_path, data)))
    assert loaded.counts["duplicates"] == 1
    assert loaded.counts["empty_text"] == 2
    assert loaded.counts["contradictory"] == 2
    used = sum(loaded.counts[name] for name in ("train", "valid", "test"))
    assert used + 1 + 2 + 2 == loaded.counts["read"] == 54
    assert any("2 rows without text" in note for note in loaded.notes)
    assert any("line 5: 'no', line 54: 'yes'" in note for note in loaded.notes)


def test_a_limit_keeps_whole_groups_and_counts_the_rest(tmp_path: Path) -> None:
    data = [{**row, "g": f"g{i // 5}"} for i, row in enumerate(rows(200))]
    loaded = load_examples(load_task(write(tmp_path, data, data__group_by="g", data__limit=103)))
    sizes = Counter(e.group for e in [*loaded.train, *loaded.valid, *loaded.test.open("t")])
    assert set(sizes.values()) == {5}
    assert sum(sizes.values()) == 100
    assert loaded.counts["over_limit"] == 100


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "y": "yess"}, r"rows.jsonl, line 51: the label 'yess' .*did you mean 'yes'\? labels: no, yes"),
        ({"text": "a", "y": True}, r"line 51: the label True \(bool, not text\)"),
        ({"text": "a", "y": None}, "line 51: the label in column .y. is empty"),
        ({"text": "a"}, "line 51: the label in column .y. is empty"),
        ({"text": 3, "y": "yes"}, "line 51: column 'text' holds 3, which is int, not text"),
        ({"text": "a\ud800", "y": "yes"}, "line 51: .*surrogate"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict, message: str) -> None:
    task = load_task(write(tmp_path, [*rows(), row]))
    with pytest.raises(DataError, match=message):
        load_examples(task)


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        (rows(), {"inputs__review__column": "txt"}, "no column 'txt'; did you mean 'text'"),
        (rows(), {"data__target": "label"}, "no column 'label'.*the columns are text, y"),
        (rows(), {"data__group_by": "g"}, "no column 'g'"),
        (rows(g=""), {"data__group_by": "g"}, r"line 1: the group \(g\) is ''"),
        (rows(id="same"), {}, "the id 'same' is on more than one row"),
        (rows(g="one"), {"data__group_by": "g"}, "the valid split is empty: 50 usable rows in 1 groups"),
        (rows(2), {}, "split is empty"),
        (rows(7), {"output__labels": ["no", "yes", "maybe"]}, "the valid split has [12] rows for 3 labels"),
        (
            rows(),
            {"output__labels": ["no", "yes", "maybe"]},
            "^no row has the label 'maybe'; add such rows, or take it off output.labels",
        ),
        (rows(), {"data__source": "none.jsonl"}, "none.jsonl: the data file does not exist"),
    ],
)
def test_data_that_cannot_be_used_is_named(tmp_path: Path, data: list[dict], changes: dict, message: str) -> None:
    task = load_task(write(tmp_path, data, **changes))
    with pytest.raises(DataError, match=message) as refused:
        load_examples(task)
    # what the task file names and is not there is a mistake in the task file, as the exit code says
    assert refused.value.exit_code == (2 if "no column" in message or "does not exist" in message else 1)


def test_a_label_that_the_file_of_train_lacks_is_named_with_its_rows(tmp_path: Path) -> None:
    files = {"train": "train.csv", "valid": "valid.csv", "test": "test.csv"}
    for name, file in files.items():
        labels = ["no", "yes"] * 4 + ["maybe"] * {"train": 0, "valid": 2, "test": 1}[name]
        lines = [f"{name} {i},{label}" for i, label in enumerate(labels)]
        (tmp_path / file).write_text("\n".join(["text,y", *lines]) + "\n", "utf-8")
    changes = {"data__split": files, "data__source": None, "output__labels": ["no", "yes", "maybe"]}
    message = "no row of the train split has the label 'maybe'; move some of its 2 rows of valid and 1 of test there"
    with pytest.raises(DataError, match=message):
        load_examples(load_task(write(tmp_path, **changes)))


def test_splits_from_files_are_checked_for_leaks(tmp_path: Path) -> None:
    files = {"train": "train.csv", "valid": "valid.csv", "test": "test.csv"}
    for name, file in files.items():
        lines = [f"{name} {i},{('no', 'yes')[i % 2]}" for i in range(6)]
        (tmp_path / file).write_text("\n".join(["text,y", *lines]) + "\n", "utf-8")
    task = load_task(write(tmp_path, data__split=files, data__source=None))
    loaded = load_examples(task)
    assert [e.id for e in sorted(loaded.valid, key=lambda e: e.id)] == [f"valid/line {i}" for i in range(2, 8)]
    assert loaded.counts["read"] == 18
    with (tmp_path / "test.csv").open("a") as file:
        file.write("TRAIN 0,no\n")
    with pytest.raises(DataError, match=r"the same text stands in train \(row train/line 2\) and in test"):
        load_examples(task)


def test_text_outputs_need_a_target(tmp_path: Path) -> None:
    data = [{"text": f"question {i}", "y": f"answer {i}"} for i in range(20)]
    changes = {"output": {"kind": "text", "max_tokens": 8, "stop": ["\n"]}, "metric": "exact_match"}
    loaded = load_examples(load_task(write(tmp_path, data, **changes)))
    assert all(e.target == e.inputs["review"].replace("question", "answer") for e in loaded.train)
    with pytest.raises(DataError, match=r"line 21: the target \(y\) is empty"):
        load_examples(load_task(write(tmp_path, [*data, {"text": "question", "y": " "}], **changes)))


@pytest.mark.real
def test_the_demo_data_splits_by_review() -> None:
    try:
        loaded = load_examples(load_task(EXAMPLE))
    except UnreachableError as error:
        pytest.skip(f"REAL DATA MISSING: vader-amazon: {error}")
    assert loaded.counts["duplicates"] == 8  # 11 in the whole file, 8 among the sentences that are not neutral
    test = loaded.test.open("count")
    parts = (loaded.train, loaded.valid, test)
    assert sum(len(part) for part in parts) == 2943 - 8
    assert all(abs(len(part) - f * 2935) < 20 for part, f in zip(parts, (0.6, 0.2, 0.2), strict=True))
    for part in parts:
        assert sum(e.target == "positive" for e in part) / len(part) == pytest.approx(0.586, abs=0.005)
    assert loaded.test.groups >= 55
    assert loaded.licences == ("MIT",)


def test_targets_of_json_are_values_or_texts_in_one_form(tmp_path: Path) -> None:
    value = {"stars": 4, "good": True}
    data = rows()
    for i, row in enumerate(data):
        row["y"] = value if i % 2 else '{ "good": true,\n"stars": 4 }'
    examples = load_examples(load_task(write(tmp_path, data, output=JSON, metric="json_match")))
    assert {e.target for e in examples.train} == {'{"good":true,"stars":4}'}
    data[3]["y"] = {"stars": "four", "good": True}
    with pytest.raises(DataError, match=r"line 4: the target \(y\): the output does not fit the schema at \$.stars"):
        load_examples(load_task(write(tmp_path, data, output=JSON, metric="json_match")))


def test_a_schema_is_part_of_the_hash(tmp_path: Path) -> None:
    variant = JSON | {"json_schema": {"type": "object"}}
    hashes = {load_task(write(tmp_path, output=output, metric="json_match")).hash for output in (JSON, variant)}
    assert len(hashes) == 2


def test_a_group_in_two_files_and_a_label_that_valid_lacks(tmp_path: Path) -> None:
    """A leak through the group is an error; an absent class is only told, because what is measured is still right."""
    files = {"train": "train.csv", "valid": "valid.csv", "test": "test.csv"}
    for number, (name, file) in enumerate(files.items()):
        labels = ("no", "no") if name == "valid" else ("no", "yes")
        lines = [f"{name} {i},{labels[i % 2]},g{10 * number + i}" for i in range(6)]
        (tmp_path / file).write_text("\n".join(["text,y,g", *lines]) + "\n", "utf-8")
    task = load_task(write(tmp_path, data__split=files, data__source=None, data__group_by="g"))
    assert "the valid split has no row with the label 'yes'" in load_examples(task).notes
    with (tmp_path / "test.csv").open("a") as file:
        file.write("something else,no,g3\n")
    with pytest.raises(DataError, match=r"the group 'g3' stands in train \(row train/line 5\) and in test"):
        load_examples(task)


def test_several_sources_are_one_set_of_rows(tmp_path: Path) -> None:
    """Copies are found across files, and so are rows that contradict one another."""
    extra_rows = [{"text": "text 3", "y": "yes"}, {"text": "text 4", "y": "yes"}, {"text": "new", "y": "no"}]
    (tmp_path / "again.jsonl").write_text("".join(json.dumps(row) + "\n" for row in extra_rows), "utf-8")
    task = load_task(write(tmp_path, rows(), data__source=["rows.jsonl", "again.jsonl"]))
    loaded = load_examples(task)
    assert loaded.counts["duplicates"] == 1
    assert loaded.counts["contradictory"] == 2
    ids = {e.id for name in ("train", "valid", "test") for e in loaded.examples(name, "a test of sources")}
    assert len(ids) == 50 - 1 + 1
    assert "again.jsonl/line 3" in ids
    assert {"file:rows.jsonl", "file:again.jsonl"} <= loaded.hashes.keys()
    single = load_examples(load_task(write(tmp_path, rows())))
    assert single.hashes["file:rows.jsonl"] == loaded.hashes["file:rows.jsonl"]
    with pytest.raises(ConfigError, match="a source is named twice"):
        load_task(write(tmp_path, rows(), data__source=["rows.jsonl", "rows.jsonl"]))


def test_rows_without_an_answer_are_dropped_and_named_where_the_task_says_so(tmp_path: Path) -> None:
    gaps = [{"text": "one", "y": ""}, {"text": "two", "y": " "}, {"text": "", "y": ""}, {"text": "three"}]
    listed = r"3 of 54 rows \(lines 51, 52, 54\)"
    with pytest.raises(
        DataError, match=rf"line 51: the label in column 'y' is empty, as it is in {listed}; fill it in"
    ):
        load_examples(load_task(write(tmp_path, [*rows(), *gaps])))
    loaded = load_examples(load_task(write(tmp_path, [*rows(), *gaps], data__unlabelled="drop")))
    assert (loaded.counts["unlabelled"], loaded.counts["empty_text"]) == (3, 1)
    assert sum(loaded.counts[name] for name in ("train", "valid", "test")) == 50
    assert any(re.search(f"rows without 'y' were dropped: {listed}", note) for note in loaded.notes)
    plain = load_task(write(tmp_path, rows()))
    assert "unlabelled" not in load_examples(plain).counts
    assert plain.hash == load_task(write(tmp_path, rows(), data__unlabelled="refuse")).hash
