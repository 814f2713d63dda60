"""A task file drafted from a look at its data: which column is asked with, which is the answer, what must not be split.

What is guessed is guessed from names and shapes, said with its reason, and the writer's to change.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bedplate.core.config import one_line
from bedplate.core.errors import DataError, UsageError
from bedplate.core.statistics.clusters import units_to_show
from bedplate.core.statistics.multiplicity import least_estimate, spent_alpha
from bedplate.core.statistics.unequal import MINIMUM_GROUPS
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.core.values import input_name
from bedplate.data.profile import Profile, is_group_name, profiles
from bedplate.data.rows import SourceRows, blank, label_text
from bedplate.data.splits import SplitRecord, deduplicate, normalise, row_hash
from bedplate.evaluation.evaluated import MINIMUM_LABEL_GROUPS
from bedplate.evaluation.metrics import METRICS

MAX_LABELS = 200
MAX_LEVELS = 20
"""Different numbers up to which each may be a label, such as stars in halves; of more, whole ones that recur may."""
_TARGETS = ("label", "labels", "target", "category", "class", "intent", "sentiment", "topic", "answer", "output")
UNGROUPED = "no column was named that says which rows belong together"
"""What a task file that is written without a group gives as its reason."""
CONFIDENCE = 0.95
"""The confidence with which the bar is to be shown."""
VERDICTS = 3
"""Verdicts on the same test rows that these are to be enough for."""
_RARE_ROWS = 20
"""Rows of the rarest label below which it is said that there are few."""
_MACRO_ROWS = 5 * MINIMUM_LABEL_GROUPS
"""Rows of the rarest label with which a fifth of the rows, test, has enough of it for a bound of macro-F1."""
_MISSPELT = 0.85
"""Likeness of a rare label to one with ten times its rows, from which it is taken for a misspelling."""
_NO_LABELS = ("nan", "none", "null", "n/a", "na", "<na>")
"""What programs write in the place of an empty cell."""

JSON_TYPES: dict[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    type(None): "null",
    dict: "object",
    list: "array",
}
OutputType = Literal["label", "labels", "text", "json"]


@dataclass(frozen=True)
class TaskDraft:
    """What the task file will say. notes: what was seen that the writer should know, in full sentences."""

    inputs: tuple[str, ...]
    target: str
    group: str | None
    kind: OutputType
    labels: tuple[str, ...] = ()
    json_schema: Mapping[str, Any] | None = None
    separator: str | None = None
    metric: str = "accuracy"
    bar: float = 0.8
    rows: int = 0
    usable: int = 0
    groups: int | None = None
    unlabelled: int = 0
    notes: tuple[str, ...] = field(default=())

    def test_share(self, bar: float) -> float | None:
        """The share of test, in steps of 0.05: 0.2, or as much more as VERDICTS verdicts at this bar take, or one; None
        where half of the rows are too few for any."""
        units = self.usable if self.groups is None else self.groups
        shares = (max(5 * math.ceil(20 * 1.05 * self._needed(bar, n) / max(units, 1)), 20) for n in (VERDICTS, 1))
        return next((share / 100 for share in shares if share <= 50), None)

    def design(self, bar: float, test_rows: int, test_groups: int) -> str:
        """What test can show, at the first verdict and at later ones on the same rows."""
        name, units = ("rows", test_rows) if self.groups is None else ("groups", test_groups)
        needed = self._needed(bar, 1)
        if units < needed:
            return (
                f"No verdict is possible on these rows: it takes at least {needed} test {name} to show a bar of "
                f"{bar:g}, and there are {units}. Label more {name}, or lower the bar."
            )
        levels = [1 - spent_alpha(1 - CONFIDENCE, number + 1) for number in range(VERDICTS)]
        passing = " / ".join(f"{least_estimate(test_rows, bar, level):.3f}" for level in levels)
        alike = "" if self.groups is None else ", more where rows of a group are alike"
        return (
            f"A first / second / third verdict on the {test_rows:,} test rows shows the bar of {bar:g} in 80% of cases "
            f"for a skin that truly scores {passing}{alike}: try what you want to try before the first."
        )

    def _needed(self, bar: float, verdicts: int) -> int:
        """Test rows, or groups, without a failure that show the bar at the last of so many verdicts."""
        confidence = 1 - spent_alpha(1 - CONFIDENCE, verdicts)
        return max(MINIMUM_GROUPS, units_to_show(bar, confidence, grouped=self.groups is not None))


def draft(
    rows: SourceRows,
    *,
    inputs: Sequence[str] = (),
    target: str | None = None,
    group: str | None = None,
    grouped: bool = True,
) -> TaskDraft:
    """A task over these rows. inputs, target, group: columns, guessed where they are not given; grouped: whether a
    group may be guessed. Raises UsageError for columns that are not there or cannot be told apart, DataError for values
    that cannot be targets."""
    columns = profiles(rows, MAX_LABELS + 1)
    summary = ", ".join(f"{p.name} ({p.column_type}, {p.distinct:,} different)" for p in columns.values())
    for name in (*inputs, *filter(None, (target, group))):
        if name not in columns:
            hint = did_you_mean(nearest(name, columns), f"the columns are {', '.join(columns)}")
            raise UsageError(f"{rows.source}: no column {name!r}; {hint}")
    target = target or guess_target(columns, inputs)
    if target is None:
        raise UsageError(f"{rows.source}: which column is the answer? Name it as the target; there are {summary}")
    chosen = tuple(inputs) or guess_inputs(columns, target, group)
    if not chosen:
        raise UsageError(f"{rows.source}: no column has text to be asked with; name the input ({summary})")
    if target in chosen:
        raise UsageError(f"{target!r} is both an input and the target; name another column for one of them")
    if group is None and grouped:
        group = guess_group(columns, (*chosen, target))
    answer = _answer(rows, columns[target])
    records: list[SplitRecord] = []
    unlabelled: list[int] = []
    for line, row in zip(rows.lines, rows.rows, strict=True):
        texts = {name: str(row.get(name) or "") for name in chosen}
        if not any(text.strip() for text in texts.values()):  # without any input a row is left out
            continue
        if answer["kind"] in ("label", "text") and blank(row.get(target)):
            unlabelled.append(line)
            continue
        records.append(SplitRecord(str(line), row_hash(texts), str(row.get(target)), ""))
    duplicates = deduplicate(records)
    notes = [*_notes(columns, chosen, target, group, answer)]
    if unlabelled:
        notes.insert(
            0, f"Rows without {target} are left out: {rows.listed(unlabelled)}. Fill it in if they are to count."
        )
    if duplicates.duplicates:
        notes.append(f"Copies of a text are left out: {duplicates.duplicates:,}.")
    if duplicates.contradictory:
        notes.append(
            f"Copies of a text with different values of {target} are all left out, because nobody knows which is "
            f"right: {duplicates.contradictory:,}. Correct them if you can."
        )
    counts: dict[str, Any] = {"rows": len(rows.rows), "usable": len(duplicates.records), "unlabelled": len(unlabelled)}
    groups = None if group is None else columns[group].distinct
    return TaskDraft(chosen, target, group, **answer, **counts, groups=groups, notes=tuple(notes))


# --- the file


def task_text(
    task_draft: TaskDraft,
    data: Path,
    path: Path,
    *,
    name: str | None,
    instructions: str | None,
    bases: Sequence[str],
    minutes: float,
    usd_per_hour: float,
) -> str:
    """The task file `path` over the rows of the file `data`, with what each part is for. name: by default the rows'."""
    source = os.path.relpath(data.absolute(), path.absolute().parent)
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", data.stem).strip("-._") or "task"
    inputs = {input_name(column): {"column": column, "kind": "text"} for column in task_draft.inputs}
    output: dict[str, Any] = {"kind": task_draft.kind}
    for key in ("labels", "json_schema", "separator"):
        value = getattr(task_draft, key)
        if value not in (None, ()):
            output[key] = list(value) if isinstance(value, tuple) else value
    fitting = [metric_name for metric_name, metric in METRICS.items() if task_draft.kind in metric.outputs]
    alternatives = [metric_name for metric_name in fitting if metric_name != task_draft.metric]
    group = f"group_by: {one_line(task_draft.group)}"
    group_note = f"# Rows with the same {task_draft.group} stay together in one split."
    if task_draft.group is None:
        group = f"group_by: null, ungrouped_because: {one_line(UNGROUPED)}"
        group_note = "# If several rows come from one document or user, name the column that says so: group_by: COLUMN."
    bar = task_draft.bar
    if not 0 < bar < 1:
        raise UsageError(f"the bar is {bar:g}; give what {task_draft.metric} must reach as a share, such as 0.8")
    test = task_draft.test_share(bar) or 0.2
    unlabelled = ", unlabelled: drop" if task_draft.unlabelled else ""
    return f"""\
# What goes in, what comes out, where the rows are, and when a skin is good enough. docs/task-file.md has every key.
task: {one_line(name)}

# What the base is asked with, and what it answers.
inputs: {one_line(inputs)}
output: {one_line(output)}

# What every prompt begins with: say in a sentence or two what is to be done. The clearer it is, the better.
instructions: {one_line(instructions or default_instructions(task_draft))}

# The source is a path from this file. Skins are tuned on train, chosen on valid, and judged once, on test: each further
# verdict on the same test rows has to reach the bar with a higher confidence.
{group_note}
data:
  {{source: {one_line(source)}, target: {one_line(task_draft.target)},
   {group},
   split: {{train: {0.8 - test:.2g}, valid: 0.2, test: {test:g}}}, seed: 0{unlabelled}}}

# What is measured. Also possible: {", ".join(alternatives) or "a function of your own (docs/task-file.md)"}.
metric: {task_draft.metric}

adapt:
  # `bedplate pull --list` shows bases; a directory, a .gguf file or hf:owner/name will do, and several may compete.
  bases: {one_line(list(bases))}
  # The bar: what the metric must be shown to reach, and with which confidence.
  target: {{value: {bar:g}, confidence: {CONFIDENCE}}}
  # What the whole search may take; add p95_ms, usd_per_1k_calls or max_prompt_tokens to bound what a call may cost.
  budget: {{train_minutes: {minutes:g}}}
  # What an hour of the machine costs that will answer; every price follows from it.
  machine: {{usd_per_hour: {usd_per_hour:g}, as_of: {datetime.date.today()}}}
  # Ways to adapt (`bedplate adapt --help` lists them); auto tries all that fit.
  rungs: auto
"""


