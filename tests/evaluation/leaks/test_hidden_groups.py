"""Groups that are there and not declared are found, others are not; what is found stops a run until it is answered."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bedplate.core.errors import ConfigError, DataError
from bedplate.data.rows import SourceRows
from bedplate.evaluation.examples import load_examples, sources_of
from bedplate.evaluation.in_memory import every_row
from bedplate.evaluation.leaks.hidden_groups import (
    grouping_of,
    hidden_groups,
    near_copies,
    table_of,
    word_vectors,
)
from bedplate.evaluation.task import Task, load_task
from bedplate.report.schema_parts import HiddenGroups

WORDS = np.array([f"{a}{b}" for a in "bcdfghklmnprstvz" for b in ("ad", "el", "im", "or", "un", "ast", "ent", "ick")])


def task(**data: Any) -> Task:
    split = {"train": 0.6, "valid": 0.2, "test": 0.2}
    return Task.model_validate(
        {
            "task": "t",
            "inputs": {"text": {"column": "text"}},
            "output": {"kind": "label", "labels": ["no", "yes"]},
            "metric": "accuracy",
            "data": {"source": "rows", "target": "label", "split": split, **data},
        }
    )


def rows(
    seed: int, groups: int = 60, group_size: int = 6, icc: float = 0.0, word_share: float = 0.0, shuffled: bool = True
) -> list[dict[str, Any]]:
    """Rows whose labels are Beta-binomial by group, with `word_share` of the words being the group's; a column of
    chance."""
    rng = np.random.default_rng(seed)
    examples: list[dict[str, Any]] = []
    for group in range(groups):
        rate = rng.beta(0.5 * (1 / icc - 1), 0.5 * (1 / icc - 1)) if icc else 0.5
        group_words = rng.choice(WORDS, 5)
        for _ in range(group_size):
            words = np.where(rng.random(12) < word_share, rng.choice(group_words, 12), rng.choice(WORDS, 12))
            label = "yes" if rng.random() < rate else "no"
            examples.append(
                {"text": " ".join(words), "label": label, "customer": f"c{group}", "city": f"v{rng.integers(30)}"}
            )
    if shuffled:
        examples = [examples[i] for i in rng.permutation(len(examples))]
    return examples


def look(examples: list[dict[str, Any]], **data: Any) -> dict[str, HiddenGroups]:
    groups, _ = hidden_groups(table_of(task(**data), {"": whole(examples)}))
    return {group.name: group for group in groups}


def whole(examples: list[dict[str, Any]]) -> SourceRows:
    columns = tuple(dict.fromkeys(name for row in examples for name in row))
    return SourceRows(tuple(examples), tuple(range(1, len(examples) + 1)), columns, {}, "0" * 64, "rows", Path("rows"))


def strong(groups: Mapping[str, HiddenGroups]) -> set[str]:
    return {name for name, group in groups.items() if group.strong}


@pytest.mark.parametrize(("icc", "word_share"), [(0.25, 0.0), (0.0, 0.3)], ids=["targets", "texts"])
def test_a_column_within_which_rows_are_alike(icc: float, word_share: float) -> None:
    groups = look(rows(1, icc=icc, word_share=word_share))
    assert strong(groups) == {"customer"}
    customer = groups["customer"]
    assert (customer.rows, customer.groups) == (360, 60)
    assert customer.worth == pytest.approx(60)
    correlation = max(customer.alike_targets or 0, customer.alike_texts or 0)
    assert customer.design_effect == pytest.approx(1 + 5 * correlation)
    assert customer.effective_rows == pytest.approx(360 / customer.design_effect)
    assert customer.p_value is not None
    assert customer.p_value <= 0.01
    assert not groups["city"].strong  # repeats as well, and says nothing


def test_blank_values_are_no_group() -> None:
    examples = [{"text": text, "label": "no", "user": " ", "item": text} for text in "abc"]
    assert len({*table_of(task(group_by=["user", "item"]), {"": whole(examples)}).groups}) == 3


def test_many_columns_of_dates_hide_no_groups() -> None:
    rng = np.random.default_rng(0)
    dates = {f"date{i}": [f"2026-01-{day:02}" for day in rng.integers(1, 29, 360)] for i in range(16)}
    examples = [row | {name: days[i] for name, days in dates.items()} for i, row in enumerate(rows(1, icc=0.25))]
    assert strong(look(examples)) == {"customer"}


def test_free_targets_that_have_nothing_in_common_leave_the_texts_to_tell() -> None:
    examples = [row | {"label": f"answer{i}"} for i, row in enumerate(rows(1, word_share=0.3))]
    customer = look(examples)["customer"]
    assert (customer.strong, customer.alike_targets) == (True, None)
    assert f"and rows of one value are alike (texts {customer.alike_texts:.2f}, p" in customer.says


def test_copies_that_are_one_object_are_one_row() -> None:
    text = "the same text"
    table = table_of(task(), {"": whole([{"text": content, "label": "no"} for content in (text, text, "another")])})
    assert table.texts == (text, "another")
    assert (len(table.targets), len(table.groups)) == (2, 2)


def test_what_groups_explain_is_not_found_again() -> None:
    examples = [
        row | {"order_of": row["customer"], "thread": f"t{i // 2}"}  # three threads to a customer
        for i, row in enumerate(rows(2, icc=0.3, word_share=0.3, shuffled=False))
    ]
    assert {"customer", "order_of", "order", "thread"} <= strong(look(examples))
    assert "customer" in strong(look(examples, group_by="thread"))
    assert strong(look(examples, group_by="customer")) == set()
    assert strong(look(examples, group_by=["customer", "city"])) == set()


def test_rows_that_follow_each_other_without_a_column() -> None:
    def bare(shuffled: bool) -> list[dict[str, Any]]:
        return [{k: row[k] for k in ("text", "label")} for row in rows(3, icc=0.2, word_share=0.2, shuffled=shuffled)]

    groups = look(bare(False))
    assert strong(groups) == {"order"}
    assert "follow each other" in groups["order"].says
    assert look(bare(True)) == {}


def test_a_file_that_is_sorted_by_its_labels_is_not_taken_for_groups() -> None:
    examples = sorted(rows(4), key=lambda row: row["label"])
    groups = look(examples)
    assert strong(groups) == set()
    assert groups["the order of the file"].kind == "drift"


def test_near_copies_are_found_and_rows_that_differ_by_a_number_are_not() -> None:
    examples = [{"text": row["text"], "label": row["label"]} for row in rows(5)]
    assert "near_duplicates" not in look(examples)
    copied = [*examples, *({"text": row["text"] + " indeed", "label": row["label"]} for row in examples[:60])]
    duplicates = look(copied)["near_duplicates"]
    assert duplicates.strong
    assert duplicates.says.startswith(("11", "12"))  # of 120 in pairs nearly all
    clusters = near_copies([f"item {i} costs {2 * i} and weighs {3 * i} grams in lot {5 * i} today" for i in range(50)])
    assert clusters.tolist() == list(range(50))


def test_targets_that_drift_by_date_are_told_and_do_not_stop() -> None:
    rng = np.random.default_rng(0)
    examples = [
        row | {"label": "yes" if rng.random() < i / 360 else "no", "day": f"2026-{1 + i // 31:02}-{1 + i % 31:02}"}
        for i, row in enumerate(rows(6))
    ]
    examples = [examples[i] for i in rng.permutation(len(examples))]
    groups = look(examples)
    assert groups["day"].kind == "drift"
    assert "day" not in strong(groups)


@pytest.mark.parametrize("days", [1, 3])
def test_the_order_of_the_file_is_no_drift_over_days_that_say_nothing(days: int) -> None:
    """Rows that are sorted by their labels, all of one day, or of days without any order."""
    examples = sorted(rows(4), key=lambda row: row["label"])
    groups = look([row | {"stamp": f"2026-01-0{1 + i % days}"} for i, row in enumerate(examples)])
    assert "stamp" not in groups
    assert "the order of the file" in groups


def test_independent_rows_are_left_alone() -> None:
    """At a level of 0.01 for all that is looked at; columns that name the target, numbers and few kinds never stop."""
    stopped = 0
    for seed in range(12):
        examples = rows(100 + seed, group_size=5)
        for i, row in enumerate(examples):
            row |= {"answer": row["label"] * 2, "stars": 4 if row["label"] == "yes" else 1, "kind": f"k{i % 4}"}
        stopped += bool(strong(look(examples)))
    assert stopped <= 1


def test_words_are_compared_by_their_words() -> None:
    first, permuted, different = word_vectors(["alpha beta gamma", "gamma beta alpha", "delta epsilon alpha"])
    assert float(first @ permuted) == pytest.approx(1.0)
    assert float(first @ different) < 0.9


# --- what a task says


@pytest.fixture
def written(tmp_path: Path) -> Path:
    examples = rows(7, icc=0.3, word_share=0.2)
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(examples[0]))
        writer.writeheader()
        writer.writerows(examples)
    path = tmp_path / "task.yaml"
    path.write_text(
        "task: t\ninputs: {text: {column: text}}\noutput: {kind: label, labels: ['no', 'yes']}\nmetric: accuracy\n"
        "data: {source: rows.csv, target: label, split: {train: 0.6, valid: 0.2, test: 0.2}}\n"
    )
    return path


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [],
            r"data.group_by is not said: .*In the data: customer has 60 values on 360 rows, and rows of one",
        ),
        (["data.group_by=null"], "data.group_by is null without a reason"),
        (
            ["data.group_by=null", "data.ungrouped_because=I think so"],
            r"customer has .*declare it: data.group_by: customer.*data.not_groups: \{\"customer\": \"...\"\}",
        ),
        (["data.group_by=customer", "data.not_groups={citty: x}"], r"no column 'citty'; did you mean 'city'"),
    ],
)
def test_what_is_not_said_or_not_answered_is_an_error(written: Path, overrides: list[str], message: str) -> None:
    loaded_task = load_task(written, overrides)
    with pytest.raises(ConfigError, match=message):
        grouping_of(loaded_task, sources_of(loaded_task))


def test_what_is_declared_or_declined_stands_in_the_report(written: Path) -> None:
    loaded_task = load_task(written, ["data.group_by=customer"])
    grouping = grouping_of(loaded_task, sources_of(loaded_task))
    assert (grouping.columns, grouping.unanswered) == (("customer",), ())
    overrides = [
        "data.group_by=null",
        "data.ungrouped_because=one row each",
        "data.not_groups={customer: shops resell}",
    ]
    loaded_task = load_task(written, overrides)
    grouping = grouping_of(loaded_task, sources_of(loaded_task))
    assert grouping.ungrouped_because == "one row each"
    assert {group.name: group.answer for group in grouping.found if group.strong} == {"customer": "shops resell"}
    assert json.loads(grouping.model_dump_json())["found"][0]["design_effect"] > 1.1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.group_by=[]"], "group_by"),
        (["data.group_by=[a, a]"], "names a column twice"),
        (["data.not_groups={a: ''}"], "not_groups"),
        (["data.group_by=a", "data.ungrouped_because=b"], "take one of the two out"),
        (["data.group_by=a", "data.not_groups={a: b}"], "'a' stands under `group_by` and under `not_groups`"),
    ],
)
def test_what_contradicts_itself(written: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_task(written, overrides)


def test_several_columns_keep_together_what_shares_any_value(written: Path) -> None:
    examples = [row | {"branch": f"b{int(row['customer'][1:]) // 2}"} for row in rows(8, group_size=4)]
    examples[0]["branch"] = ""  # known by its customer alone
    (written.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples))
    overrides = ["data.source=rows.jsonl", "data.group_by=[customer, branch]"]
    loaded_task = load_task(written, overrides)
    assert loaded_task.hash == load_task(written, [*overrides, "data.not_groups={order: x}"]).hash
    data = load_examples(loaded_task)
    rows_of = {row["text"]: row for row in examples}
    split_of: dict[str, str] = {}
    for name in ("train", "valid", "test"):
        for example in data.examples(name, "to see its groups"):
            row = rows_of[str(example.inputs["text"])]
            assert split_of.setdefault(row["customer"], name) == name
            assert split_of.setdefault(row["branch"] or row["customer"], name) == name
    assert len({example.group for example in data.train}) < 30
    examples[1] |= {"customer": None, "branch": ""}
    (written.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples))
    with pytest.raises(DataError, match=r"line 2: none of the groups \(customer, branch\) has a value"):
        load_examples(loaded_task)


def test_several_columns_link_rows_of_all_sources(written: Path) -> None:
    examples = [row | {"branch": f"b{i}"} for i, row in enumerate(rows(8, group_size=4))]
    for name, part in (("one", examples[::2]), ("other", examples[1::2])):
        (written.parent / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    loaded_task = load_task(written, ["data.source=[one.jsonl, other.jsonl]", "data.group_by=[customer, branch]"])
    customers = {row["text"]: row["customer"] for row in examples}
    groups: dict[str, set[str]] = {}
    for example in every_row(loaded_task):
        groups.setdefault(customers[str(example.inputs["text"])], set()).add(example.group)
    assert {len(names) for names in groups.values()} == {1}


def test_a_second_label_is_no_group() -> None:
    examples = [row | {"again": f"{row['label']} {i % 30}"} for i, row in enumerate(rows(9))]
    assert "again" in strong(look(examples))
    assert "again" not in look(examples, second_label="again")
