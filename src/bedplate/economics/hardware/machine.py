"""What was measured of one machine: its memory, its products, and its engines' steps, as a file (`machine.json`).

The file is written by `bedplate plan calibrate` and read by whoever predicts this machine's latency or price. A step of
an engine is a sum of parts, each with its own measured cost:

    seconds = blocks(tokens of the step) + head(rows whose next token is chosen)
              + key_seconds · keys that sequences read + pair_seconds · query-key pairs of prompts
              + copy_seconds · cached tokens that beginning prompts were given
              + start_seconds · prompts that were finished + end_seconds · generations that ended
              + adapter_seconds · different adapters + adapter_token_seconds · tokens under adapters

`blocks` and `head` are curves through measured points, straight between them (a step of few tokens waits for the
weights, one of many for the products, and the way from one to the other differs by kernel); beyond the last point the
time grows with the count. A model of another size on the same kernel is predicted by the ratios of its weights and of
its keys' features; that is extrapolation, and said to be.
"""

from __future__ import annotations

import bisect
import datetime
import json
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import pydantic
from pydantic import Field, model_validator

from bedplate.core.config import Strict, first_problem
from bedplate.core.errors import ConfigError, UsageError
from bedplate.core.files import atomic_write, bedplate_home, read_text

VERSION = 1

Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]


class SecondsCurve(Strict):
    """Seconds at some counts, which rise; nothing takes nothing. Three rows can take longer than four: a kernel has its
    own favourite sizes."""

    counts: Annotated[tuple[Count, ...], Field(min_length=1)]
    seconds: tuple[Seconds, ...]

    @model_validator(mode="after")
    def _rising(self) -> SecondsCurve:
        if len(self.counts) != len(self.seconds):
            raise ValueError(f"there are {len(self.counts)} counts, but {len(self.seconds)} times")
        if any(a >= b for a, b in zip(self.counts, self.counts[1:], strict=False)):
            raise ValueError("the counts must rise")
        return self

    def at(self, count: float) -> float:
        """Seconds for so many."""
        if count <= 0:
            return 0.0
        counts, seconds = self.counts, self.seconds
        if count <= counts[0]:
            return seconds[0]
        if count > counts[-1]:
            return seconds[-1] * count / counts[-1]
        i = bisect.bisect_left(counts, count)
        share = (count - counts[i - 1]) / (counts[i] - counts[i - 1])
        return seconds[i - 1] + share * (seconds[i] - seconds[i - 1])


class StepShape(Strict):
    """The sizes of a model that decide a step's time. Weights are counts; features are per token and over all layers.

    blocks: weights in the layers' products. head: weights of the output head. key_features: of keys and values that a
    token leaves in the cache. query_features: of all query heads.
    """

    blocks: Count
    head: Count
    key_features: Count
    query_features: Count


class StepSpread(Strict):
    """One measured kind of step (the fields of `Load`) beside what the fit says of it: how good the fit is."""

    load: dict[str, float]
    seconds: Seconds
    fitted: Seconds


class ServerSpeed(Strict):
    """What a server adds to its engine, the answers streamed: to a call beside all steps, to the step that ends its
    prompt, to each step of running generations, and to each of their rows (the engine's own threads wait for the cores
    that reading calls and writing to clients take).

    pace: what the engine's own part of a step takes there, over what it took when it was measured alone.
    """

    pace: Annotated[float, Field(gt=0)] = 1.0

    call_seconds: Seconds
    start_seconds: Seconds = 0.0
    step_seconds: Seconds
    row_seconds: Seconds


