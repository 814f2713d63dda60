"""The `adapt` section of a task file: which base, which bar, which budget."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field, field_validator, model_validator

from bedplate.adaptation.task import adapt_parts
from bedplate.adaptation.task.rung_table import check_rungs
from bedplate.adaptation.task.target_spec import TargetSpec
from bedplate.core.config import Strict
from bedplate.core.errors import BedplateError, ConfigError
from bedplate.core.files import read_text
from bedplate.evaluation.task import Task
from bedplate.inference.execution.names import Kernel, Weights
from bedplate.skins.phrasings import default_continuations
from bedplate.skins.prompt import Format, Prompt

if TYPE_CHECKING:
    from bedplate.inference.predict.opening import OpenOptions

_LATER_FIELDS = ("traffic", "own_prompt")

Positive = Annotated[float, Field(gt=0)]


class BudgetSpec(Strict):
    """What a skin may cost. `train_minutes` is the wall-clock time that the whole ladder may take, `train_usd` what it
    may cost: this machine's hours and what endpoints charge. `p95_calls`: single calls of each nominee that p95 is
    judged by; None for what is likely to do."""

    p95_ms: Positive | None = None
    p95_calls: Annotated[int, Field(ge=1)] | None = None
    usd_per_1k_calls: Positive | None = None
    train_minutes: Positive | None = None
    train_usd: Positive | None = None
    max_prompt_tokens: Annotated[int, Field(ge=1)] | None = None


class MachineSpec(Strict):
    """What an hour of this machine costs, and when that was so."""

    usd_per_hour: Annotated[float, Field(ge=0)]
    as_of: datetime.date


class OwnPrompt(Strict):
    """The team's own prompt: a jinja `template` over the inputs, or the `file` that holds it (beside the task file).

    A text alone is a plain template. chat: the template is the user's message, after `system` if there is one.
    """

    template: str | None = None
    file: str | None = None
    format: Format = "plain"
    system: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _text(cls, values: Any) -> Any:
        return {"template": values} if isinstance(values, str) else values

    @model_validator(mode="after")
    def _template_or_file(self) -> OwnPrompt:
        if (self.template is None) == (self.file is None):
            raise ValueError("give either a `template` or a `file`")
        return self

    def resolved(self, task: Task) -> OwnPrompt:
        """The same with the file's text as its template, rendered once to see that it can be. ConfigError."""
        try:
            text = self.template if self.file is None else read_text(task.directory / Path(self.file).expanduser())
            rendered = self.model_copy(update={"template": text, "file": None})
            rendered.prompt.check(list(task.inputs))
            rendered.prompt.text(dict.fromkeys(task.inputs, "text"))
            if task.labels:
                rendered.prompt.check_continuations(default_continuations(task.labels, rendered.format))
        except BedplateError as error:
            hint = ""
            if self.template is not None and (task.directory / self.template[:200]).is_file():
                hint = f"; to read the file {self.template!r}, write prompt: {{file: {self.template}}}"
            raise ConfigError(f"{task.path}: adapt.prompt: {error.message}{hint}") from error
        return rendered

    @property
    def prompt(self) -> Prompt:
        """The prompt, once the file was read."""
        return Prompt(self.template or "", self.format, self.system)


Testing = Literal["holm", "best_first", "cheapest_first"]


class AdaptSpec(Strict):
    """How to climb the ladder. `rungs`: "auto" (all of them) or a list."""

    bases: Annotated[tuple[str, ...], Field(min_length=1)]
    target: TargetSpec
    testing: Testing = "holm"
    """How several nominees share the error: any may pass (Holm), or one after the other, each with the whole error,
    until the first that fails: the best on valid first, or the cheapest."""
    budget: BudgetSpec = BudgetSpec()
    machine: MachineSpec
    usd_per_label: Annotated[float, Field(ge=0)] | None = None
    """What a person is paid for labelling a row; said where labels are bought."""
    prompt: OwnPrompt | None = None
    embedders: Annotated[tuple[str, ...], Field(max_length=4), adapt_parts.distinct("an embedder")] = ()
    """Bases that choose demonstrations and passages; without any, the base itself does."""
    proposer: adapt_parts.ProposerSpec | None = None
    """Who writes instructions for the prompt search; without one, the base itself does."""
    documents: adapt_parts.DocumentsSpec | None = None
    """What the retrieval rung looks up passages in."""
    raw_text: adapt_parts.RawText | None = None
    hosted: tuple[adapt_parts.HostedSpec, ...] = ()
    """Remote models, as further candidates."""
    rungs: Literal["auto"] | tuple[str, ...] = "auto"
    train_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """What training computes in; "auto" is what a step of the base is measured to be fastest in here."""
    guards: adapt_parts.GuardsSpec = adapt_parts.GuardsSpec()
    formats: adapt_parts.FormatsSpec = adapt_parts.FormatsSpec()
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] | None = None
    """What the bases are loaded and trained in; by default the measured faster of what keeps their weights."""
    weights: Weights | None = None
    """What the engine's products read; by default weights in that dtype."""
    kernel: Kernel | None = None
    """What computes them; by default the measured faster."""

    @model_validator(mode="before")
    @classmethod
    def _later(cls, values: Any) -> Any:
        """Fields that the format has and this version lacks are refused by name, unless they ask for nothing."""
        if not isinstance(values, dict):
            return values
        fields = cast("dict[str, Any]", values)
        for name in _LATER_FIELDS:
            if fields.get(name):
                raise ValueError(f"`{name}` is not supported yet; take it out of the task file")
        return {key: value for key, value in fields.items() if key not in _LATER_FIELDS}

    @field_validator("rungs")
    @classmethod
    def _rungs(cls, rungs: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not isinstance(rungs, str):
            check_rungs(rungs)
        return rungs

    @field_validator("bases")
    @classmethod
    def _bases(cls, bases: tuple[str, ...]) -> tuple[str, ...]:
        for base in bases:
            if re.match(r"^[a-z]+://", base):
                raise ValueError(f"{base!r} is an address; remote models are named under `adapt.hosted`")
            if bases.count(base) > 1:
                raise ValueError(f"the base {base!r} is named twice")
        return bases

    @field_validator("hosted")
    @classmethod
    def _hosted(cls, hosted: tuple[adapt_parts.HostedSpec, ...]) -> tuple[adapt_parts.HostedSpec, ...]:
        names = [endpoint.name for endpoint in hosted]
        if len(set(names)) < len(names):
            raise ValueError(f"two endpoints have one name ({', '.join(names)}); name each its own")
        return hosted

    def opening(self, task: Task) -> OpenOptions:
        from bedplate.inference.predict.opening import OpenOptions  # a task file is read without torch

        return OpenOptions(
            self.dtype, self.weights, self.kernel, "score" if task.labels else "generate", quantised=False
        )

    def includes(self, rung: str) -> bool:
        return self.rungs == "auto" or rung in self.rungs
