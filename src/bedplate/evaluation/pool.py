"""The pool for active labelling: rows of which some lack a target yet, split and ordered by text, group and seed alone.

What is in which split, and in which order rows are asked for, depends on texts, groups and the seed alone, never on a
label. So the first rows of a split that have labels are a random sample of it, and a mean over them is an unbiased
estimate of the mean over all. Rows that came with a label are taken when their turn comes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from bedplate.core.errors import UsageError
from bedplate.core.files import sha256_bytes, sha256_json
from bedplate.data.splits import SplitRecord, split
from bedplate.evaluation.examples import Example, RowParser, TaskData, TestHandle, sources_of, task_data
from bedplate.evaluation.task import Task


@dataclass(frozen=True)
class LabelPool:
    """parts: the rows of each split in the order in which they are drawn, with "" for a target that nobody knows."""

    task: Task
    parts: Mapping[str, tuple[Example, ...]]
    counts: Mapping[str, int]
    files: Mapping[str, str]
    notes: tuple[str, ...]
    licences: tuple[str, ...]

    @property
    def hash(self) -> str:
        """SHA-256 of the rows and their splits; labels do not affect it."""
        return sha256_json({name: sorted(example.row_hash for example in part) for name, part in self.parts.items()})

    @property
    def splits(self) -> dict[str, str]:
        """Row hash → split."""
        return {example.row_hash: name for name, part in self.parts.items() for example in part}

    @property
    def test(self) -> TestHandle:
        """All test rows, by a hash in which their labels have no part."""
        return TestHandle(sha256_json(["drawn in turn", self.hash]), self.parts["test"])

    def labelled(self, labels: Mapping[str, str], skipped: Collection[str] = ()) -> LabelPool:
        """The same with these targets (by row hash), and without rows that nobody can label."""
        parts = {name: [e for e in part if e.row_hash not in skipped] for name, part in self.parts.items()}
        known = {
            name: tuple(replace(e, target=labels.get(e.row_hash, e.target)) for e in part)
            for name, part in parts.items()
        }
        return replace(self, parts=known)

    def drawn(self, name: str) -> tuple[Example, ...]:
        """The rows of a split up to the first without a label."""
        part = self.parts[name]
        return part[: next((i for i, example in enumerate(part) if not example.target), len(part))]

    def data(self) -> TaskData:
        """Train and valid as far as they have labels, test as far as it was drawn. DataError for a split that is too
        small."""
        rows = {name: [e for e in self.parts[name] if e.target] for name in ("train", "valid")}
        rows["test"] = list(self.drawn("test"))
        records = {n: [SplitRecord(e.id, e.row_hash, e.target, e.group) for e in part] for n, part in rows.items()}
        examples = {example.id: example for part in rows.values() for example in part}
        counts = {**self.counts, "unlabelled": sum(not e.target for part in self.parts.values() for e in part)}
        return task_data(self.task, records, examples, counts, self.files, self.notes, self.licences, None)


def load_pool(task: Task) -> LabelPool:
    """The rows of a task's source, with or without targets. DataError as `load_examples`; UsageError for a task whose
    splits are files, or that searches documents."""
    fractions = task.data.split.fractions
    if fractions is None or task.output.documents is not None:
        reason = "data.split names files" if fractions is None else "outputs of kind embedding have no ladder"
        raise UsageError(
            f"{task.path}: labels are bought for one source that `data.split` cuts by fractions (train, valid and test "
            f"get their shares of the budget); {reason}"
        )
    parser = RowParser(task, gaps=True)
    sources = sources_of(task)
    parsed = [example for part in parser.parse_all(sources).values() for example in part]
    files = {f"file:{rows.source}": rows.sha256 for rows in sources.values()}
    licences = [rows.licence for rows in sources.values() if rows.licence]
    targets_by_hash: dict[str, set[str]] = defaultdict(set)
    for example in parsed:
        targets_by_hash[example.row_hash].update([example.target] if example.target else [])
    filled = [replace(example, target=_shared(targets_by_hash[example.row_hash], example.target)) for example in parsed]
    # no stratum: where labels decided on the splits, these would change with every label that comes in
    records = parser.limited(parser.unique(filled, [""] * len(filled)).records)
    drawn = {
        name: tuple(sorted((parser.examples[record.id] for record in part), key=lambda e: _turn(task.data.seed, e)))
        for name, part in split(records, fractions, task.data.seed).items()
    }
    return LabelPool(task, drawn, dict(parser.counts), files, tuple(parser.notes), tuple(dict.fromkeys(licences)))


def _shared(targets: set[str], target: str) -> str:
    """A copy without a label has that of the others, where they agree."""
    return next(iter(targets)) if len(targets) == 1 else target


def _turn(seed: int, example: Example) -> str:
    return sha256_bytes(f"{seed}/labels/{example.row_hash}".encode())