class EngineSpeed(Strict):
    """One engine on this machine: a base, what its products read, what computed."""

    base: str
    shape: StepShape
    weights: str
    kernel: str
    threads: Count
    measured_at: datetime.date
    blocks: SecondsCurve
    head: SecondsCurve
    key_seconds: Seconds
    pair_seconds: Seconds
    copy_seconds: Seconds = 0.0
    start_seconds: Seconds = 0.0
    end_seconds: Seconds = 0.0
    adapter_seconds: Seconds = 0.0
    adapter_token_seconds: Seconds = 0.0
    adapter_rank: Annotated[int, Field(ge=0)] = 0
    """Rank of the adapters of all linears that adapter_seconds were measured with; 0 where none were."""
    server: ServerSpeed | None = None
    measured: tuple[StepSpread, ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """What a new measurement of the same replaces the old one by."""
        return self.base, self.weights, self.kernel, self.threads


class TuningSpeed(Strict):
    """LoRA training steps of one base: seconds = fixed + tokens · token_seconds + pairs · pair_seconds
    + targets · target_seconds."""

    base: str
    shape: StepShape
    dtype: str
    rank: Count
    threads: Count
    measured_at: datetime.date
    fixed_seconds: Seconds
    token_seconds: Seconds
    pair_seconds: Seconds
    target_seconds: Seconds

    @property
    def key(self) -> tuple[object, ...]:
        return self.base, self.dtype, self.rank, self.threads

    def seconds(self, tokens: float, pairs: float, targets: float) -> float:
        """One optimizer step over so many tokens, query-key pairs and tokens to learn."""
        step = self.fixed_seconds + tokens * self.token_seconds
        return step + pairs * self.pair_seconds + targets * self.target_seconds


class MeasuredMachine(Strict):
    """A measured machine. flops_per_second: of large matrix products, by dtype."""

    version: Literal[1] = VERSION
    cpu: str
    threads: Count
    memory_bytes: Count
    measured_at: datetime.date
    software: dict[str, str] = Field(default_factory=dict)
    bandwidth_bytes_per_second: Rate
    flops_per_second: dict[str, Rate]
    engines: tuple[EngineSpeed, ...] = ()
    tuning: tuple[TuningSpeed, ...] = ()

    def engine(self, base: str, weights: str | None = None) -> EngineSpeed:
        """The measured engine of a base (the last measured where `weights` is None). UsageError if there is none."""
        engines = [speed for speed in self.engines if speed.base == base and weights in {None, speed.weights}]
        if not engines:
            measured = ", ".join(f"{speed.base} ({speed.weights})" for speed in self.engines) or "none"
            raise UsageError(
                f"{base}{f' in {weights}' if weights else ''} was not measured on this machine (measured: {measured}); "
                f"run: bedplate plan calibrate {base}{f' --weights {weights}' if weights else ''}, or name a device of "
                "the table that serves it, such as --device h100"
            )
        return engines[-1]

    def with_speed(self, speed: EngineSpeed | TuningSpeed) -> MeasuredMachine:
        """A copy with one engine or tuning added, or measured anew."""
        name = "engines" if isinstance(speed, EngineSpeed) else "tuning"
        others = [other for other in getattr(self, name) if other.key != speed.key]
        return self.model_copy(update={name: (*others, speed)})


class Load(NamedTuple):
    """What one step of an engine has to do.

    tokens: through the layers. rows: whose next token is chosen. keys: that sequences read, each once for all of its
    tokens in the step. pairs: of queries and keys, in prompts. adapters: different ones. copied: cached tokens given to
    prompts that begin. started: prompts that it finishes. ended: generations that it ends.
    """

    tokens: int
    rows: int
    keys: float = 0.0
    pairs: float = 0.0
    copied: int = 0
    started: int = 0
    ended: int = 0
    adapters: int = 0
    adapted_tokens: int = 0


def step_seconds(speed: EngineSpeed, load: Load, shape: StepShape | None = None) -> float:
    """How long one step takes; with `shape`, of another model on the same kernel."""
    blocks, head, keys, queries = (
        1.0 if shape is None else getattr(shape, name) / getattr(speed.shape, name)
        for name in ("blocks", "head", "key_features", "query_features")
    )
    return (
        speed.blocks.at(load.tokens) * blocks
        + speed.head.at(load.rows) * head
        # A key is read once for all query heads that share it; a prompt computes each head's products.
        + (speed.key_seconds * load.keys + speed.copy_seconds * load.copied) * keys
        + speed.pair_seconds * load.pairs * queries
        + speed.start_seconds * load.started
        + speed.end_seconds * load.ended
        + speed.adapter_seconds * load.adapters * blocks
        + speed.adapter_token_seconds * load.adapted_tokens * blocks
    )


def served_seconds(server: ServerSpeed, load: Load, alone: float) -> float:
    """What a step takes in a server that takes `alone` seconds in an engine alone."""
    engine = server.pace * alone
    if not load.rows:
        return engine
    return engine + server.step_seconds + server.row_seconds * load.rows + server.start_seconds * load.started


def machine_file() -> Path:
    """Where this machine's measurements lie."""
    return bedplate_home() / "machine" / "machine.json"


def read_machine(path: Path | None = None) -> MeasuredMachine:
    """The measured machine. UsageError where nothing was measured yet, ConfigError for a damaged file."""
    file_path = machine_file() if path is None else path
    if not file_path.exists():
        raise UsageError(
            f"{file_path}: this machine was not measured yet; run: bedplate plan calibrate BASE, or name a device of "
            "the table that serves it, such as --device h100"
        )
    try:
        return MeasuredMachine.model_validate_json(read_text(file_path))
    except pydantic.ValidationError as error:
        advice = f"measure again: bedplate plan calibrate --out {file_path}"
        raise ConfigError(f"{file_path}: {first_problem(error)}; {advice}") from error


def write_machine(machine: MeasuredMachine, path: Path | None = None) -> Path:
    """Keeps it; returns where."""
    file_path = machine_file() if path is None else path
    atomic_write(file_path, json.dumps(machine.model_dump(mode="json"), indent=2) + "\n")
    return file_path
