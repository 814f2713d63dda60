"""Whether a task that is judged says which rows belong together, and answers what its data say of that.

Rows that belong together and are split as if they did not let skins that are at the bar pass far too often, and no
number of the report shows it. So a task file declares its groups, or declines them with a reason; and what looks like
groups all the same stops the run until it is declared or declined too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from bedplate.core.errors import ConfigError
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.data.rows import SourceRows
from bedplate.data.sources import read_rows
from bedplate.evaluation.leaks.hidden_groups import hidden_groups
from bedplate.evaluation.leaks.table import SOURCE, table_of
from bedplate.evaluation.task import Task
from bedplate.report.schema_parts import Grouping, HiddenGroups

NON_COLUMN_FINDINGS = ("near_duplicates", "order")
"""What may stand under `not_groups` beside columns."""


def sources_of(task: Task) -> dict[str, SourceRows]:
    """The rows of a task's own sources, by the prefix of their ids."""
    return {prefix: read_rows(source, task.directory) for prefix, source in task.data.by_prefix.items()}


def grouping_of(task: Task, sources: Mapping[str, SourceRows]) -> Grouping:
    """What a task says of its groups and what its rows say. ConfigError where it says nothing, or does not answer what
    was found."""
    data = task.data
    columns = dict.fromkeys(name for rows in sources.values() for name in rows.columns)
    for name in data.not_groups:
        if name not in columns and name not in (*NON_COLUMN_FINDINGS, SOURCE):
            hint = did_you_mean(
                nearest(name, [*columns, *NON_COLUMN_FINDINGS]), f"the columns are {', '.join(columns)}"
            )
            raise ConfigError(f"{task.path}: data.not_groups: there is no column {name!r}; {hint}")
    findings, limits = hidden_groups(table_of(task, sources))
    answered = tuple(finding.model_copy(update={"answer": data.not_groups.get(finding.name)}) for finding in findings)
    grouping = Grouping(
        columns=data.group_columns, ungrouped_because=data.ungrouped_because, found=answered, limits=tuple(limits)
    )
    if not data.group_columns and data.ungrouped_because is None:
        raise ConfigError(_unsaid(task, grouping))
    if grouping.unanswered:
        raise ConfigError(_unanswered(task, grouping.unanswered))
    return grouping


def _unsaid(task: Task, grouping: Grouping) -> str:
    evidence = (
        "; ".join(finding.says for finding in grouping.found) or "no column repeats, and no rows were found to be alike"
    )
    problem = "is null without a reason" if "group_by" in task.data.model_fields_set else "is not said"
    return (
        f"{task.path}: data.group_by {problem}: rows of one user, document or template that stand in train and in test "
        "make a verdict say more than it knows. Name the column (group_by: review_id), or several ([user, product]: "
        "rows that share any value stay together), or write group_by: null, ungrouped_because: "
        f'"each row is from another user". In the data: {evidence}'
    )


def _unanswered(task: Task, findings: Sequence[HiddenGroups]) -> str:
    evidence = "; ".join(f"{finding.says} ({_answer(finding)})" for finding in findings)
    reasons = json.dumps(dict.fromkeys((finding.name for finding in findings), "..."), ensure_ascii=False)
    return (
        f"{task.path}: the rows look as if some belong together that may be split: {evidence}. Where it was looked at and "
        f"they do not, say why: data.not_groups: {reasons}"
    )


def _answer(finding: HiddenGroups) -> str:
    if finding.kind == "column":
        return f"declare it: data.group_by: {finding.name}"
    if finding.kind == "order":
        return "give the rows a column that names what they come from, and declare it"
    return "take copies out, or give the rows a column that names what they come from, and declare it"
