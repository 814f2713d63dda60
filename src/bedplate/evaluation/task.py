"""The task file: inputs, output, data and metric, read into `Task`.

`evaluate`, `predict` and `adapt` share it; the ladder's own part (`adapt`) is carried here unread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, field_validator, model_validator

from bedplate.core import display
from bedplate.core.config import Grown, Strict, load_config
from bedplate.core.errors import ConfigError
from bedplate.core.files import sha256_json
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.data.rows import check_input_kind
from bedplate.evaluation import costs
from bedplate.evaluation.costs import MetricSpec, Scale
from bedplate.evaluation.metrics import METRICS, Scorer
from bedplate.evaluation.ranking import RankedDocuments, ranked
from bedplate.skins.output import OUTPUT_KINDS, Output

LABEL = "label"
"""What stands for the right answer where slices are named."""
Part = Annotated[float, Field(gt=0, lt=1)] | str


class SplitSpec(Strict):
    """Train, valid and test: fractions that sum to 1, or three files."""

    train: Part
    valid: Part
    test: Part

    @model_validator(mode="after")
    def _fractions_or_files(self) -> SplitSpec:
        parts = (self.train, self.valid, self.test)
        numbers = [part for part in parts if isinstance(part, float)]
        if 0 < len(numbers) < 3:
            raise ValueError("give three fractions or three files, not some of each")
        if numbers and abs(sum(numbers) - 1) > 1e-6:
            raise ValueError(f"the fractions must sum to 1, not {sum(numbers):g}")
        if not numbers and len(set(parts)) < 3:
            raise ValueError("train, valid and test must be three different files")
        return self

    @property
    def fractions(self) -> dict[str, float] | None:
        """Split name → fraction, or None where the splits are files."""
        return {name: part for name, part in self if isinstance(part, float)} or None

    @property
    def files(self) -> dict[str, str] | None:
        """Split name → file, or None where the splits are fractions."""
        return {name: part for name, part in self if isinstance(part, str)} or None


Share = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]


class CurrentSpec(Strict):
    """The system that runs today, by what it answered: the `column` of its recorded answers (a text alone is that), and
    the price and time of one of its calls, where they are known. A row without an answer counts as wrong."""

    column: Annotated[str, Field(min_length=1)]
    usd_per_1k_calls: NotNegative | None = None
    p50_ms: NotNegative | None = None
    p95_ms: NotNegative | None = None

    @model_validator(mode="before")
    @classmethod
    def _column(cls, values: Any) -> Any:
        return {"column": values} if isinstance(values, str) else values


class TrafficSpec(Strict):
    """How much of production each row stands for. duplicates: a text that stands in the data several times counts as
    often as it stands there (its copies are dropped all the same). shares: of one column the share of calls that has
    each value, as {language: {en: 0.7, de: 0.3}}; rows of a value then weigh as much as their share together."""

    duplicates: bool = False
    shares: dict[str, dict[str, Share]] = Field(default_factory=dict[str, dict[str, float]])

    @field_validator("shares")
    @classmethod
    def _sum(cls, shares: Mapping[str, Mapping[str, float]]) -> Mapping[str, Mapping[str, float]]:
        if len(shares) > 1:
            raise ValueError(f"give the shares of one column, not of {len(shares)} ({', '.join(shares)})")
        for column, values in shares.items():
            total = sum(values.values())
            if abs(total - 1) > 1e-6:
                raise ValueError(f"the shares of {column} must sum to 1, not {total:g}")
        return shares

    @property
    def column(self) -> str | None:
        """Whose values have shares."""
        return next(iter(self.shares), None)


Column = Annotated[str, Field(min_length=1)]
Reason = Annotated[str, pydantic.StringConstraints(strip_whitespace=True, min_length=1)]


class DataSpec(Grown):
    """Where rows come from and how they are split. `limit` keeps at most that many rows (whole groups, by seed).
    current: the answers of the system that runs today. slices: columns whose values are looked at one by one. traffic:
    what rows weigh. second_label: a column with a second label of some rows, by somebody else.
    group_by: the column of what must not be split, or several: rows that share a value of any of them, directly or
    through other rows, are one group. ungrouped_because: why there is none, which a task that is adapted says.
    not_groups: what looks like groups and is none (a column, `near_duplicates`, `order`), with the reason of each.
    unlabelled: whether rows with text and without an answer are dropped and counted, or refused.
    """

    LATE = ("current", "slices", "traffic", "second_label", "ungrouped_because", "not_groups", "unlabelled")

    source: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    target: Annotated[str, Field(min_length=1)]
    group_by: str | Annotated[tuple[Column, ...], Field(min_length=1)] | None = None
    ungrouped_because: Reason | None = None
    not_groups: Mapping[str, Reason] = {}
    split: SplitSpec
    seed: int = 0
    limit: Annotated[int, Field(ge=1)] | None = None
    current: CurrentSpec | None = None
    slices: tuple[str, ...] = ()
    traffic: TrafficSpec = TrafficSpec()
    second_label: Annotated[str, Field(min_length=1)] | None = None
    unlabelled: Literal["refuse", "drop"] = "refuse"

    @field_validator("slices")
    @classmethod
    def _slices(cls, slices: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(slices)) < len(slices):
            raise ValueError("a column is named twice")
        if LABEL in slices:
            raise ValueError(f"{LABEL!r} is what slices by the right answer are called; rename the column")
        return slices

    @model_validator(mode="after")
    def _source_or_files(self) -> DataSpec:
        if self.split.files is None and self.source is None:
            raise ValueError("`source` is missing: a data set's name or a file (or give three files under `split`)")
        if self.split.files is not None and (self.source is not None or self.limit is not None):
            raise ValueError("`source` and `limit` do not go with files under `split`")
        if self.second_label == self.target:
            raise ValueError("`second_label` is the column of the target itself; name the one of the other labels")
        if isinstance(self.source, tuple) and len(set(self.source)) < len(self.source):
            raise ValueError("a source is named twice")
        if len(set(self.group_columns)) < len(self.group_columns):
            raise ValueError("`group_by` names a column twice")
        if self.group_by is not None and self.ungrouped_because is not None:
            raise ValueError("`ungrouped_because` goes with `group_by: null`; take one of the two out")
        conflict = next((name for name in self.group_columns if name in self.not_groups), None)
        if conflict is not None:
            raise ValueError(f"{conflict!r} stands under `group_by` and under `not_groups`; take it out of one of them")
        return self

    @property
    def group_columns(self) -> tuple[str, ...]:
        """The columns of `group_by`; none where rows are independent."""
        return (self.group_by,) if isinstance(self.group_by, str) else self.group_by or ()

    @property
    def sliced(self) -> tuple[str, ...]:
        """Columns that are kept with the rows: the slices, and the one that has shares of the traffic."""
        return tuple(dict.fromkeys([*self.slices, *self.traffic.shares]))

    @property
    def by_prefix(self) -> dict[str, str]:
        """What stands before the ids of a source's rows, to tell them from another's → the data set or file."""
        if self.split.files is not None:
            return {f"{name}/": file for name, file in self.split.files.items()}
        if isinstance(self.source, str):
            return {"": self.source}
        return {f"{source}/": source for source in self.source or ()}

    @property
    def sources(self) -> tuple[str, ...]:
        """Every data set or file that rows are read from."""
        return tuple(self.by_prefix.values())


_NEEDED = {"labels": "at least 2 of them", "json_schema": "the schema of its values", "documents": "what is searched"}
"""What a field is, where an output that needs it lacks it."""


class InputSpec(Strict):
    """One named input: the column it is read from and its kind (text)."""

    column: Annotated[str, Field(min_length=1)]
    kind: Annotated[str, pydantic.AfterValidator(check_input_kind)] = "text"


class AbstainSpec(Strict):
    """When to give no label: `answer` stands for one whose probability is below `min_confidence`, or for the least sure
    ones, so that at least the share `coverage` of valid is answered."""

    min_confidence: Annotated[float, Field(gt=0, le=1)] | None = None
    coverage: Annotated[float, Field(gt=0, lt=1)] | None = None
    answer: Annotated[str, Field(min_length=1)] = "abstain"

    @model_validator(mode="after")
    def _check_exclusive(self) -> AbstainSpec:
        if (self.min_confidence is None) == (self.coverage is None):
            raise ValueError("give either `min_confidence` or `coverage`")
        return self


class OutputSpec(Grown):
    """What a prediction is, one of the kinds of `skins.output` as a task file says it: one of `labels`, any number of
    them (kind labels), text of at most `max_tokens` tokens that ends at any of `stop`, or a JSON value that
    `json_schema` describes. `separator`: what stands between the labels of a target that is one text ("red, blue");
    without it a target is a list, or JSON text of one. kind embedding: a vector, by which `documents` are ranked; a
    target is the id of a relevant one, or several ids.
    """

    LATE = ("json_schema", "separator", "documents", "abstain")

    kind: str
    labels: tuple[str, ...] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: tuple[str, ...] | None = None
    json_schema: dict[str, Any] | None = None
    separator: Annotated[str, Field(min_length=1)] | None = None
    documents: RankedDocuments | None = None
    abstain: AbstainSpec | None = None
    """For kind label: no label where the skin is not sure. By accuracy that is wrong; selective_accuracy leaves it out.
    """

    @field_validator("kind")
    @classmethod
    def _check_type(cls, output_type: str) -> str:
        if output_type in OUTPUT_KINDS:
            return output_type
        later = output_type == "image"
        problem = f"output kind {output_type!r} is not supported yet" if later else f"no output kind {output_type!r}"
        raise ValueError(f"{problem}; supported: {', '.join(OUTPUT_KINDS)}")

    @field_validator("labels")
    @classmethod
    def _labels(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for label, count in Counter(labels or ()).items():
            if not label or label != label.strip():
                raise ValueError(f"the label {label!r} is empty or has spaces around it")
            if count > 1:
                raise ValueError(f"the label {label!r} stands {count} times; each label once")
        return labels

    @model_validator(mode="after")
    def _fields_of_the_kind(self) -> OutputSpec:
        output_class = OUTPUT_KINDS[self.kind]
        for name in sorted(output_class.needs):
            if getattr(self, name) is None or (name == "labels" and len(self.labels or ()) < 2):
                raise ValueError(f"an output of kind {self.kind} needs `{name}`, {_NEEDED[name]}")
        for name in sorted(self.model_fields_set - {"kind"} - output_class.task_fields):
            if getattr(self, name) is not None:
                kinds = [kind for kind, form in OUTPUT_KINDS.items() if name in form.task_fields]
                listed = " or ".join(filter(None, (", ".join(kinds[:-1]), kinds[-1])))
                raise ValueError(f"`{name}` belongs to outputs of kind {listed}, not {self.kind}")
        if self.abstain is not None and self.abstain.answer in (self.labels or ()):
            raise ValueError(f"{self.abstain.answer!r} is a label; give `abstain` another `answer`")
        torn = next((label for label in self.labels or () if self.separator and self.separator in label), None)
        if torn is not None:
            raise ValueError(f"the separator {self.separator!r} stands in the label {torn!r}; choose another")
        _ = self.form  # refuses a schema's keywords that cannot be enforced
        return self

    @cached_property
    def form(self) -> Output:
        """What a skin of the task answers with, as far as the task says it."""
        output_class = OUTPUT_KINDS[self.kind]
        shared = (output_class.task_fields & output_class.model_fields.keys()) - {"abstain"}
        settings = {name: getattr(self, name) for name in shared}
        return output_class(**{name: value for name, value in settings.items() if value is not None})

    def canonical(self, text: str) -> str:
        """The text as predictions and targets are compared: JSON with sorted keys and without white space, labels as a
        JSON list in their order, ranked documents as one of their ids, anything else as it is. RequestError for what
        fits neither."""
        return ranked(text) if self.documents is not None else self.form.comparable(text)


MetricField = Annotated[
    Annotated[str, pydantic.Tag("named")] | Annotated[MetricSpec, pydantic.Tag("described")],
    pydantic.Discriminator(lambda value: "described" if isinstance(value, Mapping | MetricSpec) else "named"),
]


class Task(Strict):
    """A task file. Read one with `load_task`; relative data files are taken from the directory of the file."""

    task: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    inputs: Annotated[dict[str, InputSpec], Field(min_length=1)]
    output: OutputSpec
    instructions: str = ""
    data: DataSpec
    metric: MetricField
    adapt: dict[str, Any] | None = None

    _path: Path | None = pydantic.PrivateAttr(default=None)

    @field_validator("inputs")
    @classmethod
    def _names(cls, inputs: Mapping[str, InputSpec]) -> Mapping[str, InputSpec]:
        for name in inputs:
            if not name.isidentifier():  # prompts are templates that refer to inputs by name
                raise ValueError(f"the input name {name!r} must be letters, digits and _, and not begin with a digit")
        return inputs

    @field_validator("metric")
    @classmethod
    def _metric(cls, metric: str | MetricSpec, validation: pydantic.ValidationInfo) -> str | MetricSpec:
        if isinstance(metric, MetricSpec):
            described: OutputSpec | None = validation.data.get("output")
            if described is not None and metric.costs is not None:
                if described.kind != "label":
                    raise ValueError("costs by label are for outputs of kind label; give a function: `cost`")
                costs.check_costs(metric.costs, described.labels or (), described.abstain and described.abstain.answer)
            return metric
        output: OutputSpec | None = validation.data.get("output")
        fitting = [name for name, m in METRICS.items() if output is None or output.kind in m.outputs]
        if metric not in METRICS:
            hint = did_you_mean(nearest(metric, fitting), f"there are {', '.join(fitting)}")
            raise ValueError(f"no metric {metric!r}; {hint}")
        if output is not None and metric not in fitting:
            raise ValueError(f"{metric!r} does not fit an output of kind {output.kind}; {', '.join(fitting)} would")
        return metric

    @model_validator(mode="after")
    def _one_query(self) -> Task:
        if self.output.documents is not None and len(self.inputs) > 1:
            raise ValueError("a task with outputs of kind embedding has one input, the query")
        if self.output.documents is not None and self.data.second_label is not None:
            raise ValueError("`data.second_label` does not go with outputs of kind embedding")
        return self

    def __repr__(self) -> str:
        inputs, labels = display.join_names(list(self.inputs)), self.output.labels
        output_summary = self.output.kind if labels is None else f"{self.output.kind} ({display.join_names(labels)})"
        metric = self.metric if isinstance(self.metric, str) else "a metric of its own"
        return display.line("task", self.task, f"{inputs} → {output_summary}", metric, self._path)

    @property
    def path(self) -> Path | None:
        return self._path

    @property
    def directory(self) -> Path:
        """What relative data files are relative to."""
        return Path() if self._path is None else self._path.parent

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that a prediction is one of; empty for every other kind (`output.labels` for several)."""
        return self.output.form.all_labels if self.output.form.is_one_label else ()

    @property
    def scorer(self) -> Scorer:
        """What scores the predictions. ConfigError for a Python function that is not there, or a rubric that cannot be
        used."""
        if isinstance(self.metric, str):
            return METRICS[self.metric]
        if self.metric.judge is not None:
            from bedplate.evaluation.metrics_judge import judge_metric

            return judge_metric(self.metric.judge, list(self.inputs))
        if self.metric.costs is not None:
            return costs.matrix_metric(self.metric.costs)
        values = self.output.form.json_targets
        metric = costs.python_metric(self.metric.python or self.metric.cost or "", self.directory, values=values)
        return metric if self.metric.worst_usd is None else costs.function_metric(metric, self.metric.worst_usd)

    @property
    def scale(self) -> Scale:
        if isinstance(self.metric, str) or (self.metric.costs is None and self.metric.cost is None):
            return costs.PLAIN
        scorer = self.scorer
        assert isinstance(scorer, costs.CostMetric)
        return Scale(scorer.worst_usd)

    @property
    def metric_name(self) -> str:
        """The metric in reports; of one that the task file describes, it differs with what the scores depend on."""
        return self.metric if isinstance(self.metric, str) else self.scorer.name

    @property
    def hash(self) -> str:
        """sha256 (hex) of the resolved file, overrides included."""
        values = self.model_dump(mode="json")
        for name in ("ungrouped_because", "not_groups"):  # reasons change no row
            values["data"].pop(name, None)
        if isinstance(self.metric, MetricSpec):  # a judge's price or a function's path change no score
            values["metric"] = self.metric_name
        return sha256_json(values)


def load_task(path: Path | str, overrides: Sequence[str] = (), *, relative_to: Path | None = None) -> Task:
    """Read a task file, with `key=value` overrides. relative_to: the file whose directory relative paths start from,
    where it is not this one. Raises ConfigError naming file, line, key and what is allowed."""
    task = load_config(path, Task, overrides)
    task._path = Path(path) if relative_to is None else relative_to  # pyright: ignore[reportPrivateUsage]
    try:
        _ = task.scorer  # a function or a rubric that cannot be used is told before anything is asked
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}") from error
    return task