def default_instructions(task_draft: TaskDraft) -> str:
    """A sentence to begin with."""
    subject = " and the ".join(column.replace("_", " ") for column in task_draft.inputs)
    target = task_draft.target.replace("_", " ")
    sentences = {
        "label": f"Decide which {target} the {subject} has.",
        "labels": f"Decide which {target} the {subject} has. There may be none or several.",
        "text": f"Write the {target} of the {subject}.",
        "json": f"Read the {subject} and give its {target} as JSON.",
    }
    return sentences[task_draft.kind]


# --- guesses


def guess_target(columns: Mapping[str, Profile], inputs: Sequence[str] = ()) -> str | None:
    """The column of answers: by its name, else the one with fewest different values, each on several rows."""
    open_to = [profile for name, profile in columns.items() if name not in inputs and profile.rows]
    named = [profile.name for profile in open_to if profile.name.lower() in _TARGETS]
    if named:
        return min(named, key=lambda name: _TARGETS.index(name.lower()))
    categorical = [
        profile
        for profile in open_to
        if 2 <= profile.distinct <= MAX_LABELS
        and profile.repeats >= 4
        and profile.column_type == "text"
        and not is_group_name(profile.name)
    ]
    return min(categorical, key=lambda profile: profile.distinct).name if categorical else None


