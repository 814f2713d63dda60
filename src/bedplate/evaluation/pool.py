"""The pool for active labelling: rows of which some lack a target yet, split and ordered by text, group and seed alone.

What is in which split, and in which order rows are asked for, depends on texts, groups and the seed alone, never on a
label. So the first rows of a split that have labels are a random sample of it, and a mean over them is an unbiased
estimate of the mean over all. Rows that came with a label are taken when their turn comes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from bedplate.core.errors import UsageError
from bedplate.core.files import sha256_bytes, sha256_json
from bedplate.data.sources import read_rows
from bedplate.data.splits import SplitRecord, deduplicate, split, subsample
from bedplate.evaluation.examples import Example, TaskData, TestHandle, counted, parsed_rows, task_data
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
        rows = self.parts["test"]
        groups = len({example.group for example in rows})
        pool_hash = sha256_json(["drawn in turn", self.hash])
        return TestHandle(len(rows), groups, tuple(example.row_hash for example in rows), pool_hash, rows)

    def labelled(self, labels: Mapping[str, str], skipped: Collection[str] = ()) -> LabelPool:
        """The same with these targets (by row hash), and without rows that nobody can label."""
        parts = {
            name: tuple(
                replace(example, target=labels.get(example.row_hash, example.target))
                for example in part
                if example.row_hash not in skipped
            )
            for name, part in self.parts.items()
        }
        return replace(self, parts=parts)

    def drawn(self, name: str) -> tuple[Example, ...]:
        """The rows of a split up to the first without a label."""
        part = self.parts[name]
        return part[: next((i for i, example in enumerate(part) if not example.target), len(part))]

    def data(self) -> TaskData:
        """Train and valid as far as they have labels, test as far as it was drawn. DataError for a split that is too
        small."""
        rows = {
            name: [example for example in part if example.target] for name, part in self.parts.items() if name != "test"
        }
        rows["test"] = list(self.drawn("test"))
        records = {
            name: [SplitRecord(e.id, e.row_hash, e.target, e.group) for e in part] for name, part in rows.items()
        }
        examples = {example.id: example for part in rows.values() for example in part}
        counts = {
            **self.counts,
            "unlabelled": sum(not example.target for part in self.parts.values() for example in part),
        }
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
    counts: Counter[str] = Counter()
    notes: list[str] = []
    sources = {prefix: read_rows(source, task.directory) for prefix, source in task.data.by_prefix.items()}
    parsed = [
        example for part in parsed_rows(task, sources, None, counts, notes, gaps=True).values() for example in part
    ]
    files = {f"file:{rows.source}": rows.sha256 for rows in sources.values()}
    notes += [note for rows in sources.values() for note in rows.notes]
    licences = [rows.licence for rows in sources.values() if rows.licence]
    targets_by_hash: dict[str, set[str]] = defaultdict(set)
    for example in parsed:
        targets_by_hash[example.row_hash].update([example.target] if example.target else [])
    filled = {
        example.id: replace(example, target=_shared(targets_by_hash[example.row_hash], example.target))
        for example in counted(task, parsed)
    }
    # no stratum: where labels decided on the splits, these would change with every label that comes in
    result = deduplicate([SplitRecord(e.id, e.row_hash, e.target, e.group) for e in filled.values()])
    counts.update({"duplicates": result.duplicates, "contradictory": result.contradictory})
    records = result.records
    if task.data.limit is not None:
        limited = subsample(records, task.data.limit, task.data.seed)
        counts["over_limit"] += len(records) - len(limited)
        records = limited
    parts = split(records, fractions, task.data.seed)
    drawn = {
        name: tuple(
            sorted((filled[record.id] for record in part), key=lambda example: _turn(task.data.seed, example.row_hash))
        )
        for name, part in parts.items()
    }
    return LabelPool(task, drawn, dict(counts), files, tuple(notes), tuple(dict.fromkeys(licences)))


def _shared(targets: set[str], target: str) -> str:
    """A copy without a label has that of the others, where they agree."""
    return next(iter(targets)) if len(targets) == 1 else target


def _turn(seed: int, row_hash: str) -> str:
    return sha256_bytes(f"{seed}/labels/{row_hash}".encode())
