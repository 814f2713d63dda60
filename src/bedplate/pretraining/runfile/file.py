"""The run file as pydantic models: data, model, optimizer, schedule, checkpoints, evaluation, hardware; which values
may change when a run resumes; and a first look at a file, before anything heavy is imported: typos and missing files
are reported at once. What only a model or a text can tell is found later."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from bedplate.core.config import Strict, load_config
from bedplate.core.errors import BedplateError, ConfigError, DataError, UsageError
from bedplate.core.json import differences
from bedplate.data.corpus.recipe import load_recipe
from bedplate.data.corpus.requirements import check_installed
from bedplate.data.corpus.shards import read_manifest
from bedplate.data.documents import TEXT_FILES
from bedplate.data.mixture import MixtureConfig
from bedplate.data.sources import check_source
from bedplate.economics.hardware.devices import find_device
from bedplate.economics.model.named_model import resolve
from bedplate.evaluation.suites import need_suite
from bedplate.hub.pull import check_source as check_base
from bedplate.models.families import find_family
from bedplate.models.specs.dial import SIZES
from bedplate.models.specs.split import Recompute
from bedplate.training.config import DtypeChoice, Fraction, ParallelConfig, RouterConfig, ScheduleName, check_schedule
from bedplate.training.objectives import check_objective, objective_of

if TYPE_CHECKING:
    from bedplate.training.objectives.objective import TextObjective

Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Positive = Annotated[float, Field(gt=0)]
STDLIB = "stdlib"
"""The source of texts that is this Python's own library."""


class TextsPart(Strict):
    """A source of documents: `stdlib` (modules of the running Python), a directory of text files, a .txt or .md file, a
    data set of the catalogue, or a .jsonl, .csv, .tsv or .parquet file with the text in `column`.

    tokens: maximum to learn from. lines: documents of so many lines each (a single long file has else no part to hold
    out). general: other text, replayed to measure forgetting.
    """

    name: Name
    source: Annotated[str, Field(min_length=1)]
    column: str = "text"
    tokens: Count | None = None
    lines: Annotated[int, Field(ge=1)] | None = None
    general: bool = False
    licence: str | None = None


class TokenizerPart(Strict):
    """A byte-level BPE of `vocab_size` ids that is trained on the text (257: bytes and the token that ends a text), or
    the tokenizer of a base or of a directory (`source`)."""

    vocab_size: Annotated[int, Field(ge=257, le=1_000_000)] | None = None
    source: str | None = None

    @model_validator(mode="after")
    def _check_exclusive(self) -> Self:
        if (self.vocab_size is None) == (self.source is None):
            raise ValueError("give `vocab_size`, to train a tokenizer, or `source`, to take one; one of them")
        return self


class DataPart(Strict):
    """A built corpus directory, the recipe to build one from, or plain texts (`sources`).

    held_out: share of documents held out; a corpus has its own. weights: by a text's name, how often one pass reads it
    (0: evaluated only). mixture: how a corpus's sources are mixed. general: sources of a corpus on which forgetting is
    measured.
    """

    corpus: str | None = None
    recipe: str | None = None
    sources: tuple[TextsPart, ...] = ()
    tokenizer: TokenizerPart | None = None
    held_out: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict[str, float])
    mixture: MixtureConfig | None = None
    general: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_exclusive(self) -> Self:
        chosen = [name for name in ("corpus", "recipe", "sources") if getattr(self, name)]
        if len(chosen) != 1:
            problem = f"{' and '.join(chosen)} are given" if chosen else "none is given"
            raise ValueError(f"data is one of corpus, recipe and sources; {problem}")
        names = [source.name for source in self.sources]
        duplicate = next((name for name in names if names.count(name) > 1), None)
        if duplicate is not None:
            raise ValueError(f"two sources are called {duplicate!r}; give each its own name")
        unknown = next((name for name in self.weights if self.sources and name not in names), None)
        if unknown is not None:
            raise ValueError(f"`weights` names {unknown!r}, and the sources are {', '.join(names)}")
        if not self.sources and self.tokenizer:
            raise ValueError("a corpus has its own tokenizer; leave `tokenizer` out")
        if self.sources and (self.mixture or self.general):
            raise ValueError("`mixture` and `general` are of a corpus; texts have `weights`, and `general` each")
        if not self.sources and self.weights:
            raise ValueError("`weights` are of texts; a corpus has `mixture: {weights: …}`")
        return self