def guess_inputs(columns: Mapping[str, Profile], target: str, group: str | None = None) -> tuple[str, ...]:
    """The column with the longest texts."""
    texts = [
        profile
        for profile in columns.values()
        if profile.column_type == "text" and profile.as_text and profile.name not in (target, group)
    ]
    return (max(texts, key=lambda profile: profile.characters[0]).name,) if texts else ()


def guess_group(columns: Mapping[str, Profile], without: Sequence[str]) -> str | None:
    """A column whose name says that it holds what rows belong to, with values on more than one row and none missing."""
    for profile in columns.values():
        named = is_group_name(profile.name) and profile.name not in without and not profile.empty
        repeats = profile.distinct >= 10 and profile.repeats > 1.05
        if named and repeats and profile.column_type in ("text", "number"):
            return profile.name
    return None


# --- the answer


def _answer(rows: SourceRows, target: Profile) -> dict[str, Any]:
    """Kind, labels, schema and metric, from the values of the target."""
    values = [row.get(target.name) for row in rows.rows if not blank(row.get(target.name))]
    if not values:
        raise DataError(f"{rows.source}: the column {target.name!r} is empty; the answers belong there")
    if target.column_type == "mixed":
        raise DataError(f"{rows.source}: the column {target.name!r} holds values of several kinds; write them alike")
    if target.column_type == "number":
        numbers = [float(str(value)) for value in values]
        if target.distinct > (MAX_LABELS if _are_codes(numbers, target) else MAX_LEVELS):
            raise DataError(
                f"{rows.source}: the column {target.name!r} holds {target.distinct:,} different numbers in "
                f"{target.rows:,} rows, too many for labels, and regression is not offered; put them into ranges, such "
                "as low, medium and high, in a column of labels, and name that as the target (or, where a number is to "
                "be written as text, write a task file with `output: {kind: text}`)"
            )
        return _label(rows, target)
    several = {"kind": "labels", "metric": "example_f1", "bar": 0.7}
    if target.column_type == "list":
        names = {str(label) for value in values if isinstance(value, list) for label in value}
        return several | {"labels": tuple(sorted(names))}
    parsed = [record for record in map(_object, values) if record is not None]
    if len(parsed) == len(values):
        return {"kind": "json", "json_schema": schema_of(parsed), "metric": "json_fields", "bar": 0.8}
    if target.distinct <= MAX_LABELS and (target.repeats >= 3 or target.distinct <= 2):
        return _label(rows, target)
    separator = _separator([str(value) for value in values])
    if separator is not None:
        names = {name.strip() for value in values for name in str(value).split(separator) if name.strip()}
        return several | {"labels": tuple(sorted(names)), "separator": separator}
    metric = "rouge_l" if target.characters[0] > 60 else "token_f1"
    return {"kind": "text", "metric": metric, "bar": 0.4}


