"""Loads a task's rows as checked examples in three splits; the test split's handle records who opened it and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from bedplate.core import display
from bedplate.core.errors import DataError, RequestError, UsageError
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.core.values import Values
from bedplate.data.input_kinds import INPUTS, text_in_prompt
from bedplate.data.rows import blank, text_of
from bedplate.data.sources import Row, SourceRows, read_rows
from bedplate.data.splits import (
    Assigned,
    SplitRecord,
    check_leaks,
    check_unseen,
    deduplicate,
    linked,
    links_of,
    row_hash,
    split,
    split_hash,
    subsample,
)
from bedplate.evaluation.ledger.row_keys import Keys, keys_of
from bedplate.evaluation.metrics import METRICS
from bedplate.evaluation.production_rows import recorded, slices_of, weights_of
from bedplate.evaluation.ranking import relevant
from bedplate.evaluation.task import OutputSpec, Task
from bedplate.report.schema_parts import Grouping


@dataclass(frozen=True)
class Example:
    """One row: inputs by name, the right answer, and the group it may not be parted from (itself, if there is none).
    links: what it has in common with others, as `column=value`, of each column that makes groups.
    current: what the system that runs today answered. slices: column → value. weight: how much of the traffic it stands
    for, 1 on average over its split."""

    id: str
    inputs: Values
    target: str
    group: str
    row_hash: str
    current: str | None = None
    slices: Mapping[str, str] = field(default_factory=dict[str, str])
    weight: float = 1.0
    second: str | None = None
    """The answer by somebody else, where the task has a column of such and the row one in it."""
    links: tuple[str, ...] = ()

    @property
    def texts(self) -> dict[str, str]:
        """Its inputs, each of which must be a text. RequestError."""
        return {name: text_in_prompt(value) for name, value in self.inputs.items()}


@dataclass
class TestHandle:
    """The test split. What it holds can be counted and named by hash; its rows come only out of `open(reason)`."""

    __test__ = False  # the name begins with Test; pytest should not collect it

    n: int
    groups: int
    row_hashes: tuple[str, ...] = field(repr=False)
    split_hash: str
    _examples: tuple[Example, ...] = field(repr=False)
    openings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What the ledger said when they were opened."""

    @property
    def group_names(self) -> tuple[str, ...]:
        return tuple(sorted({example.group for example in self._examples}))

    @property
    def links(self) -> tuple[str, ...]:
        return tuple(sorted({link for example in self._examples for link in example.links}))

    @cached_property
    def keys(self) -> Keys:
        """What the ledger knows the rows by."""
        return keys_of((example.id, example.inputs) for example in self._examples)

    def open(self, reason: str) -> tuple[Example, ...]:
        """The test examples; `reason` is added to `openings`."""
        if not reason.strip():
            raise UsageError("opening the test split needs a reason")
        self.openings.append(reason)
        return self._examples


@dataclass(frozen=True, repr=False)
class TaskData:
    """A task's examples. `counts`: rows read, dropped (by reason) and in each split. `hashes`: of files and splits.

    `notes` are sentences for the report: what was dropped and what the splits lack. `documents`: texts by id, where
    that is what the task searches. `grouping`: which rows are kept together, and what was looked for before that.
    """

    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    test: TestHandle
    counts: Mapping[str, int]
    hashes: Mapping[str, str]
    notes: tuple[str, ...]
    licences: tuple[str, ...] = ()
    documents: Mapping[str, str] | None = None
    agreed: tuple[tuple[bool, str, float], ...] = ()
    """Rows with two labels, in all splits: whether the labels are equal, the row's group and its weight."""
    grouping: Grouping | None = None

    def __repr__(self) -> str:
        sizes = {"train": len(self.train), "valid": len(self.valid), "test": self.test.n}
        return display.line("task data", *(f"{n:,} {name}" for name, n in sizes.items()))

    def keys(self, split: str) -> Keys:
        """What the ledger knows the rows of a split by; asking opens nothing."""
        if split == "test":
            return self.test.keys
        return keys_of((example.id, example.inputs) for example in self.examples(split, ""))

    def examples(self, split: str, reason: str) -> tuple[Example, ...]:
        """The examples of a split by name; `reason` is recorded where it is test."""
        if split == "train":
            return self.train
        if split == "valid":
            return self.valid
        if split == "test":
            return self.test.open(reason)
        raise UsageError(f"no split {split!r}; there are {', '.join(SPLITS)}")