class ModelPart(Strict):
    """What is built. One of `size` or `params` (the dial), `preset`, or `config` (fields of the family's config.json).

    family: as which it is written, so that its own library loads it. context: tokens that it reads at most. tied: the
    head is the token table. fields: of config.json, over what the dial gives.
    """

    family: str = "llama"
    size: Literal["nano", "micro", "mini", "small", "medium", "large", "xl", "2.7b", "6.7b", "13b"] | None = None
    params: Count | None = None
    preset: str | None = None
    config: dict[str, Any] | None = None
    fields: dict[str, Any] = Field(default_factory=dict[str, Any])
    context: Annotated[int, Field(ge=2)] | None = None
    tied: bool = True

    @model_validator(mode="after")
    def _check_exclusive(self) -> Self:
        chosen = [name for name in ("size", "params", "preset", "config") if getattr(self, name) is not None]
        if len(chosen) != 1:
            problem = f"{' and '.join(chosen)} are given" if chosen else "none is given"
            raise ValueError(f"a model is one of size, params, preset and config; {problem}")
        if self.fields and chosen[0] in ("preset", "config"):
            raise ValueError(f"`fields` go over what the dial gives, not over {chosen[0]}")
        return self

    @property
    def asked_parameters(self) -> int | None:
        """What the dial is set to."""
        return self.params if self.size is None else round(SIZES[self.size])


class BatchPart(Strict):
    """tokens: of an optimizer step; None: DeepSeek LLM's fit. sequence: tokens of a row; None: the model's context.
    micro_tokens: that go through the model at once; memory grows with them, the gradient is the same."""

    tokens: Count | None = None
    sequence: Annotated[int, Field(ge=2)] | None = None
    micro_tokens: Count = 8192


class OptimizerPart(Strict):
    """learning_rate: the peak; None: DeepSeek LLM's fit, or 1e-4 from a base. settings: further fields of the training
    configuration, by their own names."""

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: Positive | None = None
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: Positive = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip: Positive | None = 1.0
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])


class SchedulePart(Strict):
    """warmup, decay: shares of all steps. final: the last learning rate over the peak."""

    name: ScheduleName = "wsd"
    warmup: Fraction = 0.02
    decay: Fraction = 0.2
    final: Fraction = 0.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_schedule(self.name, self.warmup, self.decay)
        return self


class CheckpointsPart(Strict):
    """every: share of the run after which it is saved and evaluated; seconds: it is saved, without more, after so many.

    bases: how many bases of the last such checkpoints are kept beside the final one; bases_every: those of every so
    manyth checkpoint are kept for good.
    """

    every: Annotated[float, Field(gt=0, le=1)] = 0.1
    seconds: Positive | None = 120.0
    bases: Annotated[int, Field(ge=0)] = 0
    bases_every: Annotated[int, Field(ge=1)] | None = None


def _known_suite(name: str) -> str:
    try:
        need_suite(name)
    except UsageError as error:
        raise ValueError(str(error)) from error
    return name


class EvaluationPart(Strict):
    """tokens: of each held-out text, so many that a checkpoint is judged on at most; end_tokens: the same at the end,
    by default all of them. prompts: what samples go on from. suites: skills that are scored at checkpoints; items: of
    each, at most. baselines: gzip, xz and a 5-gram model on the same held-out texts, at the end."""

    tokens: Count = 65_536
    end_tokens: Count | None = None
    prompts: tuple[str, ...] = ()
    sample_tokens: Annotated[int, Field(ge=1)] = 48
    suites: tuple[Annotated[str, AfterValidator(_known_suite)], ...] = ()
    items: Annotated[int, Field(ge=1)] = 60
    baselines: bool = True


class HardwarePart(Strict):
    """What a dry run counts with: a device of the table and how many; None: this machine."""

    device: str | None = None
    devices: Annotated[int, Field(ge=1)] = 1
    usd_per_hour: Positive | None = None
    precision: Literal["bf16", "fp16", "fp8", "tf32", "fp32"] = "bf16"


