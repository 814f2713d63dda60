"""The bases of one task: each is loaded once and they compute in turns; where memory is short, those that wait leave it
and are loaded again when they are asked."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bedplate.evaluation.task import Task
from bedplate.inference.execution.plan import QUANTISED, Weights
from bedplate.inference.forward.compute_lock import ComputeLock
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.predict.opening import KERNELS, OpenOptions, open_base
from bedplate.models.checkpoints.checkpoint import locate
from bedplate.models.checkpoints.identity import Identity
from bedplate.models.device_memory import free_on
from bedplate.models.precision import dtype_name, resolve_device
from bedplate.skins.skin import EvaluatedWith

ROOM = 3
"""Free memory that a base wants, in its own sizes: itself, what tuning keeps beside it, and some air."""


AS_TRAINED = OpenOptions(quantised=False)
"""Rungs train on the base and read its inner states, so a checkpoint's own integers are dequantised where nothing else
is asked for."""


def source_of(base: str, task: Task) -> str:
    """A base as it can be found again from anywhere: paths relative to the task file or here become absolute."""
    for place in (Path(base).expanduser(), task.directory / base):
        if place.exists():
            return str(place.absolute())
    return base


@dataclass(frozen=True)
class BaseFacts:
    """What is known of a base once it was loaded. name: as the task file gives it; architecture: "decoder" or
    "encoder"; has_encoder: whether it reads apart from what it writes; weights, kernel: as its engine has them; size:
    bytes of its parameters."""

    name: str
    short: str
    architecture: str
    has_encoder: bool
    family: str
    identity: Identity
    path: Path
    dtype: str
    weights: str
    kernel: str
    size: int

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.architecture,
            "bytes": self.size,
            **{key: getattr(self, key) for key in ("family", "dtype", "weights", "kernel")},
            **{key: getattr(self.identity, key) for key in ("weights_id", "tokenizer_id", "template_id")},
        }


class TaskBase:
    """One base of a task. base_name: as the task file names it; suffix: what tells its candidates from the first base's
    ("" for the first). It is in memory from the first use of `model` until `close`."""

    def __init__(self, base_name: str, source: str, suffix: str, bases: Bases, load_options: OpenOptions) -> None:
        self.base_name, self.source, self.suffix = base_name, source, suffix
        self._load_options = load_options
        self.pin_count = 0
        """By how many that need it while others are loaded."""
        self._bases = bases
        self._model: LocalModel | None = None
        self._formats: dict[str, LocalModel] = {}
        """On engines of quantised weights, which share the base's own module."""
        self._facts: BaseFacts | None = None

    @property
    def model(self) -> LocalModel:
        """The base on its engine, loaded if it is not. HubError, CheckpointError."""
        if self._model is None:
            self._bases.make_room(self)
            opened = open_base(self.source, self._load_options)
            opened.base.need_tokenizer()
            self._model = opened.model(self._bases.compute)
            self._facts = self._facts or _facts(self.base_name, self._model)
        self._bases.used(self)
        return self._model

    @property
    def facts(self) -> BaseFacts:
        """What is known of it; loads it the first time."""
        if self._facts is None:
            _ = self.model
        assert self._facts is not None
        return self._facts

    @property
    def loaded(self) -> bool:
        return self._model is not None

    @property
    def needed_bytes(self) -> int:
        """Bytes that it takes: measured, or from its files before it was first loaded."""
        if self._facts is not None:
            return self._facts.size
        path = locate(self.source)
        return sum(file.stat().st_size for file in ([path] if path.is_file() else path.glob("*.safetensors")))

    def child(self, directory: Path, *, fresh: bool = False) -> TaskBase:
        """The base that a rung made from this one; it takes its turns in memory with the others. fresh: what lies there
        was written anew."""
        return self._bases.child(self, directory, fresh)

    def in_format(self, weights: Weights) -> LocalModel:
        """The same base on an engine of its own, with weights in this format. UsageError where it cannot run in it."""
        model = self.model
        if weights not in self._formats:
            self._bases.make_room(self)
            self._formats[weights] = LocalModel(model.base, weights=weights, compute=self._bases.compute)
        return self._formats[weights]

    def answer_in(self, weights: Weights) -> None:
        """Has it answer in this format from now on, as though it had been opened with these weights. UsageError."""
        facts, model = self.facts, self.in_format(weights)
        del self._formats[weights]
        self.close()
        self._model, self._facts = model, replace(facts, weights=model.engine.weights, kernel=model.engine.kernel)
        self._load_options = replace(self._load_options, dtype=facts.dtype, weights=weights)

    @property
    def has_format(self) -> bool:
        """Whether an engine of quantised weights is open."""
        return bool(self._formats)

    def as_judged(self, judged: EvaluatedWith | None) -> LocalModel:
        """The base on the engine that a skin was judged on, where that is one of a quantised format."""
        model = self.model
        if judged is None or judged.weights == model.engine.weights or judged.weights not in QUANTISED:
            return model
        return self.in_format(QUANTISED[judged.weights])

    def close_formats(self, but: Collection[str] = ()) -> None:
        """Closes the engines of quantised weights, but for these formats."""
        for weights in [fmt for fmt in self._formats if fmt not in but]:
            self._formats.pop(weights).close()

    def close(self) -> None:
        self.close_formats()
        model, self._model = self._model, None
        if model is not None:
            model.close()


