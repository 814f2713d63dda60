"""What every rung works with: the task's train and valid rows, the base on its engine, the time that is left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bedplate import __version__
from bedplate.adaptation.spec import AdaptSpec
from bedplate.adapters.soft_prompt import SoftPrompt
from bedplate.core.files import sha256_bytes
from bedplate.evaluation.examples import Example
from bedplate.evaluation.task import Task
from bedplate.inference.local import LocalModel
from bedplate.inference.predict import Predictor
from bedplate.models.checkpoints.base import load_base
from bedplate.models.precision import dtype_name
from bedplate.skins.neighbours import Neighbours
from bedplate.skins.output import LabelOutput
from bedplate.skins.phrasings import default_continuations, default_prompt
from bedplate.skins.prompt import Demonstration, Prompt
from bedplate.skins.skin import BaseReference, EvaluatedWith, InputField, Kind, LoraPart, ProbePart, Provenance, Skin

_PACE_BATCH, _PACE_CALLS = 64, 12


def source_of(base: str, task: Task) -> str:
    """A base as it can be found again from anywhere: paths relative to the task file or here become absolute."""
    for place in (Path(base).expanduser(), task.directory / base):
        if place.exists():
            return str(place.absolute())
    return base


class Clock:
    """Wall-clock time of the ladder; `seconds` None means no limit. Time that finished rungs took before counts."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._start = time.monotonic()
        self._before = 0.0

    def add(self, seconds: float) -> None:
        """Count the time that a reused rung had taken in an earlier run."""
        self._before += seconds

    @property
    def used(self) -> float:
        return time.monotonic() - self._start + self._before

    @property
    def left(self) -> float:
        """Seconds until the budget is spent; infinite without one."""
        return float("inf") if self.seconds is None else self.seconds - self.used


@dataclass(frozen=True)
class Pace:
    """Measured on this machine, base and task. token: seconds per prompt token in batches; call: seconds of one call
    alone; tokens: mean prompt tokens of a row (without demonstrations)."""

    token: float
    call: float
    tokens: float

    def rows(self, n: float) -> float:
        """Expected seconds for `n` rows in batches."""
        return n * self.tokens * self.token


