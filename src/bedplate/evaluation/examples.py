"""A task's rows as checked examples, in three splits, the third behind a handle that records who opened it and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from bedplate.core import shown
from bedplate.core.errors import DataError, RequestError, UsageError
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.core.values import Values, as_text
from bedplate.data.sources import Row, Rows, read_rows
from bedplate.data.splits import Assigned, Record, check_leaks, deduplicate, row_hash, split, split_hash, take
from bedplate.evaluation.ledger.keys import Keys, keys_of
from bedplate.evaluation.production.traffic import recorded, slices_of, weights_of
from bedplate.evaluation.ranking import relevant
from bedplate.evaluation.task import OutputSpec, Task

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Example:
    """One row: inputs by name, the right answer, and the group it may not be parted from (itself, if there is none).
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

    @property
    def texts(self) -> dict[str, str]:
        """Its inputs, each of which must be a text. RequestError."""
        return {name: as_text(value) for name, value in self.inputs.items()}


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
    that is what the task searches.
    """

    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    test: TestHandle
    counts: Mapping[str, int]
    hashes: Mapping[str, str]
    notes: tuple[str, ...]
    licences: tuple[str, ...] = ()
    documents: Mapping[str, str] | None = None

    def __repr__(self) -> str:
        sizes = {"train": len(self.train), "valid": len(self.valid), "test": self.test.n}
        return shown.line("task data", *(f"{n:,} {name}" for name, n in sizes.items()))

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


def load_examples(task: Task, assigned: Assigned | None = None, given: Mapping[str, Rows] | None = None) -> TaskData:
    """Read, check, deduplicate and split a task's rows. assigned: what is in a split already stays there. given: rows
    that are in memory, by their source's prefix, so that no file is read.

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
    sources = given or {p: read_rows(source, task.directory) for p, source in task.data.by_prefix.items()}
    if files is None:
        records = _records(task, sources, documents, examples, counts, notes)
        if task.data.limit is not None:
            kept = take(records, task.data.limit, task.data.seed)
            counts["over_limit"] += len(records) - len(kept)
            records = kept
        fractions = task.data.split.fractions
        assert fractions is not None
        parts = split(records, fractions, task.data.seed, assigned)
    else:
        parts: dict[str, tuple[Record, ...]] = {}
        for name in files:
            part = {f"{name}/": sources[f"{name}/"]}
            parts[name] = _records(task, part, documents, examples, counts, notes)
    check_leaks(parts, groups=task.data.group_by is not None)
    if assigned is not None:
        _check_unseen(parts, assigned)
    notes += _check_splits(task, parts)
    counts.update({name: len(part) for name, part in parts.items()})
    done = {name: _weighted(task, name, [examples[r.id] for r in part], notes) for name, part in parts.items()}
    hashes = {f"file:{rows.source}": rows.sha256 for rows in sources.values()}
    hashes |= searched
    hashes |= {name: split_hash(part) for name, part in parts.items()}
    test = done["test"]
    handle = TestHandle(
        len(test),
        len({example.group for example in test}),
        tuple(example.row_hash for example in test),
        hashes["test"],
        test,
    )
    licences = tuple(dict.fromkeys(rows.licence for rows in sources.values() if rows.licence))
    return TaskData(done["train"], done["valid"], handle, dict(counts), hashes, tuple(notes), licences, documents)


def _check_unseen(parts: Mapping[str, Sequence[Record]], assigned: Assigned) -> None:
    """What was learned from is not judged by, where files say what is in which split."""
    for place, name in enumerate(SPLITS):
        for record in parts[name]:
            before = assigned.split_of(record)
            if before in SPLITS[:place]:
                raise DataError(
                    f"row {record.id} of {name}, or its group, was in {before} when the parent was made: it would be "
                    "judged by what it has seen; move such rows there"
                )


