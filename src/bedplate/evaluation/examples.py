"""Loads a task's rows as checked examples in three splits; the test split's handle records who opened it and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from bedplate.core import display
from bedplate.core.errors import DataError, RequestError, UnknownDataError, UsageError
from bedplate.core.statistics.unequal import worth
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.core.values import Values
from bedplate.data import splits
from bedplate.data.rows import INPUTS, blank, label_text, text_in_prompt, text_of
from bedplate.data.sources import Row, SourceRows, read_rows
from bedplate.data.splits import Assigned, Deduplicated, SplitRecord
from bedplate.evaluation.ledger.row_keys import Keys, keys_of
from bedplate.evaluation.metrics import METRICS
from bedplate.evaluation.ranking import relevant
from bedplate.evaluation.task import OutputSpec, Task
from bedplate.report.schema_parts import Grouping


def recorded(task: Task, row: Row, location: str) -> str | None:
    """What the system that runs today answered, as the task's answers are written; None where it gave none, or the task
    names no such column. DataError for a value that is no answer."""
    spec = task.data.current
    value: Any = None if spec is None else row.get(spec.column)
    if spec is None or value is None or (isinstance(value, str) and not value.strip()):
        return None
    if task.output.form.several_labels and isinstance(value, str) and task.output.separator is not None:
        return json.dumps([name for part in value.split(task.output.separator) if (name := part.strip())])
    if task.output.form.json_targets:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    value = label_text(value) if task.labels else value
    if not isinstance(value, str):
        raise DataError(f"{location}: the recorded answer ({spec.column}) is {value!r}, not text")
    return value.strip() if task.labels else value


def slices_of(task: Task, row: Row, location: str) -> dict[str, str]:
    """The row's value of each column that is kept with it, "" where it has none. DataError for what is no plain one."""
    values_by_column: dict[str, str] = {}
    for column in task.data.sliced:
        value: Any = row.get(column)
        if value is not None and not isinstance(value, str | int | float | bool):
            problem = f"column {column!r} holds {value!r}, which names no slice"
            raise DataError(f"{location}: {problem}; use texts or numbers")
        values_by_column[column] = "" if value is None else str(value).strip()
    return values_by_column


def weights_of(
    task: Task, split: str, counted: Sequence[float], slices: Sequence[Mapping[str, str]]
) -> tuple[list[float], list[str]]:
    """The weights of a split's rows, 1 on average, and sentences for the report. counted: how often each row's text
    stands in the data. DataError where the split has no row of a value that has a share, or a row of one that has none.
    """
    traffic = task.data.traffic
    weights = np.array(counted, dtype=np.float64)
    column = traffic.column
    if column is not None and weights.size:
        values = [row_slices[column] for row_slices in slices]
        shares = traffic.shares[column]
        without = next((value for value in values if value not in shares), None)
        if without is not None:
            raise DataError(
                f"data.traffic.shares.{column}: rows of {split} have the value {without!r}, which has no share; give "
                "it one, or take these rows out"
            )
        sums = {value: float(weights[[row_value == value for row_value in values]].sum()) for value in shares}
        empty = next((value for value, total in sums.items() if total == 0), None)
        if empty is not None:
            raise DataError(
                f"data.traffic.shares.{column}: {split} has no row of {empty!r}, which is {shares[empty]:.1%} of the "
                "traffic; label such rows, or take the value out of the shares"
            )
        weights *= np.array([shares[value] / sums[value] for value in values])
    if not weights.size or np.ptp(weights) <= 1e-12 * weights.max():
        return [1.0] * weights.size, []
    note = f"{split}: {weights.size} rows are weighted by the traffic and worth {worth(weights):.0f} of equal weight"
    return (weights / weights.mean()).tolist(), [note]


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

    split_hash: str
    _examples: tuple[Example, ...] = field(repr=False)
    openings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What the ledger said when they were opened."""

    @property
    def n(self) -> int:
        return len(self._examples)

    @property
    def groups(self) -> int:
        return len(self.group_names)

    def label_groups(self, several: bool) -> Counter[str]:
        """In how many groups each label is the answer, or where there may be several among them."""
        labels = [(e.group, json.loads(e.target) if several else [e.target]) for e in self._examples]
        return Counter(name for _, name in {(group, name) for group, names in labels for name in names})

    @property
    def row_hashes(self) -> tuple[str, ...]:
        return tuple(example.row_hash for example in self._examples)

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
    that is what the task searches. `grouping`: which rows are kept together, and what was looked for before that."""

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
        if split not in SPLITS:
            raise UsageError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        return self.test.open(reason) if split == "test" else self.train if split == "train" else self.valid