def _are_codes(numbers: Sequence[float], target: Profile) -> bool:
    """Whether numbers may stand for labels: whole ones on many rows each, or counted from 0 or 1 with few left out;
    others are measured."""
    numbers = [number for number in numbers if math.isfinite(number)]
    if not numbers or not all(number.is_integer() for number in numbers):
        return False
    low, high = min(numbers), max(numbers)
    counted = low in (0, 1) and high - low < 1.1 * target.distinct
    return target.repeats >= (2 if counted else 10)


def _label(rows: SourceRows, target: Profile) -> dict[str, Any]:
    if not all(blank(value) or isinstance(label_text(value), str) for value in (r.get(target.name) for r in rows.rows)):
        raise DataError(
            f"{rows.source}: the labels of {target.name!r} are {target.column_type} values; write them as text, such "
            f'as "{target.commonest[0][0]}", or better as words that say what they mean'
        )
    odd = next((name for name, _ in target.commonest if name != name.strip()), None)
    if odd is not None:
        raise DataError(f"{rows.source}: the label {odd!r} of {target.name!r} has spaces around it; take them away")
    counts = dict(target.commonest)
    if len(counts) == 1:
        raise DataError(
            f"{rows.source}: the column {target.name!r} is {next(iter(counts))!r} in every row; it takes two labels to "
            "decide between"
        )
    largest, smallest = max(counts.values()), min(counts.values())
    share = largest / target.rows
    bar = 0.8 if share < 0.75 else round(min(0.98, share + (1 - share) / 2), 2)
    uneven = len(counts) > 2 and largest >= 5 * smallest
    metric = "macro_f1" if uneven and smallest >= _MACRO_ROWS else "accuracy"
    return {"kind": "label", "labels": tuple(sorted(counts)), "metric": metric, "bar": bar}


def _object(value: Any) -> dict[str, Any] | None:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, dict) else None