def load_examples(
    task: Task, assigned: Assigned | None = None, loaded_rows: Mapping[str, SourceRows] | None = None
) -> TaskData:
    """Read, check, deduplicate and split a task's rows. assigned: what is in a split already stays there. loaded_rows:
    rows that are in memory, by their source's prefix, so that no file is read.

    Raises DataError naming the file, line and value: a column or label that is not there, a split that is empty or too
    small, a label that train lacks, a text or group in two splits.
    """
    files = task.data.split.files
    counts: Counter[str] = Counter()
    notes: list[str] = []
    examples: dict[str, Example] = {}
    documents, searched = None, {}
    if task.output.documents is not None:
        documents, digest = task.output.documents.read(task.directory)
        searched = {f"file:{task.output.documents.source}": digest}
    sources = loaded_rows or {p: read_rows(source, task.directory) for p, source in task.data.by_prefix.items()}
    parsed = parsed_rows(task, sources, documents, counts, notes)
    if files is None:
        records = _records(task, sources, parsed, examples, counts, notes)
        if task.data.limit is not None:
            limited = subsample(records, task.data.limit, task.data.seed)
            counts["over_limit"] += len(records) - len(limited)
            records = limited
        fractions = task.data.split.fractions
        assert fractions is not None
        parts = split(records, fractions, task.data.seed, assigned)
    else:
        parts: dict[str, tuple[SplitRecord, ...]] = {}
        for name in files:
            part = {f"{name}/": sources[f"{name}/"]}
            parts[name] = _records(task, part, parsed, examples, counts, notes)
    check_leaks(parts, groups=task.data.group_by is not None)
    if assigned is not None:
        check_unseen(parts, assigned)
    files_read = {f"file:{rows.source}": rows.sha256 for rows in sources.values()} | searched
    licences = tuple(dict.fromkeys(rows.licence for rows in sources.values() if rows.licence))
    return task_data(task, parts, examples, counts, files_read, notes, licences, documents)


def task_data(
    task: Task,
    parts: Mapping[str, Sequence[SplitRecord]],
    examples: Mapping[str, Example],
    counts: Mapping[str, int],
    files: Mapping[str, str],
    notes: Sequence[str],
    licences: tuple[str, ...],
    documents: Mapping[str, str] | None,
) -> TaskData:
    """The examples (by id) of three splits, checked. files: their hashes. DataError for a split that is too small."""
    split_notes = check_splits(task, parts)
    weighted_splits = {
        name: weighted(task, name, [examples[r.id] for r in part], split_notes) for name, part in parts.items()
    }
    hashes = {**files, **{name: split_hash(part) for name, part in parts.items()}}
    test = weighted_splits["test"]
    groups = len({example.group for example in test})
    handle = TestHandle(len(test), groups, tuple(test_example.row_hash for test_example in test), hashes["test"], test)
    sizes = {**counts, **{name: len(part) for name, part in parts.items()}}
    agreements = agreed_of(task, [example for name in SPLITS for example in weighted_splits[name]])
    return TaskData(
        weighted_splits["train"],
        weighted_splits["valid"],
        handle,
        sizes,
        hashes,
        (*notes, *split_notes),
        licences,
        documents,
        agreements,
    )