class RunFile(Strict):
    """One run. base: the base that training goes on from, with its tokenizer, instead of `model`. objective: a row of
    OBJECTIVES; objective_settings: its own. tokens: that are trained on; None: 20 a parameter, or the texts once from
    a base. parallel: how the processes of the run share it. dtype: what it computes in; recompute: what is made again
    to save memory; router: of models with experts."""

    run: Name
    data: DataPart
    model: ModelPart | None = None
    base: str | None = None
    objective: str = "next_token"
    objective_settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    tokens: Count | None = None
    batch: BatchPart = BatchPart()
    optimizer: OptimizerPart = OptimizerPart()
    schedule: SchedulePart = SchedulePart()
    checkpoints: CheckpointsPart = CheckpointsPart()
    evaluation: EvaluationPart = EvaluationPart()
    hardware: HardwarePart = HardwarePart()
    parallel: ParallelConfig = ParallelConfig()
    router: RouterConfig = RouterConfig()
    dtype: DtypeChoice = "auto"
    recompute: Recompute = "none"
    log_steps: Annotated[int, Field(ge=1)] = 10
    seed: Annotated[int, Field(ge=0)] = 0

    _directory: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _check_exclusive(self) -> Self:
        if (self.model is None) == (self.base is None):
            raise ValueError("give `model`, to build one, or `base`, to continue from one; one of them")
        if self.base is not None and self.data.tokenizer is not None:
            raise ValueError("a base has its own tokenizer; leave data.tokenizer out")
        if self.base is None and self.data.sources and self.data.tokenizer is None:
            raise ValueError("texts need `data.tokenizer`: {vocab_size: 8192}, or {source: a base's name}")
        return self

    def made_objective(self, modules: int = 0) -> TextObjective:
        """What the run minimises. modules: of the model, that predict further tokens. ConfigError for settings that the
        objective does not have."""
        return objective_of(self.objective, self.objective_settings, modules)

    @property
    def directory(self) -> Path:
        """Where the file lies: paths in it are relative to that."""
        return self._directory

    def lies_in(self, directory: Path) -> None:
        """Says so, once the file was read."""
        self._directory = directory

    def place(self, path: str) -> Path:
        return self._directory / Path(path).expanduser()

    @property
    def base_source(self) -> str:
        """What `base` names: a path of the file where there is one, else as it is written."""
        assert self.base is not None
        place = self.place(self.base)
        return str(place) if "/" in self.base and place.exists() else self.base


def read_run(path: Path | str, overrides: Sequence[str] = ()) -> RunFile:
    """Reads a run file without looking at what its objective needs, which loads torch. ConfigError as `load_run`."""
    run = load_config(path, RunFile, overrides)
    run.lies_in(Path(path).parent)
    return run


def load_run(path: Path | str, overrides: Sequence[str] = ()) -> RunFile:
    """Reads a run file. ConfigError names what is wrong with it, where, and the nearest valid key."""
    run = read_run(path, overrides)
    try:
        run.made_objective()
    except ConfigError as error:
        raise ConfigError(f"{path}: objective: {error}") from error
    return run


MAY = ("run", "checkpoints", "evaluation", "hardware", "parallel", "log_steps", "recompute")
"""What decides no weight: names, how often is saved and looked, what is counted with, who does which part."""


def changes(before: RunFile, after: RunFile) -> tuple[list[str], list[str]]:
    """The values in which two files differ, each with both: those that decide weights, and those that may change."""
    changed = differences(before.model_dump(mode="json"), after.model_dump(mode="json"))
    allowed = [text for key, text in changed.items() if key.partition(".")[0] in MAY]
    return [text for text in changed.values() if text not in allowed], allowed


def look(path: Path | str, overrides: Sequence[str] = (), *, reads_data: bool = True) -> RunFile:
    """Reads the run file and checks what can be checked without a model. reads_data: its data must exist.

    Raises ConfigError for the file or overrides, DataError for missing texts, corpus or recipe, UnknownItemError for an
    unknown base, UsageError for an unknown preset or device, UnsupportedModelError for an unknown family.
    """
    run = read_run(path, overrides)
    try:
        check_objective(run.objective)
    except ConfigError as error:
        raise ConfigError(f"{path}: objective: {error}") from error
    if reads_data:
        _check_data(run)
    if run.base is not None:
        check_base(run.base_source)
    if run.model is not None:
        find_family("hf", run.model.family, f"{path}: model.family")
        if run.model.preset is not None:
            resolve(run.model.preset)
    if run.hardware.device is not None:
        find_device(run.hardware.device)
    return run


def _check_data(run: RunFile) -> None:
    data = run.data
    for source in data.sources:
        try:
            _check_text(source, run.directory)
        except BedplateError as error:
            raise DataError(f"data.sources, {source.name}: {error}") from error
    if data.corpus is not None:
        read_manifest(run.place(data.corpus))
    if data.recipe is not None:
        place = run.place(data.recipe)
        if not place.is_file():
            raise DataError(f"data.recipe: {place} does not exist")
        check_installed(load_recipe(place))
    if data.tokenizer is not None and data.tokenizer.source is not None:
        place = run.place(data.tokenizer.source)
        if not place.is_dir():
            check_base(data.tokenizer.source)


def _check_text(source: TextsPart, directory: Path) -> None:
    """DataError for a source that `run.data.read_source` cannot read."""
    if source.source == STDLIB:
        return
    place = directory / Path(source.source).expanduser()
    if place.is_dir() or (place.suffix.lower() in TEXT_FILES and place.is_file()):
        return
    if place.suffix.lower() in TEXT_FILES:
        raise DataError(f"{place} does not exist")
    check_source(source.source, directory)
