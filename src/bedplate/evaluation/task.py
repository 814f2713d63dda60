"""The task file: inputs, output, data and metric, read into `Task`.

`evaluate`, `predict` and `adapt` share it; the ladder's own part (`adapt`) is carried here unread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from bedplate.core import display
from bedplate.core.config import Grown, Strict, load_config
from bedplate.core.errors import ConfigError
from bedplate.core.files import sha256_json
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.data.input_kinds import check_input_kind
from bedplate.evaluation.costs import PLAIN, CostMetric, Scale, check_costs, function_metric, matrix_metric
from bedplate.evaluation.data_spec import DataSpec
from bedplate.evaluation.metrics import METRICS, Scorer
from bedplate.evaluation.metrics_python import python_metric
from bedplate.evaluation.metrics_spec import MetricSpec
from bedplate.evaluation.ranking import RankedDocuments, ranked
from bedplate.skins.output import OUTPUT_KINDS, Output

_NEEDED = {
    "labels": "at least 2 of them",
    "json_schema": "the schema of its values",
    "documents": "what is searched",
}
"""What a field is, where an output that needs it lacks it."""


class InputSpec(Strict):
    """One named input: the column it is read from and its kind (text)."""

    column: Annotated[str, Field(min_length=1)]
    kind: str = "text"

    @field_validator("kind")
    @classmethod
    def _check_type(cls, input_type: str) -> str:
        return check_input_kind(input_type)


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


def _metric_form(value: Any) -> str:
    return "described" if isinstance(value, Mapping | MetricSpec) else "named"


MetricField = Annotated[
    Annotated[str, Tag("named")] | Annotated[MetricSpec, Tag("described")], Discriminator(_metric_form)
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

    _path: Path | None = PrivateAttr(default=None)

    @field_validator("inputs")
    @classmethod
    def _names(cls, inputs: Mapping[str, InputSpec]) -> Mapping[str, InputSpec]:
        for name in inputs:
            if not name.isidentifier():  # prompts are templates that refer to inputs by name
                raise ValueError(f"the input name {name!r} must be letters, digits and _, and not begin with a digit")
        return inputs

    @field_validator("metric")
    @classmethod
    def _metric(cls, metric: str | MetricSpec, validation: ValidationInfo) -> str | MetricSpec:
        if isinstance(metric, MetricSpec):
            described: OutputSpec | None = validation.data.get("output")
            if described is not None and metric.costs is not None:
                if described.kind != "label":
                    raise ValueError("costs by label are for outputs of kind label; give a function: `cost`")
                check_costs(metric.costs, described.labels or (), described.abstain and described.abstain.answer)
            return metric
        if metric not in METRICS:
            hint = did_you_mean(nearest(metric, METRICS), f"there are {', '.join(METRICS)}")
            raise ValueError(f"no metric {metric!r}; {hint}")
        output: OutputSpec | None = validation.data.get("output")
        if output is not None and output.kind not in METRICS[metric].outputs:
            fitting = [name for name, m in METRICS.items() if output.kind in m.outputs]
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
        """The file this task was read from."""
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
            return matrix_metric(self.metric.costs)
        values = self.output.form.json_targets
        metric = python_metric(self.metric.python or self.metric.cost or "", self.directory, values=values)
        return metric if self.metric.worst_usd is None else function_metric(metric, self.metric.worst_usd)

    @property
    def scale(self) -> Scale:
        """How the metric's numbers are said."""
        if isinstance(self.metric, str) or (self.metric.costs is None and self.metric.cost is None):
            return PLAIN
        scorer = self.scorer
        assert isinstance(scorer, CostMetric)
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