def agreed_of(task: Task, examples: Sequence[Example]) -> tuple[tuple[bool, str, float], ...]:
    """Examples with two labels: whether these are equal, their groups and weights. Equal is what the metric takes
    for a right answer, where it is one of right and wrong: else the ceiling would be that of another metric."""
    metric = METRICS[task.metric] if isinstance(task.metric, str) else None
    right = metric.row if metric is not None and metric.scoring == "binary" else METRICS["exact_match"].row
    double_labeled = [(example, example.second) for example in examples if example.second is not None]
    return tuple(
        (right(example.target, second) == 1, example.group, example.weight) for example, second in double_labeled
    )


def parsed_rows(
    task: Task,
    sources: Mapping[str, SourceRows],
    documents: Mapping[str, str] | None,
    counts: Counter[str],
    notes: list[str],
    *,
    gaps: bool = False,
) -> dict[str, list[Example]]:
    """The rows of every source, by the prefix of their ids. Groups by several columns go over all of them."""
    examples_by_prefix = {
        p: parse_rows(task, rows, documents, counts, notes, prefix=p, gaps=gaps) for p, rows in sources.items()
    }
    if len(task.data.group_columns) > 1 and len(examples_by_prefix) > 1:
        whole = iter(_linked([example for part in examples_by_prefix.values() for example in part]))
        examples_by_prefix = {prefix: [next(whole) for _ in part] for prefix, part in examples_by_prefix.items()}
    return examples_by_prefix


def _linked(examples: Sequence[Example]) -> list[Example]:
    names = linked([example.links for example in examples])
    return [replace(example, group=name) for example, name in zip(examples, names, strict=True)]


def _records(
    task: Task,
    sources: Mapping[str, SourceRows],
    parsed_by_prefix: Mapping[str, Sequence[Example]],
    examples: dict[str, Example],
    counts: Counter[str],
    notes: list[str],
) -> tuple[SplitRecord, ...]:
    """The rows of these sources (by the prefix of their ids), deduplicated together; adds to `examples` (by id),
    `counts` and `notes`."""
    parsed = [example for prefix in sources for example in parsed_by_prefix[prefix]]
    distinct_examples, records = distinct(
        task, parsed, " and ".join(rows.source for rows in sources.values()), counts, notes
    )
    examples.update(distinct_examples)
    notes += [note for rows in sources.values() for note in rows.notes]
    return records


def parse_rows(
    task: Task,
    rows: SourceRows,
    documents: Mapping[str, str] | None,
    counts: Counter[str],
    notes: list[str],
    *,
    prefix: str = "",
    labelled: bool = True,
    gaps: bool = False,
) -> list[Example]:
    """Every row that has text, copies of one text among them; adds to `counts` and `notes`. labelled: whether targets
    are read (without, every target is ""); gaps: whether rows may lack theirs, which then is "". DataError naming file,
    line and value."""
    counts.update(rows.counts)
    needed = [spec.column for spec in task.inputs.values()] + ([task.data.target] if labelled and not gaps else [])
    needed += [*task.data.sliced, *([task.data.current.column] if task.data.current else [])] if labelled else []
    needed += [task.data.second_label] if labelled and task.data.second_label else []
    for column in (*needed, *task.data.group_columns):
        if column not in rows.columns:
            hint = did_you_mean(nearest(column, rows.columns), f"the columns are {', '.join(rows.columns)}")
            raise DataError(f"{rows.path}: no column {column!r}; {hint}")
    parsed: list[Example] = []
    empty = 0
    for row, line in zip(rows.rows, rows.lines, strict=True):
        example = _example(task, row, line, rows, documents, labelled, gaps)
        if example is None:
            empty += 1
        else:
            parsed.append(example)
    if empty:
        notes.append(f"{rows.source}: {empty} rows without text were dropped")
    if len({example.id for example in parsed}) < len(parsed):
        duplicate_id = next(name for name, count in Counter(e.id for e in parsed).items() if count > 1)
        raise DataError(
            f"{rows.path}: the id {duplicate_id!r} is on more than one row; "
            "make the column `id` name one row each, or give it another name"
        )
    counts["empty_text"] += empty
    if len(task.data.group_columns) > 1:
        parsed = _linked(parsed)
    return [replace(example, id=prefix + example.id) for example in parsed]