def _records(
    task: Task,
    sources: Mapping[str, Rows],
    documents: Mapping[str, str] | None,
    examples: dict[str, Example],
    counts: Counter[str],
    notes: list[str],
) -> tuple[Record, ...]:
    """Parse the rows of all sources (by the prefix of their ids) and deduplicate them together; adds to `examples` (by
    id), `counts` and `notes`."""
    parsed: list[Example] = []
    for prefix, rows in sources.items():
        parsed += parse_rows(task, rows, documents, counts, notes, prefix=prefix)
    found, records = distinct(task, parsed, " and ".join(rows.source for rows in sources.values()), counts, notes)
    examples.update(found)
    notes += [note for rows in sources.values() for note in rows.notes]
    return records


def parse_rows(
    task: Task,
    rows: Rows,
    documents: Mapping[str, str] | None,
    counts: Counter[str],
    notes: list[str],
    *,
    prefix: str = "",
    labelled: bool = True,
) -> list[Example]:
    """Every row that has text, copies of one text among them; adds to `counts` and `notes`. labelled: whether targets
    are read (without, every target is ""). DataError naming file, line and value."""
    counts.update(rows.counts)
    needed = [spec.column for spec in task.inputs.values()] + ([task.data.target] if labelled else [])
    needed += [*task.data.sliced, *([task.data.current.column] if task.data.current else [])] if labelled else []
    for column in needed + ([task.data.group_by] if task.data.group_by else []):
        if column not in rows.columns:
            hint = did_you_mean(nearest(column, rows.columns), f"the columns are {', '.join(rows.columns)}")
            raise DataError(f"{rows.path}: no column {column!r}; {hint}")
    parsed: list[Example] = []
    empty = 0
    for row, line in zip(rows.rows, rows.lines, strict=True):
        example = _example(task, row, line, rows, documents, labelled)
        if example is None:
            empty += 1
        else:
            parsed.append(example)
    if empty:
        notes.append(f"{rows.source}: {empty} rows without text were dropped")
    if len({example.id for example in parsed}) < len(parsed):
        again = next(name for name, count in Counter(e.id for e in parsed).items() if count > 1)
        raise DataError(
            f"{rows.path}: the id {again!r} is on more than one row; "
            "make the column `id` name one row each, or give it another name"
        )
    counts["empty_text"] += empty
    return [replace(example, id=prefix + example.id) for example in parsed]


def distinct(
    task: Task, parsed: Sequence[Example], source: str, counts: Counter[str], notes: list[str]
) -> tuple[dict[str, Example], tuple[Record, ...]]:
    """One row of each text, by id and as records in the order of their hashes; none of a text with several targets."""
    times = Counter(example.row_hash for example in parsed) if task.data.traffic.duplicates else Counter[str]()
    found = {example.id: replace(example, weight=float(times[example.row_hash] or 1)) for example in parsed}
    strata = _strata(task, [e.target for e in parsed])
    result = deduplicate([Record(e.id, e.row_hash, e.target, e.group, s) for e, s in zip(parsed, strata, strict=True)])
    counts.update({"duplicates": result.duplicates, "contradictory": result.contradictory})
    for copies in result.contradictions[:3]:
        answers = ", ".join(f"{copy.id}: {copy.target!r}" for copy in copies)
        notes.append(f"{source}: one text with different targets, all copies dropped ({answers})")
    if len(result.contradictions) > 3:
        notes.append(f"{source}: {len(result.contradictions) - 3} more such texts were dropped")
    return {record.id: found[record.id] for record in result.records}, result.records


def _weighted(task: Task, split: str, examples: Sequence[Example], notes: list[str]) -> tuple[Example, ...]:
    """A split's examples with their weights in it; adds to `notes`."""
    weights, said = weights_of(task, split, [e.weight for e in examples], [e.slices for e in examples])
    notes += said
    return tuple(replace(example, weight=weight) for example, weight in zip(examples, weights, strict=True))


def _strata(task: Task, targets: Sequence[str]) -> list[str]:
    """What the splits should hold in proportion: the label, or of several labels the one that is rarest in the file."""
    if task.output.kind != "labels" or not any(targets):
        return list(targets) if task.labels else [""] * len(targets)
    chosen: list[list[str]] = [json.loads(target) for target in targets]
    counts = Counter(label for labels in chosen for label in labels)
    return [min(labels, key=lambda label: counts[label]) if labels else "" for labels in chosen]


