"""What every rung works with: the task's train and valid rows, the base on its engine, the time that is left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bedplate.adaptation.context import throughput as speed
from bedplate.adaptation.context.backbone import Backbone, TimedRows, backbone_of
from bedplate.adaptation.context.bases import TaskBase
from bedplate.adaptation.context.clock import JUDGED, Clock, seconds_on_test
from bedplate.adaptation.context.outcome import SLOW, Climbed, OutOfTime, RungOutcome
from bedplate.adaptation.task.adapt_parts import HostedSpec
from bedplate.adaptation.task.parent import Parent
from bedplate.adaptation.task.spec import AdaptSpec
from bedplate.adaptation.task.task_prompt import AnswerLengths, task_prompt
from bedplate.core.executor import Executor
from bedplate.core.files import sha256_bytes
from bedplate.core.statistics.multiplicity import spent_alpha
from bedplate.core.statistics.noninferiority import units_needed
from bedplate.core.statistics.proportions import values_needed
from bedplate.core.statistics.unequal import enough_groups
from bedplate.core.values import Values
from bedplate.core.version import __version__
from bedplate.data.documents import Documents, read_whole_documents
from bedplate.data.splits import SplitRecord, split_hash
from bedplate.evaluation.examples import Example
from bedplate.evaluation.task import Task
from bedplate.inference.predict.local import LocalModel
from bedplate.inference.predict.opening import OpenOptions, evaluated_now, open_base
from bedplate.inference.predict.predictor import Predictor
from bedplate.skins.output import Output
from bedplate.skins.prompt import Format, Prompt
from bedplate.skins.skin import BaseReference, InputField, Provenance, Skin

LATENCY_CALLS, LEAST_CALLS = 64, 12
"""Single calls that a skin is timed by: as many as fit the seconds for it, within these bounds."""
LATENCY_SECONDS, LATENCY_SHARE, REPORT_SECONDS, REPORT_SHARE = 20.0, 0.02, 5.0, 0.05
"""What timing one skin and the report take at most, and of a short budget."""
FORMATS_SHARE = 0.1
"""The share of the time that is kept for quantised formats: a rung that is left out for them costs more."""
DEPENDENCE = 1.5
"""Calls that are made for each independent one that the bound of p95 needs."""
MAX_PLAIN_PROMPT_SHARE = 0.2
"""The share of the time that is kept for test of the plain prompt: where that takes more, there is none for it on valid
either."""
TIMING_LIMIT = 0.05
"""The share of the time after which a skin's calls are timed no further."""


@dataclass
class Chosen:
    """The prompt that the base as it is chose on valid, with what it answers; later rungs build on it."""

    prompt: tuple[Prompt, Output] | None = None