def distinct(
    task: Task, parsed: Sequence[Example], source: str, counts: Counter[str], notes: list[str]
) -> tuple[dict[str, Example], tuple[SplitRecord, ...]]:
    """One row of each text, by id and as records in the order of their hashes; none of a text with several targets."""
    examples_by_id = {example.id: example for example in counted(task, parsed)}
    strata = _strata(task, [e.target for e in parsed])
    stratified = zip(parsed, strata, strict=True)
    result = deduplicate(
        [SplitRecord(e.id, e.row_hash, e.target, e.group, stratum, e.links) for e, stratum in stratified]
    )
    counts.update({"duplicates": result.duplicates, "contradictory": result.contradictory})
    for copies in result.contradictions[:3]:
        answers = ", ".join(f"{copy.id}: {copy.target!r}" for copy in copies)
        notes.append(f"{source}: one text with different targets, all copies dropped ({answers})")
    if len(result.contradictions) > 3:
        notes.append(f"{source}: {len(result.contradictions) - 3} more such texts were dropped")
    return {record.id: examples_by_id[record.id] for record in result.records}, result.records


def counted(task: Task, parsed: Sequence[Example]) -> list[Example]:
    """The rows with how often their text stands there as weights, where the task counts that."""
    if not task.data.traffic.duplicates:
        return list(parsed)
    times = Counter(example.row_hash for example in parsed)
    return [replace(example, weight=float(times[example.row_hash])) for example in parsed]


def weighted(task: Task, split: str, examples: Sequence[Example], notes: list[str]) -> tuple[Example, ...]:
    """A split's examples with their weights in it; adds to `notes`."""
    weights, weight_notes = weights_of(task, split, [e.weight for e in examples], [e.slices for e in examples])
    notes += weight_notes
    return tuple(replace(example, weight=weight) for example, weight in zip(examples, weights, strict=True))


def _strata(task: Task, targets: Sequence[str]) -> list[str]:
    """What the splits should hold in proportion: the label, or of several labels the one that is rarest in the file."""
    if not task.output.form.several_labels or not any(targets):
        return list(targets) if task.labels else [""] * len(targets)
    chosen: list[list[str]] = [json.loads(target) for target in targets]
    counts = Counter(label for labels in chosen for label in labels)
    return [min(labels, key=lambda label: counts[label]) if labels else "" for labels in chosen]


def _example(
    task: Task, row: Row, line: int, rows: SourceRows, documents: Mapping[str, str] | None, labelled: bool, gaps: bool
) -> Example | None:
    """One row as an example; None where every input is empty."""
    location = rows.location(line)
    inputs = {name: INPUTS[spec.kind].read(row, spec.column, location) for name, spec in task.inputs.items()}
    if not any(not isinstance(value, str) or value.strip() for value in inputs.values()):
        return None
    has_target = labelled and not (gaps and blank(row.get(task.data.target)))
    target = target_of(task, row, location, documents, task.data.target) if has_target else ""
    second_column = task.data.second_label if labelled else None
    second = (
        None
        if second_column is None or blank(row.get(second_column))
        else target_of(task, row, location, documents, second_column)
    )
    digest = row_hash(inputs)
    group, links = digest, links_of(row, task.data.group_columns, location)
    if links:
        group = links[0] if len(task.data.group_columns) > 1 else links[0].partition("=")[2]
    row_id = row.get("id")
    has_id = isinstance(row_id, str | int) and not isinstance(row_id, bool) and str(row_id).strip()
    # without an id a row is named by its line, which is all that tells copies of one text apart
    name = str(row_id) if has_id else rows.name(line)
    if not labelled:
        return Example(name, inputs, target, group, digest, links=links)
    current, slices = recorded(task, row, location), slices_of(task, row, location)
    return Example(name, inputs, target, group, digest, current, slices, second=second, links=links)