def _example(
    task: Task, row: Row, line: int, rows: Rows, documents: Mapping[str, str] | None, labelled: bool
) -> Example | None:
    """One row as an example; None where every input is empty."""
    where = rows.where(line)
    inputs = {name: _text(row, spec.column, where) for name, spec in task.inputs.items()}
    if not any(text.strip() for text in inputs.values()):
        return None
    target = _target(task, row, where, documents) if labelled else ""
    digest = row_hash(inputs)
    group = digest
    if task.data.group_by is not None:
        value = row.get(task.data.group_by)
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise DataError(f"{where}: the group ({task.data.group_by}) is {value!r}; every row needs one")
        group = str(value)
    given = row.get("id")
    has_id = isinstance(given, str | int) and not isinstance(given, bool) and str(given).strip()
    # without an id a row is named by its line, which is all that tells copies of one text apart
    name = str(given) if has_id else rows.name(line)
    if not labelled:
        return Example(name, inputs, target, group, digest)
    return Example(name, inputs, target, group, digest, recorded(task, row, where), slices_of(task, row, where))


def _text(row: Row, column: str, where: str) -> str:
    value: Any = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: column {column!r} holds {value!r}, which is {type(value).__name__}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where}: column {column!r} holds half of a surrogate pair, which is not text") from None
    return value


def _target(task: Task, row: Row, where: str, documents: Mapping[str, str] | None) -> str:
    value: Any = row.get(task.data.target)
    if task.output.kind in ("json", "labels", "embedding"):
        if task.data.target not in row:
            raise DataError(f"{where}: the target ({task.data.target}) is missing")
        try:
            if documents is not None:
                return relevant(value, task.output.separator, documents)
            return task.output.canonical(_as_json(task.output, value))
        except RequestError as error:
            raise DataError(f"{where}: the target ({task.data.target}): {error.message}") from error
    if not task.labels:
        text = _text(row, task.data.target, where)
        if not text.strip():
            raise DataError(f"{where}: the target ({task.data.target}) is empty")
        return text
    if isinstance(value, str) and value in task.labels:
        return value
    hint = did_you_mean(nearest(str(value), task.labels), f"labels: {', '.join(task.labels)}")
    what = f"{value!r}" if isinstance(value, str) else f"{value!r} ({type(value).__name__}, not text)"
    raise DataError(f"{where}: the label {what} in column {task.data.target!r} is not one of the task's labels; {hint}")


def _as_json(output: OutputSpec, value: Any) -> str:
    """A target as JSON text: it may be the value itself, JSON text, or labels with the separator between them."""
    if isinstance(value, str) and output.separator is not None:
        value = [name for part in value.split(output.separator) if (name := part.strip())]
    if output.kind == "labels" and isinstance(value, str) and not value.lstrip().startswith("["):
        raise RequestError(f"{value[:80]!r} is one text; say under output.separator what stands between its labels")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _check_splits(task: Task, parts: Mapping[str, Sequence[Record]]) -> list[str]:
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
    if task.output.kind == "labels":
        notes += _check_several(task.output, parts)
    return notes


def _check_several(output: OutputSpec, parts: Mapping[str, Sequence[Record]]) -> list[str]:
    """A label of several may be rare, so a split without it is a note; one that no row has is an error."""
    present = {name: {label for r in parts[name] for label in json.loads(r.target)} for name in SPLITS}
    everywhere = set[str]().union(*present.values())
    nowhere = next((label for label in output.labels or () if label not in everywhere), None)
    if nowhere is not None:
        raise DataError(f"no row has the label {nowhere!r}; add such rows or take it off the list")
    found: list[str] = []
    for name in SPLITS:
        absent = [label for label in output.labels or () if label not in present[name]]
        if absent:
            found.append(f"the {name} split has no row with the label {', '.join(map(repr, absent))}")
    return found