@dataclass
class Context:
    """Test is not in here: no rung can see it. `test_n` is only a count, to leave time for it."""

    task: Task
    spec: AdaptSpec
    source: str
    model: LocalModel
    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    hashes: Mapping[str, str]
    test_n: int
    out: Path
    clock: Clock
    seed: int = 0
    prompts: dict[str, tuple[Prompt, LabelOutput]] = field(default_factory=dict[str, tuple[Prompt, LabelOutput]])
    """Rung → the prompt it chose; later rungs build on the zero-shot one."""

    embedders: dict[str, LocalModel] = field(default_factory=dict[str, LocalModel])
    """Further bases that only embed, by source, loaded when a rung first asks for them."""

    @property
    def labels(self) -> tuple[str, ...]:
        return self.task.labels

    @property
    def fields(self) -> list[str]:
        return list(self.task.inputs)

    def ordered(self, examples: Sequence[Example], purpose: str) -> list[Example]:
        """The examples in an order that seed and purpose decide, labels taking turns in proportion."""
        drawn = self.shuffled(examples, purpose)
        seen: dict[str, int] = {}
        total = {label: sum(e.target == label for e in drawn) for label in self.labels}
        place: dict[str, float] = {}
        for example in drawn:
            seen[example.target] = seen.get(example.target, 0) + 1
            place[example.id] = (seen[example.target] - 0.5) / total[example.target]
        return sorted(drawn, key=lambda e: (place[e.id], self.labels.index(e.target)))

    def shuffled(self, examples: Sequence[Example], purpose: str) -> list[Example]:
        """The examples in an order that seed and purpose decide, whatever their labels."""
        return sorted(examples, key=lambda e: sha256_bytes(f"{self.seed}/{purpose}/{e.row_hash}".encode()))

    def default_prompt(self) -> tuple[Prompt, LabelOutput]:
        """The prompt that zero-shot chose on valid, or the plain form where that rung did not run."""
        if "zero_shot" in self.prompts:
            return self.prompts["zero_shot"]
        prompt = default_prompt(self.task.task, self.task.instructions, self.fields, self.labels)
        return prompt, LabelOutput(labels=self.labels, continuations=default_continuations(self.labels))

    @cached_property
    def pace(self) -> Pace:
        """Time a batch and a few single calls of the plain prompt; once."""
        prompt, output = self.default_prompt()
        predictor = self.model.predictor(self.skin("pace", "prompt", prompt, output))
        try:
            rows = [e.inputs for e in self.ordered(self.valid, "pace")]
            predictor.predict(rows[:2])
            batches = [predictor.predict(rows[i : i + _PACE_BATCH]) for i in (0, _PACE_BATCH) if rows[i:]]
            calls = sorted(p.seconds for p in predictor.predict(rows[:_PACE_CALLS], one_by_one=True))
        finally:
            predictor.close()
        every = [p for batch in batches for p in batch]
        tokens = max(1.0, sum(p.prompt_tokens - p.cached_tokens for p in every) / len(every))
        return Pace(min(batch[0].seconds for batch in batches) / tokens, calls[len(calls) // 2], tokens)

    @property
    def test_reserve(self) -> float:
        """Seconds kept for test, one call at a time (two nominees and zero-shot, as is usual), and for the report."""
        return 3 * self.test_n * self.pace.call * 1.1 + 5.0

    @property
    def left(self) -> float:
        """Seconds that rungs may still use."""
        return self.clock.left - self.test_reserve

    def skin(
        self,
        rung: str,
        kind: Kind,
        prompt: Prompt,
        output: LabelOutput,
        *,
        demonstrations: Sequence[Demonstration] = (),
        lora: LoraPart | None = None,
        probe: ProbePart | None = None,
        soft_prompt: SoftPrompt | None = None,
        neighbours: Neighbours | None = None,
        embedder: str | None = None,
        seed: int | None = None,
    ) -> Skin:
        """A skin of this task on this base, with its lineage. embedder: the source of the base that chooses its
        demonstrations, where it is another."""
        base = self.model.base
        bases = {"main": BaseReference.of(self.source, base.family.key[1], base.identity)}
        embedded_with = None
        if embedder is not None:
            second = self.embedder(embedder)
            bases["embedder"] = BaseReference.of(embedder, second.base.family.key[1], second.base.identity)
            embedded_with = EvaluatedWith(weights=second.engine.weights, kernel=second.engine.kernel)
        return Skin(
            name=f"{self.task.task}-{rung.replace('_', '-')}",
            kind=kind,
            bases=bases,
            inputs={name: InputField() for name in self.task.inputs},
            output=output,
            prompt=prompt,
            demonstrations=tuple(demonstrations),
            lora=lora,
            probe=probe,
            soft_prompt=soft_prompt,
            neighbours=neighbours,
            embedded_with=embedded_with,
            provenance=Provenance(
                task=self.task.task,
                rung=rung,
                data={k: v for k, v in self.hashes.items() if k.startswith("file:")},
                splits={k: v for k, v in self.hashes.items() if not k.startswith("file:")},
                seed=self.seed if seed is None else seed,
                code_version=__version__,
            ),
            evaluated_with=EvaluatedWith(weights=self.model.engine.weights, kernel=self.model.engine.kernel),
        )

    def embedder(self, source: str) -> LocalModel:
        """A base that only embeds, beside the main one; loaded once. HubError, CheckpointError."""
        if source not in self.embedders:
            base = load_base(source)
            base.need_tokenizer()
            self.embedders[source] = LocalModel(base)
        return self.embedders[source]

    def close(self) -> None:
        """Closes what was loaded beside the main base."""
        while self.embedders:
            self.embedders.popitem()[1].close()

    def predictor(self, skin: Skin) -> Predictor:
        second = None if skin.embedder is None else self.embedder(skin.embedder.name)
        return self.model.predictor(skin, embedder=second)

    def settings_of(self, rung: str) -> Any:
        """What the task file says for one rung alone, as JSON; None for the others."""
        if rung == "own_prompt" and self.spec.prompt is not None:
            return self.spec.prompt.model_dump(mode="json")
        return None

    def fingerprint(self) -> dict[str, Any]:
        """What every rung's outcome depends on, besides its own settings."""
        base, task = self.model.base, self.task
        return {
            "version": __version__,
            "task": [task.task, task.instructions, task.metric, task.output.model_dump(mode="json")],
            "inputs": {name: value.model_dump(mode="json") for name, value in task.inputs.items()},
            "splits": {k: v for k, v in self.hashes.items() if k in ("train", "valid")},
            "base": [base.identity.weights_id, base.identity.tokenizer_id, base.identity.template_id],
            "dtype": dtype_name(base.dtype),
            "weights": self.model.engine.weights,
            "kernel": self.model.engine.kernel,
            "seed": self.seed,
            "budget_seconds": self.clock.seconds,
            "max_prompt_tokens": self.spec.budget.max_prompt_tokens,
        }