def target_of(task: Task, row: Row, location: str, documents: Mapping[str, str] | None, column: str) -> str:
    value: Any = row.get(column)
    if documents is not None or task.output.form.json_targets:
        if column not in row:
            raise DataError(f"{location}: the target ({column}) is missing")
        try:
            if documents is not None:
                return relevant(value, task.output.separator, documents)
            return task.output.canonical(_as_json(task.output, value))
        except RequestError as error:
            raise DataError(f"{location}: the target ({column}): {error.message}") from error
    if not task.labels:
        text = text_of(row, column, location)
        if not text.strip():
            raise DataError(f"{location}: the target ({column}) is empty")
        return text
    if isinstance(value, str) and value in task.labels:
        return value
    if blank(value):
        raise DataError(
            f"{location}: the label in column {column!r} is empty; fill it in or take the row out (only "
            "`bedplate adapt --label-budget` takes rows without a label)"
        )
    hint = did_you_mean(nearest(str(value), task.labels), f"labels: {', '.join(task.labels)}")
    description = f"{value!r}" if isinstance(value, str) else f"{value!r} ({type(value).__name__}, not text)"
    raise DataError(f"{location}: the label {description} in column {column!r} is not one of the task's labels; {hint}")


def _as_json(output: OutputSpec, value: Any) -> str:
    """A target as JSON text: it may be the value itself, JSON text, or labels with the separator between them."""
    if isinstance(value, str) and output.separator is not None:
        value = [name for part in value.split(output.separator) if (name := part.strip())]
    if output.form.several_labels and isinstance(value, str) and not value.lstrip().startswith("["):
        raise RequestError(f"{value[:80]!r} is one text; say under output.separator what stands between its labels")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


SPLITS = ("train", "valid", "test")


def check_splits(task: Task, parts: Mapping[str, Sequence[SplitRecord]]) -> list[str]:
    """Sentences about labels that valid or test lack. DataError where a split is empty or too small, or train lacks a
    label."""
    notes: list[str] = []
    total = sum(len(part) for part in parts.values())
    groups = len({record.group for part in parts.values() for record in part})
    for name in SPLITS:
        part = parts[name]
        if not part:
            raise DataError(
                f"the {name} split is empty: {total} usable rows in {groups} groups do not fill three splits; "
                "add rows (or groups), or change the fractions"
            )
        if len(part) < len(task.labels):
            raise DataError(f"the {name} split has {len(part)} rows for {len(task.labels)} labels; add labelled rows")
    for name in SPLITS:
        present = {record.target for record in parts[name]}
        absent = [label for label in task.labels if label not in present]
        if absent and name == "train":
            raise DataError(
                f"no row of the train split has the label {absent[0]!r}; add such rows or take it off the list"
            )
        if absent:
            notes.append(f"the {name} split has no row with the label {', '.join(map(repr, absent))}")
    if task.output.form.several_labels:
        notes += _check_several(task.output, parts)
    return notes


def _check_several(output: OutputSpec, parts: Mapping[str, Sequence[SplitRecord]]) -> list[str]:
    """A label of several may be rare, so a split without it is a note; one that no row has is an error."""
    present = {name: {label for r in parts[name] for label in json.loads(r.target)} for name in SPLITS}
    everywhere = set[str]().union(*present.values())
    nowhere = next((label for label in output.labels or () if label not in everywhere), None)
    if nowhere is not None:
        raise DataError(f"no row has the label {nowhere!r}; add such rows or take it off the list")
    notes: list[str] = []
    for name in SPLITS:
        absent = [label for label in output.labels or () if label not in present[name]]
        if absent:
            notes.append(f"the {name} split has no row with the label {', '.join(map(repr, absent))}")
    return notes