def sources_of(task: Task) -> dict[str, SourceRows]:
    """The rows of a task's own sources, by the prefix of their ids."""
    return {prefix: read_rows(source, task.directory) for prefix, source in task.data.by_prefix.items()}


def load_examples(
    task: Task, assigned: Assigned | None = None, loaded_rows: Mapping[str, SourceRows] | None = None
) -> TaskData:
    """Read, check, deduplicate and split a task's rows. assigned: what is in a split already stays there. loaded_rows:
    rows that are in memory, by their source's prefix, so that no file is read. Raises DataError naming the file, line
    and value: a column or label that is not there, a split that is empty or too small, a label that train lacks, a text
    or group in two splits."""
    parser, fractions = RowParser(task), task.data.split.fractions
    sources = loaded_rows or sources_of(task)
    parsed = parser.parse_all(sources)
    if fractions is not None:
        records = parser.limited(parser.distinct(parsed, sources))
        parts = splits.split(records, fractions, task.data.seed, assigned, task.labels)
    else:
        names = task.data.split.files or {}
        parts = {name: parser.distinct(parsed, {f"{name}/": sources[f"{name}/"]}) for name in names}
    splits.check_leaks(parts, groups=task.data.group_by is not None)
    if assigned is not None:
        splits.check_unseen(parts, assigned)
    files = {f"file:{rows.source}": rows.sha256 for rows in sources.values()} | parser.searched
    licences = tuple(dict.fromkeys(rows.licence for rows in sources.values() if rows.licence))
    return task_data(task, parts, parser.examples, parser.counts, files, parser.notes, licences, parser.documents)


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
    rows = {name: weighted(task, name, [examples[r.id] for r in part], split_notes) for name, part in parts.items()}
    hashes = {**files, **{name: splits.split_hash(part) for name, part in parts.items()}}
    return TaskData(
        rows["train"],
        rows["valid"],
        TestHandle(hashes["test"], rows["test"]),
        {**counts, **{name: len(part) for name, part in parts.items()}},
        hashes,
        (*notes, *split_notes),
        licences,
        documents,
        agreed_of(task, [example for name in SPLITS for example in rows[name]]),
    )


def agreed_of(task: Task, examples: Sequence[Example]) -> tuple[tuple[bool, str, float], ...]:
    """Examples with two labels: whether these are equal, their groups and weights. Equal is what the metric takes
    for a right answer, where it is one of right and wrong: else the ceiling would be that of another metric."""
    metric = METRICS[task.metric] if isinstance(task.metric, str) else None
    right = metric.row if metric is not None and metric.scoring == "binary" else METRICS["exact_match"].row
    double = [example for example in examples if example.second is not None]
    return tuple((right(example.target, example.second) == 1, example.group, example.weight) for example in double)


def _linked(examples: Sequence[Example]) -> list[Example]:
    names = splits.linked([example.links for example in examples])
    return [replace(example, group=name) for example, name in zip(examples, names, strict=True)]


