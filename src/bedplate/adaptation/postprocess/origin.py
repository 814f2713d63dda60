"""What is known of where a skin came from: its task, and which rows it was trained on, chosen by and judged by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedplate.core.display import join_names
from bedplate.core.errors import DataError, SkinError, UsageError
from bedplate.core.files import read_text
from bedplate.evaluation.costs import Scale
from bedplate.evaluation.drift import Promise
from bedplate.evaluation.examples import SPLITS, Example, load_examples
from bedplate.evaluation.leaks.seen_rows import made_in, read_splits, read_texts
from bedplate.evaluation.ledger import keys_of
from bedplate.evaluation.task import Task, load_task
from bedplate.skins.files import read_identified
from bedplate.skins.records import REPORT_FILE, SETTINGS_FILE, SPLITS_FILE, Run
from bedplate.skins.skin import Skin

REPORT_CONFIDENCE = 0.95
"""The confidence of every interval in a report's table."""


@dataclass(frozen=True, eq=False)
class Origin:
    """A skin with the task that it is to answer and its `run_task`, that it was made for; and the split of each row
    that its run had, by row hash: None, with the reason in `notes`, where that is not known. texts: the same by the
    keys of a row's texts; none of runs from before these were kept."""

    id: str
    skin: Skin
    directory: Path
    task: Task
    run_task: Task
    splits: Mapping[str, str] | None
    texts: Mapping[str, str]
    notes: tuple[str, ...]

    def had(self, examples: Sequence[Example]) -> list[str | None]:
        """The split that each of these rows was in; None of one that the run did not have. A row is known as the ledger
        knows it, so that a full stop makes no other of it."""
        splits = self.splits or {}
        keys = keys_of((e.id, e.inputs) for e in examples).exact if self.texts else [frozenset[str]()] * len(examples)
        row_splits = [
            {splits.get(example.row_hash), *(self.texts.get(key) for key in mine)}
            for example, mine in zip(examples, keys, strict=True)
        ]
        # what was learned from comes first
        return [next((name for name in SPLITS if name in names), None) for names in row_splits]


def origin_of(directory: Path | str, task: Task | None = None) -> Origin:
    """Read a skin and what its run left. task: what it is to answer, by default the task of its run. SkinError,
    ConfigError; UsageError without a task, or for one with other inputs or another output."""
    directory = Path(directory)
    id_, skin = read_identified(directory)
    place = made_in(directory, id_, skin)
    run_task = None if place is None else load_task(place / SETTINGS_FILE, relative_to=Path(Run.read(place).task_file))
    task = task or run_task
    if task is None:
        raise UsageError(
            f"the run that made {directory} is neither above it nor in the catalogue, so the columns of its inputs are "
            "unknown; give the task file with --task"
        )
    if set(task.inputs) != set(skin.inputs) or task.output.kind != skin.output.kind:
        raise UsageError(
            f"{task.path} is not a task for {skin.name}, which takes {', '.join(sorted(skin.inputs))} and returns a "
            f"{skin.output.kind}: the task has {', '.join(sorted(task.inputs))} and returns a {task.output.kind}"
        )
    if skin.output.all_labels and not {*skin.output.all_labels} & {*(task.output.labels or ())}:
        raise UsageError(
            f"{task.path} is not a task for {skin.name}: its labels are {join_names(task.output.labels or ())}, and "
            f"the skin answers {join_names(skin.output.all_labels)}"
        )
    if place is not None and (place / SPLITS_FILE).is_file():
        rows, texts = read_splits(place, run_task or task).rows, read_texts(place / SPLITS_FILE)
        return Origin(id_, skin, directory, task, run_task or task, rows, texts, ())
    return Origin(id_, skin, directory, task, run_task or task, *_splits_again(run_task or task, skin))


def _splits_again(task: Task, skin: Skin) -> tuple[dict[str, str] | None, dict[str, str], tuple[str, ...]]:
    """The task's rows, split again, where they are the skin's by the hashes that it names: by hash, and by texts."""
    try:
        data = load_examples(task)
    except DataError as error:
        return None, {}, (f"the rows that {skin.name} was made from cannot be read ({error.message})",)
    changed = [name for name in ("train", "valid", "test") if data.hashes[name] != skin.provenance.splits.get(name)]
    if changed:
        names = " and ".join(changed)
        return None, {}, (f"the rows that {skin.name} was made from have changed: the hash of {names} differs",)
    splits_by_hash = {e.row_hash: "train" for e in data.train} | {e.row_hash: "valid" for e in data.valid}
    texts = {key: name for name in reversed(SPLITS) for key in data.keys(name).all_exact}
    return splits_by_hash | dict.fromkeys(data.test.row_hashes, "test"), texts, ()


def promise_of(origin: Origin) -> Promise | None:
    """What the report that a skin carries says of its quality: on test, or else on valid, by which it was chosen. None
    where it carries none. SkinError for one that does not read."""
    path = origin.directory / REPORT_FILE
    if not path.is_file():
        return None
    try:
        report: Any = json.loads(read_text(path))
        rung = _rung_of(report, origin)
        rows = {row["split"]: row for row in report["rungs"] if row["rung"] == rung and row["estimate"] is not None}
        row = rows.get("test") or rows.get("valid")
        if row is None:
            return None
        scale = Scale(report["target"].get("worst_usd"))
        price = row["usd_per_1k_calls"] / 1000 if scale.lower_is_better else 0.0  # new rows are judged without it
        estimate, *ends = (scale.score(value - price) for value in (row["estimate"], *row["interval"]))
        low, high = min(*ends, estimate), max(*ends, estimate)
        has_target_value = report["target"].get("value_given", True)  # without, the bounds are those of a comparison
        is_tested = row["split"] == "test" and has_target_value
        confirmations = report.get("nominees", {}).get("confirmations", ()) if is_tested else ()
        bound = next((c for c in confirmations if c["rung"] == rung and c["lower"] is not None), None)
        floor, confidence = low, (1 + REPORT_CONFIDENCE) / 2
        if bound is not None:
            bound_side = "upper" if scale.lower_is_better else "lower"
            floor, confidence = scale.score(bound[bound_side] - price), bound[f"{bound_side}_confidence"]
        return Promise(
            metric=report["target"]["metric"],
            split=row["split"],
            estimate=estimate,
            interval=(low, high),
            n=row["n"],
            groups=row["groups"],
            target=scale.score(report["target"]["value"] - price) if has_target_value else None,
            floor=min(floor, estimate),
            confidence=confidence,
            by_verdict=bound is not None,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SkinError(f"{path} is not a report of `bedplate adapt` ({error!r}); remove or restore it") from error


def _rung_of(report: Any, origin: Origin) -> str | None:
    return next((name for name, record in report["lineage"]["skins"].items() if record["skin_id"] == origin.id), None)


def tested_rows(origin: Origin) -> list[tuple[str, float, str]]:
    """Hash, score and group of the test rows of the skin's run, whose report has them; [] where that is gone."""
    place = made_in(origin.directory, origin.id, origin.skin)
    if place is None or not (place / REPORT_FILE).is_file():
        return []
    try:
        report: Any = json.loads(read_text(place / REPORT_FILE))
        rows = report["rows"]["test"].get(_rung_of(report, origin), ())
        return [(row["row_hash"], float(row["score"]), str(row["group"])) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SkinError(f"{place / REPORT_FILE} is damaged ({error!r}); restore it") from error
