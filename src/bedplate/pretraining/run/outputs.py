"""What a run writes beside its state: its record, evaluations, page, and at the end the base with its card. One process
writes."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bedplate.core.display import Brief
from bedplate.core.errors import TrainingError
from bedplate.core.files import atomic_write, read_jsonl
from bedplate.core.progress import console
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.export import export_base
from bedplate.pretraining.page.page import measure_of, model_card, texts_tokens, tokens_by_source, write_page
from bedplate.pretraining.plan.sizes import RunSettings
from bedplate.pretraining.run import directory as places
from bedplate.pretraining.run.baselines import baselines
from bedplate.pretraining.run.checkpoint_evaluation import Judge, attempt
from bedplate.pretraining.run.data import HeldBatches, RunData
from bedplate.pretraining.run.directory import RunDirectory, evaluations, machine
from bedplate.pretraining.run.tensorboard import TensorBoard
from bedplate.pretraining.runfile.file import RunFile
from bedplate.skins.catalog import Catalog
from bedplate.training.loop import TrainResult
from bedplate.training.objectives.objective import CorruptionVocabulary, TextObjective
from bedplate.training.state import METRICS_FILE
from bedplate.training.utilisation import utilisation_of


@dataclass(frozen=True, repr=False)
class Pretrained(Brief):
    """What a run ended in. base: the directory of the base; judged: the last checkpoint's row, with `tokens`, those of
    the texts that were learned from (`result.tokens` ran through the model)."""

    directory: Path
    base: Path
    result: TrainResult
    judged: Mapping[str, Any]
    baselines: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class PreparedRun:
    """A run before its first step. base: what is trained, with the weights that it begins with; parent: the name of the
    base that it is gone on from, parents_id: that one's weights. layout: how several processes share it, "" for one.
    catalogued: whether its base is entered in the catalogue."""

    run: RunFile
    directory: RunDirectory
    data: RunData
    base: Base
    parent: str | None
    parents_id: str | None
    settings: RunSettings
    objective: TextObjective
    words: CorruptionVocabulary
    layout: str
    catalogued: bool


class RunOutputs:
    """The outputs of one run, written by one process."""

    def __init__(self, planned: PreparedRun) -> None:
        self._planned, self._out = planned, planned.directory.path
        self._tensorboard: TensorBoard | None = None
        run, base = planned.run, planned.base
        self.utilisation = utilisation_of(base.spec, planned.settings.sizes.length, base.device, run.dtype)
        holdouts = self._holdout_batches(run.evaluation.tokens)
        self._judge = Judge(self._out, base, run.evaluation, run.checkpoints, holdouts, self._judged)

    @contextmanager
    def followed(self, start_step: int) -> Generator[None]:
        """The run goes on from step `start_step` while it is open."""
        self._record("running")
        with TensorBoard(self._out / places.TENSORBOARD, start_step) as self._tensorboard:
            yield

    def row(self, row: Mapping[str, Any]) -> None:
        """A line of metrics."""
        if self._tensorboard is not None:
            self._tensorboard.row(row)

    def stopped(self, error: BaseException) -> None:
        """Nothing that goes wrong here hides the error."""
        attempt("how the run stands", lambda: self._record(f"stopped: {type(error).__name__}"))
        attempt("the page", self._page)

    # --- judgements

    def before(self, base: Base) -> None:
        """What a base could do before it is trained further: what is forgotten is the difference to that."""
        self._of(base).at(0, 0, 0)

    def checkpoint(self, base: Base, step: int) -> None:
        """The base as it is after this step."""
        self._of(base).at(step, self._tokens(step), self._number(step))
        attempt("the page", self._page)

    def at_the_end(self, base: Base, result: TrainResult) -> dict[str, Any]:
        """On all of the held-out texts, or as many as the file says; the row."""
        self._record("judged at the end")
        number = self._number(result.steps)
        holdouts = self._holdout_batches(self._planned.run.evaluation.end_tokens)
        return self._of(base).at(result.steps, self._tokens(result.steps), number, all_of=holdouts)

    def _of(self, base: Base) -> Judge:
        return replace(self._judge, base=base)

    def _number(self, step: int) -> int:
        interval = self._planned.settings.config.save_steps or 1
        return -(-step // interval)

    def _tokens(self, step: int) -> int:
        rows = read_jsonl(self._out / METRICS_FILE, allow_torn_tail=True)
        return texts_tokens([row for row in rows if row["step"] <= step])

    def _judged(self, row: dict[str, Any]) -> None:
        for name, scores in row["held_out"].items():
            measure, value = measure_of(scores)
            console(stderr=True).print(f"step {row['step']:,}: {name}: {value:.3f} {measure}", markup=False)
        if self._tensorboard is not None:
            self._tensorboard.judged(row)

    def _holdout_batches(self, limit: int | None) -> Sequence[HeldBatches]:
        planned = self._planned
        starts, size = bool(planned.data.tokenizer.prompt_start), planned.base.spec.vocab_size
        rows, objective, words = planned.settings.sizes, planned.objective, planned.words
        return [
            HeldBatches(holdout.first_documents(limit), rows, size, starts, objective, words)
            for holdout in planned.data.holdouts
        ]

    # --- what is known

    def _record(self, status: str, **extra_fields: Any) -> None:
        planned = self._planned
        data, settings = planned.data, planned.settings
        columns = {
            "documents": data.documents,
            "tokens": data.tokens,
            "bytes": data.bytes,
            "sha256": data.hashes,
            "licence": data.licences,
        }
        sources = {name: {key: column[name] for key, column in columns.items()} for name in data.tokens}
        planned.directory.note(
            schema=1,
            run=planned.run.run,
            status=status,
            objective=planned.run.objective,
            family=planned.base.family.name,
            kind=planned.base.spec.kind,
            base=planned.parent,
            parameters=settings.sizes.parameters,
            body=settings.sizes.body,
            steps=settings.steps,
            settings={**settings.shown(), **({"processes": planned.layout} if planned.layout else {})},
            machine=dict(machine()),
            peak={
                "flops_per_token": self.utilisation.flops_per_token,
                "flops_per_second": self.utilisation.peak,
                "convention": f"6 operations a weight and the causal half of attention, over {self.utilisation.source}",
            },
            data={
                "sources": sources,
                "tokenizer": {"id": data.tokenizer.identity, "ids": data.tokenizer.vocab_size},
                "bytes_per_token": data.bytes_per_token,
                **data.about,
            },
            **extra_fields,
        )

    def _page(self) -> None:
        record = self._planned.directory.record()
        write_page(self._out / places.PAGE, record, self._out / METRICS_FILE, evaluations(self._out))

    # --- the end

    def end(self, base: Base, result: TrainResult, last: Mapping[str, Any]) -> Pretrained:
        """Writes the base, and what belongs beside it."""
        rows = read_jsonl(self._out / METRICS_FILE, allow_torn_tail=True)
        totals = {
            "tokens_seen": texts_tokens(rows),
            "seen": tokens_by_source(rows),
            "seconds": result.seconds,
            "arithmetic": result.arithmetic.to_json(),
        }
        self._record("trained", **totals)
        place = self._export(base, result)
        baseline_scores: dict[str, dict[str, float]] = self._planned.directory.record().get("baselines") or {}
        if not baseline_scores and self._planned.run.evaluation.baselines and self._planned.objective.likelihood:
            attempt("gzip, xz and n-grams", lambda: baseline_scores.update(self._baselines()))
        self._record("finished", baselines=baseline_scores, **totals)
        if self._planned.catalogued:
            attempt("the catalogue", lambda: self._catalogue(place))
        atomic_write(place / "README.md", model_card(self._planned.directory.record(), last, self._planned.parent))
        self._page()
        return Pretrained(self._out, place, result, last, baseline_scores)

    def _catalogue(self, place: Path) -> None:
        """Enters the base where skins find theirs."""
        planned = self._planned
        parents = [planned.parents_id] if planned.parents_id else []
        with Catalog.open() as catalog:
            written = load_base(place, device="cpu")
            catalog.record_base(planned.run.run, written.identity, place, family=written.family.name, parents=parents)

    def _baselines(self) -> dict[str, dict[str, float]]:
        """They say how likely a text is, in the order in which it is written."""
        planned = self._planned
        limit = planned.run.evaluation.end_tokens
        holdouts = [holdout.first_documents(limit) for holdout in planned.data.holdouts]
        return baselines(planned.data.stream, holdouts, planned.data.tokenizer.vocab_size)

    def _export(self, base: Base, result: TrainResult) -> Path:
        """The base, with its run as lineage; one that a finished run wrote stays whole until this one is."""
        place, record = self._out / places.BASE, self._planned.directory.record()
        keys = ("run", "objective", "settings", "machine", "data", "seen", "seconds", "arithmetic")
        provenance = {key: record[key] for key in keys}
        inherited = {k: v for k, v in base.lineage.items() if k not in ("parent", "source", "same_values")}
        lineage = {**inherited, "name": self._planned.run.run, "made": provenance}
        if not all(p.isfinite().all() for p in base.model.parameters()):
            raise TrainingError(f"{self._out}: weights are not finite after step {result.steps}; no base is written")
        identity = replace(base.identity, equivalent_of=None)
        return export_base(replace(base, lineage=lineage, identified=identity), place, replace=True)