class RowParser:
    """Rows of a task as examples. `counts` and `notes` say what was read and dropped; `examples`, by id, are those that
    are left (`distinct`). labelled: whether targets are read (without, every target is ""); gaps: whether rows may lack
    theirs, which then is ""."""

    def __init__(self, task: Task, *, labelled: bool = True, gaps: bool = False) -> None:
        self.counts: Counter[str] = Counter()
        self.notes: list[str] = []
        self.examples: dict[str, Example] = {}
        self.documents: Mapping[str, str] | None = None
        self.searched: dict[str, str] = {}
        self._task, self._labelled, self._gaps = task, labelled, gaps
        if task.output.documents is not None:
            self.documents, digest = task.output.documents.read(task.directory)
            self.searched[f"file:{task.output.documents.source}"] = digest

    def parse_all(self, sources: Mapping[str, SourceRows]) -> dict[str, list[Example]]:
        """The rows of every source, by the prefix of their ids. Groups by several columns go over all of them."""
        parsed = {prefix: self.parse(rows, prefix) for prefix, rows in sources.items()}
        if len(self._task.data.group_columns) > 1 and len(parsed) > 1:
            whole = iter(_linked([example for part in parsed.values() for example in part]))
            parsed = {prefix: [next(whole) for _ in part] for prefix, part in parsed.items()}
        return parsed

    def parse(self, rows: SourceRows, prefix: str = "") -> list[Example]:
        """Every row that has text, copies of one text among them. DataError naming file, line and value."""
        data = self._task.data
        self.counts.update(rows.counts)
        needed = [spec.column for spec in self._task.inputs.values()]
        if self._labelled:
            needed += [*([] if self._gaps else [data.target]), *data.sliced]
            needed += [*([data.current.column] if data.current else []), *filter(None, [data.second_label])]
        for column in (*needed, *data.group_columns):
            if column not in rows.columns:
                hint = did_you_mean(nearest(column, rows.columns), f"the columns are {', '.join(rows.columns)}")
                raise UnknownDataError(f"{rows.path}: no column {column!r}; {hint}")
        unlabelled = self._unlabelled(rows) if self._labelled and not self._gaps else set[int]()
        numbered = [(row, line) for row, line in zip(rows.rows, rows.lines, strict=True) if line not in unlabelled]
        examples = [self._example(row, line, rows) for row, line in numbered]
        parsed = [example for example in examples if example is not None]
        if empty := len(examples) - len(parsed):
            self.notes.append(f"{rows.source}: {empty} rows without text were dropped")
        duplicate = next((name for name, count in Counter(e.id for e in parsed).items() if count > 1), None)
        if duplicate is not None:
            raise DataError(
                f"{rows.path}: the id {duplicate!r} is on more than one row; "
                "make the column `id` name one row each, or give it another name"
            )
        self.counts["empty_text"] += empty
        parsed = _linked(parsed) if len(data.group_columns) > 1 else parsed
        return [replace(example, id=prefix + example.id) for example in parsed]

    def _unlabelled(self, rows: SourceRows) -> set[int]:
        """The lines of rows with text and without an answer, where these are dropped; DataError where not."""
        data, columns = self._task.data, [spec.column for spec in self._task.inputs.values()]
        if self.documents is not None or self._task.output.form.json_targets:
            return set()  # nothing is one of the answers there
        lines = [
            line
            for row, line in zip(rows.rows, rows.lines, strict=True)
            if blank(row.get(data.target)) and not all(blank(row.get(column)) for column in columns)
        ]
        if lines and data.unlabelled == "drop":
            self.notes.append(f"{rows.source}: rows without {data.target!r} were dropped: {rows.listed(lines)}")
            self.counts["unlabelled"] += len(lines)
            return set(lines)
        if lines and self._task.labels:
            count = f", as it is in {rows.listed(lines)}" if len(lines) > 1 else ""
            raise DataError(
                f"{rows.location(lines[0])}: the label in column {data.target!r} is empty{count}; fill it in, take the "
                "row out, or leave such rows out (data.unlabelled: drop); `bedplate adapt --label-budget` buys labels"
            )
        return set()

    def distinct(
        self, parsed_by_prefix: Mapping[str, Sequence[Example]], sources: Mapping[str, SourceRows]
    ) -> tuple[SplitRecord, ...]:
        """One row of each text of these sources, in the order of their hashes; none of a text with several targets."""
        source = " and ".join(rows.source for rows in sources.values())
        parsed = [example for prefix in sources for example in parsed_by_prefix[prefix]]
        strata = _strata(self._task, [example.target for example in parsed])
        result = self.unique(parsed, strata)
        for copies in result.contradictions[:3]:
            answers = ", ".join(f"{copy.id}: {copy.target!r}" for copy in copies)
            self.notes.append(f"{source}: one text with different targets, all copies dropped ({answers})")
        if len(result.contradictions) > 3:
            self.notes.append(f"{source}: {len(result.contradictions) - 3} more such texts were dropped")
        return result.records

    def unique(self, parsed: Sequence[Example], strata: Sequence[str]) -> Deduplicated:
        """One row of each text, with how often it stands there as its weight where the task counts that."""
        times = Counter(example.row_hash for example in parsed) if self._task.data.traffic.duplicates else {}
        by_id = {e.id: replace(e, weight=float(times[e.row_hash])) if times else e for e in parsed}
        stratified = zip(parsed, strata, strict=True)
        records = [SplitRecord(e.id, e.row_hash, e.target, e.group, stratum, e.links) for e, stratum in stratified]
        result = splits.deduplicate(records)
        self.counts.update({"duplicates": result.duplicates, "contradictory": result.contradictory})
        self.examples |= {record.id: by_id[record.id] for record in result.records}
        return result

    def limited(self, records: tuple[SplitRecord, ...]) -> tuple[SplitRecord, ...]:
        """At most so many as the task says."""
        data = self._task.data
        selected = records if data.limit is None else splits.subsample(records, data.limit, data.seed)
        if data.limit is not None:
            self.counts["over_limit"] += len(records) - len(selected)
        return selected

    def _example(self, row: Row, line: int, rows: SourceRows) -> Example | None:
        """One row as an example; None where every input is empty."""
        task, data, location = self._task, self._task.data, rows.location(line)
        inputs = {name: INPUTS[spec.kind].read(row, spec.column, location) for name, spec in task.inputs.items()}
        if not any(not isinstance(value, str) or value.strip() for value in inputs.values()):
            return None
        target, second = "", None
        if self._labelled and not (self._gaps and blank(row.get(data.target))):
            target = target_of(task, row, location, self.documents, data.target)
        if self._labelled and data.second_label is not None and not blank(row.get(data.second_label)):
            second = target_of(task, row, location, self.documents, data.second_label)
        digest = splits.row_hash(inputs)
        group, links = digest, splits.links_of(row, data.group_columns, location)
        if links:
            group = links[0] if len(data.group_columns) > 1 else links[0].partition("=")[2]
        row_id = row.get("id")
        has_id = isinstance(row_id, str | int) and not isinstance(row_id, bool) and str(row_id).strip()
        # without an id a row is named by its line, which is all that tells copies of one text apart
        name = str(row_id) if has_id else rows.name(line)
        if not self._labelled:
            return Example(name, inputs, target, group, digest, links=links)
        current, slices = recorded(task, row, location), slices_of(task, row, location)
        return Example(name, inputs, target, group, digest, current, slices, second=second, links=links)


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
    label = label_text(value)
    if isinstance(label, str) and label in task.labels:
        return label
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
    present = {name: {record.target for record in part} for name, part in parts.items()}
    for name in SPLITS:
        absent = [label for label in task.labels if label not in present[name]]
        if absent and name == "train":
            valid, test = (sum(r.target == absent[0] for r in parts[split]) for split in SPLITS[1:])
            where, advice = "", "add such rows, or"
            if valid or test:
                rows = f"its {valid:,} rows of valid and {test:,} of test"
                where, advice = " of the train split", f"move some of {rows} there, or take them out and"
            raise DataError(f"no row{where} has the label {absent[0]!r}; {advice} take it off output.labels")
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
