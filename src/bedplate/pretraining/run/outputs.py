"""What a run writes beside its state: its record, evaluations, page, and at the end the base with its card. One process
writes."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bedplate.core.closing import Closing
from bedplate.core.display import Brief
from bedplate.core.errors import ConfigError, ContextLengthExceeded, DataError, TrainingError, is_interrupt
from bedplate.core.files import append_jsonl, atomic_write, read_jsonl
from bedplate.core.progress import console, log_line
from bedplate.evaluation.suites.suite import run_suite
from bedplate.inference.predict.local import LocalModel
from bedplate.models.build import build
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.export import export_base
from bedplate.models.checkpoints.identity import Identity
from bedplate.models.precision import dtype_name
from bedplate.pretraining.page.page import measure_of, model_card, texts_tokens, tokens_by_source, write_page
from bedplate.pretraining.plan.sizes import RunSizes
from bedplate.pretraining.run import directory as places
from bedplate.pretraining.run.baselines import baselines
from bedplate.pretraining.run.data import HeldBatches, RunData, learned_tokens
from bedplate.pretraining.run.directory import RunDirectory, evaluations, machine
from bedplate.pretraining.runfile.file import RunFile
from bedplate.skins.catalog import Catalog
from bedplate.skins.records import of_identity
from bedplate.training.config import TrainConfig
from bedplate.training.loop import TrainResult
from bedplate.training.objectives.objective import CorruptionVocabulary, TextObjective
from bedplate.training.state import METRICS_FILE
from bedplate.training.step_metrics import utilisation_of

MEASURES = ("acc", "score", "nats_per_token")
"""Which measure of a suite makes its curve: the first that it has."""


def suite_rows(model: LocalModel, names: Sequence[str], item_count: int) -> dict[str, dict[str, Any]]:
    """For each suite, the measure that makes its curve, with value, interval and number of items. ContextLengthExceeded
    where a suite has no item that the context holds."""
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        measures = run_suite(model, name, item_count).to_json()["measures"]
        if not measures:
            length = model.base.spec.context_length
            raise ContextLengthExceeded(f"no item of {name} fits the context of {length:,} tokens")
        measure = next((candidate for candidate in MEASURES if candidate in measures), next(iter(measures)))
        rows[name] = {"measure": measure, **{key: measures[measure][key] for key in ("value", "interval", "n")}}
    return rows


logger = logging.getLogger("bedplate.pretraining")


def attempt(subject: str, call: Callable[[], object]) -> None:
    """Does what a run can do without: where it fails, that costs a warning. Interrupts get out."""
    try:
        call()
    except Exception as error:
        if is_interrupt(error):
            raise
        logger.warning("%s could not be written: %s: %s; the run continues", subject, type(error).__name__, error)


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
    sizes: RunSizes
    config: TrainConfig
    objective: TextObjective
    words: CorruptionVocabulary
    layout: str
    catalogued: bool


Row = Mapping[str, Any]


class TensorBoard(Closing):
    """Scalars of a run for TensorBoard, where it is installed, from the step at which the run resumes; what an earlier
    process wrote stays. A failure is reported once, and nothing is written from then on."""

    def __init__(self, directory: Path, first: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._writer = None
            return
        self._writer = SummaryWriter(str(directory), purge_step=first + 1 if first else None)

    def row(self, row: Row) -> None:
        """Writes a line of metrics."""

        def write(writer: Any) -> None:
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    writer.add_scalar(name if "/" in name else f"train/{name}", value, row["step"])

        self._attempt(write)

    def judged(self, row: Row) -> None:
        """Writes the evaluation of a checkpoint."""

        def write(writer: Any) -> None:
            for name, score in row["held_out"].items():
                measure, value = measure_of(score)
                writer.add_scalar(f"held_out/{name}/{measure.replace(' a ', '_per_')}", value, row["step"])
            for name, suite in row["suites"].items():
                writer.add_scalar(f"suites/{name}", suite["value"], row["step"])
            for number, sample in enumerate(row["samples"]):
                writer.add_text(f"sample {number}", f"{sample['prompt']}{sample['text']}", row["step"])
            writer.flush()

        self._attempt(write)

    def close(self) -> None:
        self._attempt(lambda writer: writer.close())

    def _attempt(self, write: Callable[[Any], None]) -> None:
        if self._writer is not None:
            try:
                write(self._writer)
            except Exception as error:
                self._writer = None
                logger.warning("TensorBoard no longer follows the run: %s", error)


class RunOutputs:
    """The outputs of one run, written by one process."""

    def __init__(self, planned: PreparedRun) -> None:
        self._planned, self._out = planned, planned.directory.path
        self._tensorboard: TensorBoard | None = None
        run, base = planned.run, planned.base
        self.utilisation = utilisation_of(base.spec, planned.sizes.length, base.device, run.dtype)
        self._holdouts = self._holdout_batches(run.evaluation.tokens)

    @contextmanager
    def followed(self, start_step: int) -> Generator[None]:
        """The run goes on from step `start_step` while it is open."""
        self.record("running")
        sizes = self._planned.sizes
        steps = f"{sizes.steps:,} steps of {sizes.batch * sizes.length:,} tokens, {sizes.parameters:,} parameters"
        begin = f"resumes after step {start_step:,} of" if start_step else "begins:"
        if self._planned.directory.finished:
            begin = "is finished already:"
        log_line(f"{self._planned.run.run} {begin} {steps}, in {self._out}")
        with TensorBoard(self._out / places.TENSORBOARD, start_step) as self._tensorboard:
            yield

    def row(self, row: Mapping[str, Any]) -> None:
        """A line of metrics."""
        if self._tensorboard is not None:
            self._tensorboard.row(row)

    def stopped(self, error: BaseException) -> None:
        """Nothing that goes wrong here hides the error."""
        cause = "Ctrl-C" if is_interrupt(error) else type(error).__name__
        status = f"stopped by {cause}; run the same command to resume"
        if isinstance(error, ConfigError | DataError):
            status = f"refused: {error}"
        attempt("how the run stands", lambda: self.record(status))
        attempt("the page", self._page)

    # --- judgements

    def before(self, base: Base) -> None:
        """What a base could do before it is trained further: what is forgotten is the difference to that."""
        self._judge(base, 0, self._holdouts)

    def checkpoint(self, base: Base, step: int) -> None:
        """The base as it is after this step."""
        log_line(f"step {step:,} is saved; evaluating it")
        number = -(-step // (self._planned.config.save_steps or 1))
        self._judge(base, step, self._holdouts, lambda: self._save_base(base, step, number))
        attempt("the page", self._page)

    def at_the_end(self, base: Base, result: TrainResult) -> dict[str, Any]:
        """On all of the held-out texts, or as many as the file says; the row. A finished run has its own already."""
        last = evaluations(self._out)[-1:]
        if self._planned.directory.finished and last and last[0]["step"] == result.steps and not last[0]["errors"]:
            return last[0]
        self.record("judged at the end")
        log_line(f"step {result.steps:,} is saved; evaluating the end on its held-out texts")
        return self._judge(base, result.steps, self._holdout_batches(self._planned.run.evaluation.end_tokens))

    def _judge(
        self, base: Base, step: int, holdouts: Sequence[HeldBatches], save: Callable[[], None] | None = None
    ) -> dict[str, Any]:
        """Judges, writes and returns a row. Only an interrupt gets out, and a row that cannot be written costs a
        warning."""
        started = time.perf_counter()
        row: dict[str, Any] = {"step": step, "tokens": self._tokens(step), "held_out": {}, "samples": [], "suites": {}}
        row["errors"] = []
        parts: dict[str, Callable[[], None]] = {
            "held-out texts": lambda: row.update(held_out=_scores(base, holdouts)),
            "samples and suites": lambda: self._generate(base, row),
        }
        if save is not None:
            parts["the checkpoint's base"] = save
        for part_name, judge in parts.items():
            try:
                judge()
            except Exception as error:
                if is_interrupt(error):
                    raise
                row["errors"].append(f"{part_name}: {type(error).__name__}: {error}")
                logger.warning("step %d: %s could not be evaluated: %s; the run continues", step, part_name, error)
        row["seconds"] = time.perf_counter() - started
        attempt(f"the evaluation of step {step}", lambda: append_jsonl(self._out / places.EVALUATIONS, [row]))
        attempt(f"the evaluation of step {step} on the terminal and in TensorBoard", lambda: self._judged(row))
        return row

    def _generate(self, base: Base, row: dict[str, Any]) -> None:
        evaluation = self._planned.run.evaluation
        if (evaluation.prompts or evaluation.suites) and base.writes:
            with _inference_copy(_current_base(base)) as model:
                row["samples"] = _samples(model, evaluation.prompts, evaluation.sample_tokens)
                row["suites"] = suite_rows(model, evaluation.suites, evaluation.items)

    @torch.no_grad()
    def _save_base(self, base: Base, step: int, number: int) -> None:
        """This checkpoint as a base, and those that the rules no longer keep removed."""
        rules, directory = self._planned.run.checkpoints, self._out / places.CHECKPOINTS
        last, interval = rules.bases, rules.bases_every
        place = directory / f"{number:03d}-step-{step}"
        if (last or (interval and number % interval == 0)) and not place.exists():
            current = _current_base(base)
            export_base(replace(current, lineage={**current.lineage, "made": {"step": step}}), place)
        numbered = {int(p.name.partition("-")[0]): p for p in directory.glob("[0-9]*-step-*")}
        latest = sorted(numbered)[-last:] if last else []
        for checkpoint, path in numbered.items():
            if checkpoint not in latest and not (interval and checkpoint % interval == 0):
                shutil.rmtree(path)

    def _tokens(self, step: int) -> int:
        if not step:
            return 0
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
        rows, objective, words = planned.sizes, planned.objective, planned.words
        return [
            HeldBatches(holdout.first_documents(limit, planned.data.tokenizer), rows, size, starts, objective, words)
            for holdout in planned.data.holdouts
        ]

    # --- what is known

    def record(self, status: str, **extra_fields: Any) -> None:
        """Writes down what is known of the run, and how it stands."""
        planned = self._planned
        data, sizes, config = planned.data, planned.sizes, planned.config
        settings = {
            "tokens": sizes.tokens,
            "steps": sizes.steps,
            "tokens_of_a_step": sizes.batch * sizes.length,
            "sequence": sizes.length,
            "optimizer": config.optimizer,
            "learning_rate": config.learning_rate,
            "schedule": f"{config.schedule}, warm-up {config.warmup:g}, decay {config.decay:g}",
            "weight_decay": config.weight_decay,
            "clip": config.clip,
            "seed": config.seed,
        }
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
            parameters=sizes.parameters,
            body=sizes.body,
            steps=sizes.steps,
            settings={**settings, **({"processes": planned.layout} if planned.layout else {})},
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
        self.record("trained", **totals)
        place = self._export(base, result)
        baseline_scores: dict[str, dict[str, float]] = self._planned.directory.record().get("baselines") or {}
        if not baseline_scores and self._planned.run.evaluation.baselines and self._planned.objective.likelihood:
            attempt("gzip, xz and n-grams", lambda: baseline_scores.update(self._baselines()))
        self.record("finished", baselines=baseline_scores, **totals)
        if self._planned.catalogued:
            attempt("the catalogue", lambda: self._catalogue(place))
        atomic_write(place / "README.md", model_card(self._planned.directory.record(), last, self._planned.parent))
        self._page()
        return Pretrained(self._out, place, result, last, baseline_scores)

    def _catalogue(self, place: Path) -> None:
        """Enters the base where skins find theirs."""
        planned = self._planned
        parents = (planned.parents_id,) if planned.parents_id else ()
        with Catalog.open() as catalog:
            written = load_base(place, device="cpu")
            catalog.record([of_identity(planned.run.run, written.identity, place, written.family.name, parents)])

    def _baselines(self) -> dict[str, dict[str, float]]:
        """They say how likely a text is, in the order in which it is written."""
        planned = self._planned
        limit = planned.run.evaluation.end_tokens
        tokenizer = planned.data.tokenizer
        holdouts = [holdout.first_documents(limit, tokenizer) for holdout in planned.data.holdouts]
        return baselines(learned_tokens(planned.data, planned.sizes), holdouts, tokenizer.vocab_size)

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


def _scores(base: Base, holdouts: Sequence[HeldBatches]) -> dict[str, Any]:
    scores = {batches.holdout.name: batches.score(base.model) for batches in holdouts}
    lost = [name for name, score in scores.items() if not math.isfinite(score["nats_per_token"])]
    if lost:  # no number that a row could hold
        raise TrainingError(f"the loss on {', '.join(lost)} is not finite")
    return scores


def _samples(model: LocalModel, prompts: Sequence[str], tokens: int) -> list[dict[str, str]]:
    """How each prompt goes on, the likeliest token each time."""
    room = model.base.spec.main.context_length
    texts: list[dict[str, str]] = []
    for prompt in prompts:
        length = len(model.tokenizer.encode_prompt(prompt))
        generation = model.generate(prompt, max_tokens=max(1, min(tokens, room - length)))
        texts.append({"prompt": prompt, "text": generation.text})
    return texts


def _current_base(base: Base) -> Base:
    """The base in what the run computes in at the moment."""
    return replace(base, dtype=next(base.model.parameters()).dtype, lineage=dict(base.lineage))


@contextmanager
def _inference_copy(base: Base) -> Generator[LocalModel]:
    """A copy of its weights, ready to generate and score; gone afterwards."""
    copy = build(base.spec, base.dtype, "meta")
    state = {name: tensor.detach().clone() for name, tensor in base.model.state_dict().items()}
    copy.load_state_dict(state, assign=True)
    copy.requires_grad_(False).eval()
    dtype = dtype_name(base.dtype)
    identity = Identity("", base.need_tokenizer().identity)
    snapshot = replace(base, raw_model=copy, identified=identity, stored_dtype=dtype, gguf=None)
    weights = dtype if dtype in ("float32", "bfloat16") else "auto"
    with torch.inference_mode(False), LocalModel(snapshot, weights=weights, kernel="torch") as model:
        yield model