@dataclass(eq=False)
class Context:
    """Test is not in here: no rung can see it. `test_n` is only a count, to leave time for it. There is one for each
    base of the task; what `out` holds is that base's own."""

    task: Task
    spec: AdaptSpec
    at: TaskBase
    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    hashes: Mapping[str, str]
    test_n: int
    out: Path
    clock: Clock
    seed: int = 0
    chosen: Chosen = field(default_factory=Chosen)

    embedders: dict[str, LocalModel] = field(default_factory=dict[str, LocalModel])
    """Further bases that only embed, by source, loaded when a rung first asks for them."""

    most_seeds: int | None = None
    """At most so many seeds for one rung; None: as many as its recipe wants and the time allows."""

    hosted: HostedSpec | None = None
    """The remote model that is asked, for a candidate that is one."""

    climbed: dict[str, Climbed] = field(default_factory=dict[str, Climbed])
    """What was climbed before, by candidate, of all bases: one table for all contexts of a ladder."""

    suffix: str = ""
    """What stands behind the names of its candidates: "" for the first base."""

    unfit: str | None = None
    """Why no rung can be climbed on this base."""
    until: float = math.inf
    """Seconds on the clock by which the rungs of this base are to be done, so that later bases have their share."""
    exhaustive: bool = False
    """Whether budgets and rules of thumb leave nothing out."""
    parent: Parent | None = None
    """The skin that the new ones take over from."""
    outer_clock: Clock | None = None
    """Whose time and money plans have to keep to, beside their own; more is a skip."""
    executor: Executor | None = None
    """What runs the fits of rungs elsewhere; None: here."""
    run_directory: Path | None = None
    """The directory of the whole run, from which a job can rebuild this context; None where it cannot: for parts of
    the rows, smaller and nested fits."""
    climb: Callable[[Context, str, Path], RungOutcome] | None = None
    """What climbs a rung, by name, for one whose skins are other rungs' on a base that it makes: on that context, in
    that directory."""
    likely: list[str] = field(default_factory=list[str])
    """Candidates that would be asked on test if the climb ended now: one list for all contexts of a ladder."""
    settled: bool = False
    """Whether every candidate was climbed, so that `likely` is all there will be."""
    pace: float = 1.0
    """Seconds that this rung was seen to take for each that it was expected to take."""
    slower: float = 1.0
    """How many times slower the base is now than when its speed was measured, because of what else the machine does."""
    before: Mapping[str, Any] | None = None
    """The settings of the rung's first, smaller fit, which lies in the directory above this context's: what of it is
    finished a larger one may take over."""
    smallest: bool = False
    """Whether the rung's smallest version is fitted whatever it is expected to take, until the time is over."""
    format_reason: str | None = None
    """Why the base answers in quantised weights since before the first rung (`search/base_format.py`); None where it
    answers in its own."""
    readings: dict[str, speed.CallTimings] = field(default_factory=dict[str, speed.CallTimings])
    """Calls of prompts that were timed again, by prompt."""

    @cached_property
    def backbone(self) -> Backbone:
        """How the base takes part in the task."""
        return backbone_of(self.task, self.at)

    @property
    def parents(self) -> tuple[str, ...]:
        return () if self.parent is None else (self.parent.id,)

    @property
    def model(self) -> LocalModel:
        """The base on its engine; loaded if others had needed its room."""
        return self.at.model

    def part(self, train: Sequence[Example], out: Path, seed: int) -> Context:
        """The same with other train rows, in a directory of its own, for one seed. Its plans know no limit of time;
        what they come to has to fit into the time that is left here, where time that is reused counts as well."""
        records = [SplitRecord(e.id, e.row_hash, e.target, e.group) for e in train]
        sub_context = replace(
            self,
            train=tuple(train),
            hashes={**self.hashes, "train": split_hash(records)},
            out=out,
            clock=Clock(None, self.clock),
            seed=seed,
            chosen=replace(self.chosen),
            most_seeds=1,
            until=math.inf,
            parent=None,
            outer_clock=None if self.exhaustive else self.clock,
            pace=1.0,
            settled=False,
            run_directory=None,
        )
        if self.unfit is None:
            sub_context.throughput, sub_context.format_gain = self.throughput, self.format_gain
        return sub_context

    def on(self, base: TaskBase, out: Path) -> Context:
        """The same on a child of this base, which is as fast; what is made there goes into `out`."""
        child_context = replace(self, at=base, out=out, chosen=Chosen(), embedders={}, most_seeds=1, run_directory=None)
        child_context.throughput, child_context.format_gain = self.throughput, self.format_gain
        return child_context

    @cached_property
    def raw_text(self) -> Documents | None:
        """Text of the task's domain, where the task file names some. DataError."""
        text = self.spec.raw_text
        return None if text is None else read_whole_documents(text.source, self.task.directory)

    @property
    def labels(self) -> tuple[str, ...]:
        return self.task.labels

    @property
    def fields(self) -> list[str]:
        return list(self.task.inputs)

    def ordered(self, examples: Sequence[Example], purpose: str) -> list[Example]:
        """The examples in an order that seed and purpose decide, labels (if there are) taking turns in proportion."""
        drawn = self.shuffled(examples, purpose)
        if not self.labels:
            return drawn
        label_counts: dict[str, int] = {}
        total = {label: sum(e.target == label for e in drawn) for label in self.labels}
        place: dict[str, float] = {}
        for example in drawn:
            label_counts[example.target] = label_counts.get(example.target, 0) + 1
            place[example.id] = (label_counts[example.target] - 0.5) / total[example.target]
        return sorted(drawn, key=lambda e: (place[e.id], self.labels.index(e.target)))

    def shuffled(self, examples: Sequence[Example], purpose: str) -> list[Example]:
        """The examples in an order that seed and purpose decide, whatever their labels."""
        return sorted(examples, key=lambda e: sha256_bytes(f"{self.seed}/{purpose}/{e.row_hash}".encode()))

    def default_prompt(self) -> tuple[Prompt, Output]:
        """The prompt that later rungs build on, or the plain form where none was chosen."""
        return self.chosen.prompt or self.plain_prompt()

    def plain_prompt(self, phrasing: str = "form") -> tuple[Prompt, Output]:
        """The task in one of its plain phrasings, where the base reads any, and the output that fits it."""
        return self.backbone.prompt(self.written, phrasing)

    def task_prompt(self, format: Format = "plain", phrasing: str = "form") -> tuple[Prompt, Output]:
        """The task in one of its phrasings, for a model that writes, and the output that fits it."""
        return task_prompt(self.task, self.written, format, phrasing)

    @cached_property
    def written(self) -> AnswerLengths:
        """How long train's answers are, where the model writes them."""
        return AnswerLengths.of(self.task, self.model.tokenizer, self.train)

    @cached_property
    def throughput(self) -> speed.Throughput:
        """Time a batch and a few single calls of the plain prompt; once."""
        rows, measuring = [example.inputs for example in self.ordered(self.valid, "pace")], self.clock.measuring
        room = min(speed.PACE_SHARE * max(self.clock.seconds_left, 0.0), measuring.left)
        with measuring.spending():
            return self.backbone.throughput(self._timed(*self.default_prompt(), rows), self.written, room)

    @property
    def latency_calls(self) -> int:
        return self._calls_within(LEAST_CALLS, LATENCY_CALLS)

    def _calls_within(self, minimum: int, maximum: int) -> int:
        count = int(min(LATENCY_SECONDS, LATENCY_SHARE * self.clock.limit) / max(self.throughput.call, 1e-9))
        return min(maximum, max(minimum, count))

    @property
    def timing(self) -> float:
        """Expected seconds of timing a skin by single calls."""
        return (self.latency_calls + 2) * self.throughput.call

    @property
    def timing_limit(self) -> float:
        """Seconds that timing a skin on valid may take where its calls are slower than expected."""
        return math.inf if self.exhaustive else max(2 * self.timing, TIMING_LIMIT * self.clock.limit)

    @property
    def single_test_calls(self) -> int:
        """Single calls that time a skin on test. The other rows of test are asked in batches."""
        return max(min(self.test_n, self.latency_calls), self.p95_calls)

    @property
    def p95_calls(self) -> int:
        """Single calls that the budget's p95 is judged by. By default as many as fit the seconds for it, from those
        that can show it for one nominee at a first verdict, to those that can for the last of three and as much more
        as calls are usually worth less for following each other."""
        budget = self.spec.budget
        if budget.p95_ms is None or budget.p95_calls is not None:
            return 0 if budget.p95_ms is None else budget.p95_calls or 0
        error = spent_alpha(1 - self.spec.target.confidence, 1)
        lower, upper = (values_needed(SLOW, 1 - error / nominees) for nominees in (1, JUDGED))
        return self._calls_within(lower, math.ceil(DEPENDENCE * upper))

    def cached_reading(self, prompt: Prompt, output: Output, limit: float) -> speed.CallTimings:
        """`calls` with this prompt, read once."""
        key, measuring = f"{prompt.format}/{prompt.template}", self.clock.measuring
        if key not in self.readings:
            with measuring.spending():
                rows = None if measuring.left else speed.FIRST_CALLS
                self.readings[key] = self.calls(prompt, output, limit, rows)
        return self.readings[key]

    def calls(
        self, prompt: Prompt, output: Output, limit: float, max_rows: int | None = None, tenant: str = "timing"
    ) -> speed.CallTimings:
        """What a call with this prompt takes: the least of a few medians, until one is within `limit` seconds, of so
        many rows at most. tenant: for whom nothing of them is cached."""
        rows = [example.inputs for example in self.ordered(self.valid, "pace")[:max_rows]]
        return self.backbone.calls(self._timed(prompt, output, rows), limit, tenant)

    def _timed(self, prompt: Prompt, output: Output, rows: Sequence[Values]) -> TimedRows:
        return TimedRows(prompt, rows, lambda: self.model.predictor(self.skin("pace", prompt, output)))

    @cached_property
    def format_gain(self) -> float:
        """How many times as fast the base was measured to be in the best of the formats that nominees are tried in; 1
        where there is none, or valid has too few rows to say anything of one."""
        spec = self.spec.formats
        enough = len(self.valid) >= units_needed(spec.margin, self.spec.target.confidence)
        enough = enough and enough_groups([example.group for example in self.valid])
        if self.backbone.fixed_format or not spec.allowed or not enough or not self.clock.measuring.left:
            return 1.0
        speedups = speed.worth_trying(self.model, spec, writes=not self.labels)
        return 1.0 if isinstance(speedups, str) else max(1.0, *speedups.values())

    @property
    def for_test(self) -> float:
        """Seconds kept for the report, for timing the nominees once more, and for test: of the skins that would be
        asked now as they were measured on valid, and of others that may follow as the plain prompt was measured."""
        alone, likely = self.single_test_calls, [self.climbed[name] for name in self.likely if name in self.climbed]
        plain = (alone + 1) * self.throughput.call + self.throughput.rows(max(0, self.test_n - alone))
        plain = min(plain, MAX_PLAIN_PROMPT_SHARE * self.clock.limit)
        results, follows = [climbed.result for climbed in likely], None if self.settled else plain
        report = min(REPORT_SECONDS, REPORT_SHARE * self.clock.limit)
        retiming = sum((result.latency.calls + 1) * result.latency.mean for result in results)
        retiming = retiming if self.settled else 2 * self.timing
        return seconds_on_test(results, self.test_n, alone, follows) + retiming + report

    @property
    def test_reserve(self) -> float:
        """Seconds kept for what comes after the climb: test, and before it one format of two nominees, on valid."""
        if self.format_gain == 1.0:
            return self.for_test
        per_nominee = self.throughput.rows(len(self.valid)) / self.format_gain + 2 * self.timing
        return self.for_test + min(2 * per_nominee, FORMATS_SHARE * self.clock.limit)

    @property
    def seconds_left(self) -> float:
        """Seconds that rungs may still use; infinite where the ladder is exhaustive."""
        if self.exhaustive:
            return math.inf
        remaining = min(self.clock.seconds_left - self.slower * self.test_reserve, self.until - self.clock.used)
        return remaining / (self.pace * self.slower)

    @property
    def fit_seconds_left(self) -> float:
        """Seconds after which a fit ends, whatever it was expected to take: test has the rest. Infinite without
        limits."""
        if self.outer_clock is not None:
            return self.outer_clock.seconds_left
        if self.exhaustive or math.isinf(self.clock.seconds_left):
            return math.inf
        if self.smallest:
            return min(self.clock.seconds_left, self.until - self.clock.used)
        return self.clock.seconds_left - self.test_reserve

    def fit_room(self, slower: float) -> float:
        """Seconds that a fit may still plan with where everything, test as well, takes so many times longer."""
        left = min(self.fit_seconds_left, self.until - self.clock.used)
        return left if math.isinf(left) or self.outer_clock is not None else left - (slower - 1) * self.test_reserve

    def check_time(self, start: float, done: int, rows: int, then: int = 0, left: float | None = None) -> None:
        """The hard stop of a fit, which has read `done` of so many rows since `start` (`perf_counter`) and leaves the
        time to read `then` further ones at the same pace. left: seconds that there are, if not a fit's. OutOfTime."""
        seconds_per_row = (time.perf_counter() - start) / done
        if (self.fit_seconds_left if left is None else left) < then * seconds_per_row:
            raise OutOfTime(rows * seconds_per_row)

    def check_step(self, step: int, models: object) -> None:
        """The hard stop of training, whenever its state was saved (`OnCheckpoint`). OutOfTime."""
        if self.fit_seconds_left < 0:
            raise OutOfTime(0.0)

    def room(self, share: float) -> float:
        """Seconds that a rung plans with, of those that are left: its share, or all once everything was climbed."""
        return self.seconds_left * (1.0 if self.settled else share)

    @property
    def seconds_before_test(self) -> float:
        """Seconds that may still be spent before test; infinite where the ladder is exhaustive."""
        return math.inf if self.exhaustive else self.clock.seconds_left - self.for_test

    @property
    def usd_left(self) -> float:
        """US dollars that rungs may still use, beside what test will take of this machine's time."""
        if self.exhaustive or self.clock.usd is None:
            return math.inf
        return self.clock.usd_left - self.test_reserve * self.spec.machine.usd_per_hour / 3600

    def skin_name(self, rung: str) -> str:
        return "-".join(filter(None, (self.task.task, rung.replace("_", "-"), self.suffix)))

    def skin(
        self,
        rung: str,
        prompt: Prompt,
        output: Output,
        *,
        embedder: str | None = None,
        seed: int | None = None,
        **parts: Any,
    ) -> Skin:
        """A skin of this task on this base, with its lineage. embedder: the source of the base that chooses its
        demonstrations or passages, where it is another. parts: further fields of the skin."""
        base = self.model.base
        bases = {"main": BaseReference.of(self.at.source, base.family.name, base.identity)}
        if embedder is not None:
            second = self.embedder(embedder)
            bases["embedder"] = BaseReference.of(embedder, second.base.family.name, second.base.identity)
            parts["embedded_with"] = evaluated_now(second.engine)
        return Skin(
            name=self.skin_name(rung),
            bases=bases,
            inputs={name: InputField() for name in self.task.inputs},
            output=output,
            prompt=prompt,
            provenance=self.provenance(rung, self.seed if seed is None else seed, self.parents),
            evaluated_with=evaluated_now(self.model.engine),
            **parts,
        )

    def provenance(self, rung: str, seed: int, parents: tuple[str, ...] = ()) -> Provenance:
        files = {k: v for k, v in self.hashes.items() if k.startswith("file:")}
        splits = {k: v for k, v in self.hashes.items() if k not in files}
        origin: dict[str, Any] = {"task": self.task.task, "rung": rung, "data": files, "splits": splits, "seed": seed}
        return Provenance(**origin, code_version=__version__, parents=parents)

    def embedder(self, source: str) -> LocalModel:
        """A base that only embeds, beside the main one; loaded once. HubError, CheckpointError."""
        if source not in self.embedders:
            opened = open_base(source, OpenOptions(use="score", quantised=False))
            opened.base.need_tokenizer()
            self.embedders[source] = opened.model()
        return self.embedders[source]

    def close(self) -> None:
        """Closes what was loaded beside the main base."""
        while self.embedders:
            self.embedders.popitem()[1].close()

    def predictor(self, skin: Skin) -> Predictor:
        """The skin on this base, in the weights that it says it was judged with."""
        second = None if skin.embedder is None else self.embedder(skin.embedder.name)
        return self.at.as_judged(skin.evaluated_with).predictor(skin, embedder=second)