def schema_of(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A JSON schema of flat or nested objects as they were seen: a key is required where every one has it."""
    names = dict.fromkeys(name for value in values for name in value)
    properties = {name: _schema([value[name] for value in values if name in value]) for name in names}
    required = [name for name in names if all(name in value for value in values)]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema(values: Sequence[Any]) -> dict[str, Any]:
    json_types = sorted({JSON_TYPES[type(value)] for value in values})
    if json_types == ["object"]:
        return schema_of(values)
    if json_types == ["array"]:
        inner = [member for value in values for member in value]
        return {"type": "array", **({"items": _schema(inner)} if inner else {})}
    if json_types == ["integer", "number"]:
        json_types = ["number"]
    return {"type": json_types[0] if len(json_types) == 1 else json_types}


def _separator(values: Sequence[str]) -> str | None:
    """What stands between several labels in one text: where the parts repeat far more than the whole does."""
    for separator in (";", "|", ","):
        parts = Counter(name.strip() for value in values for name in value.split(separator))
        several = sum(separator in value for value in values)
        if several >= len(values) / 10 and 2 <= len(parts) <= MAX_LABELS and sum(parts.values()) >= 5 * len(parts):
            return separator
    return None


def _notes(
    columns: Mapping[str, Profile], inputs: Sequence[str], target: str, group: str | None, answer: Mapping[str, Any]
) -> list[str]:
    notes: list[str] = []
    for name in inputs:
        if columns[name].empty:
            notes.append(f"Rows without {name}: {columns[name].empty:,}. Rows without any input are left out.")
    if columns[target].empty and answer["kind"] not in ("label", "text"):
        notes.append(f"Rows without {target}: {columns[target].empty:,}. Fill it in, or take them out of the file.")
    gaps = [(name, count) for name, count in columns[target].commonest if name.lower() in _NO_LABELS]
    if answer["kind"] == "label" and gaps:
        shown = ", ".join(f"{name!r} ({count:,})" for name, count in gaps)
        notes.append(
            f"Labels that may stand for none: {shown}. Leave the cells empty if so, and the rows are left out."
        )
    if answer["kind"] == "label":
        numeric = columns[target].column_type == "number"
        if numeric or not columns[target].as_text:
            near = " A number near the right one counts as wrong." if numeric else ""
            notes.append(
                f"Values of {target} are taken as text, as skins answer: {', '.join(answer['labels'][:5])}.{near} "
                "Bases that read the labels do better with words that say what they mean."
            )
        spellings: dict[str, list[str]] = {}
        for name, count in columns[target].commonest:
            spellings.setdefault(normalise(name), []).append(f"{name!r} ({count:,})")
        if alike := "; ".join(" and ".join(names) for names in spellings.values() if len(names) > 1):
            notes.append(
                f"Labels that differ in case or spaces alone: {alike}. Write them alike in the data if they are one."
            )
        rare = [(name, count) for name, count in columns[target].commonest if count < _RARE_ROWS]
        if rare:
            shown = ", ".join(f"{name} ({count})" for name, count in rare[:5]) + (", …" if len(rare) > 5 else "")
            notes.append(
                f"Labels with fewer than {_RARE_ROWS} rows: {shown}. Little can be said of these, and a bar for "
                f"macro_f1, which weighs every label alike, needs about {_MACRO_ROWS} rows of each."
            )
        for name, count in rare:
            frequent = [label for label, rows_of_it in columns[target].commonest if rows_of_it >= 10 * count]
            close = nearest(name, frequent, cutoff=_MISSPELT)
            if close and normalise(close[0]) != normalise(name):
                where = "1 row" if count == 1 else f"{count} rows"
                notes.append(f"The label {name!r} is on {where}: {did_you_mean(close)} Correct the data if so.")
        if answer["metric"] == "macro_f1":
            notes.append("macro_f1 is measured, which weighs every label alike: some labels are far rarer than others.")
        common, count = columns[target].commonest[0]
        if count / columns[target].rows >= 0.5:
            share = f"{count / columns[target].rows:.0%}"
            notes.append(f"{share} of the rows are {common!r}: who always says so is right that often.")
    notes.append(
        "Rows are taken as independent. If several come from one document or user, name that column as the group."
        if group is None
        else f"Rows with the same {group} stay together in one split ({columns[group].distinct:,} groups); with "
        "the group `none`, rows are taken as independent."
    )
    return notes