class Bases:
    """The bases of a task in the task file's order; the first is the task's own, whose candidates bear no suffix."""

    def __init__(self, names: Sequence[str], sources: Sequence[str], load_options: OpenOptions = AS_TRAINED) -> None:
        self.compute = ComputeLock()
        self._device = resolve_device("auto")
        """Where they are loaded."""
        suffixes = suffixes_of(names)
        self.all = [TaskBase(*naming, self, load_options) for naming in zip(names, sources, suffixes, strict=True)]
        self._children: dict[str, TaskBase] = {}
        self._order: list[TaskBase] = []
        """In memory, the one that was used last at the end."""

    def child(self, parent: TaskBase, directory: Path, fresh: bool) -> TaskBase:
        source = str(directory.absolute())
        if fresh and source in self._children:
            self._children.pop(source).close()
        if source not in self._children:
            facts = parent.facts  # it is held as its parent, so that what differs is what was trained
            options = OpenOptions(facts.dtype, QUANTISED.get(facts.weights), KERNELS[facts.kernel], quantised=False)
            self._children[source] = TaskBase(source, source, parent.suffix, self, options)
        return self._children[source]

    def used(self, base: TaskBase) -> None:
        self._order = [*(resident for resident in self._order if resident is not base), base]

    def make_room(self, base: TaskBase) -> None:
        """Closes those that were used longest ago until `base` has room, or none is left."""
        others = [resident for resident in self._order if resident is not base]
        for idle in [resident for resident in others if resident.loaded and not resident.pin_count]:
            free = free_on(self._device)
            if free is None or free >= ROOM * base.needed_bytes:
                return
            idle.close()

    def close(self) -> None:
        for base in (*self.all, *self._children.values()):
            base.close()


def suffixes_of(names: Sequence[str], reserved: Sequence[str] = ()) -> list[str]:
    """What is put behind a candidate's name, for each of several bases or endpoints: nothing for the first, then their
    own names, short and without characters that a file or a page would trip over; equal ones, and those that are
    `reserved`, are numbered."""
    suffixes: list[str] = []
    for number, name in enumerate(names):
        last = name.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")
        short = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-.") or f"base-{number + 1}"
        count, unique = 2, short
        while unique in (*suffixes, *reserved):
            unique, count = f"{short}-{count}", count + 1
        suffixes.append(unique)
    return ["", *suffixes[1:]] if names else []


def _facts(base_name: str, model: LocalModel) -> BaseFacts:
    base, engine = model.base, model.engine
    return BaseFacts(
        base_name,
        base.name,
        "decoder" if base.writes else "encoder",
        base.has_encoder,
        base.family.name,
        base.identity,
        base.path,
        dtype_name(base.dtype),
        engine.weights,
        engine.kernel,
        sum(p.numel() * p.element_size() for p in base.model.parameters()),
    )
