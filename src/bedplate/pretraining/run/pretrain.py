"""A run from its file to a base: `bedplate pretrain`. The same call goes on with a run that was stopped or killed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bedplate.core.errors import BedplateError, ConfigError, TrainingError, is_interrupt
from bedplate.core.files import atomic_write, read_jsonl
from bedplate.data.corpus.build import build, processes_here
from bedplate.data.corpus.recipe import load_recipe
from bedplate.economics.model.flops import training_flops_per_token
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.export import export_base
from bedplate.models.precision import resolve_device
from bedplate.models.specs import EncoderDecoderSpec, TextSpec
from bedplate.pretraining.card import model_card
from bedplate.pretraining.page.page import seen, write_page
from bedplate.pretraining.plan.here import usable_peak
from bedplate.pretraining.plan.spec import spec_of
from bedplate.pretraining.run import directory as places
from bedplate.pretraining.run.baselines import baselines
from bedplate.pretraining.run.corpus import RunData
from bedplate.pretraining.run.directory import RunDirectory, evaluations, machine, opened
from bedplate.pretraining.run.follow import Follower, TensorBoard
from bedplate.pretraining.run.from_corpus import corpus_data
from bedplate.pretraining.run.from_texts import texts_data
from bedplate.pretraining.run.held_out import HeldBatches, held_out, reads_in_order
from bedplate.pretraining.run.judging import Judge, attempt
from bedplate.pretraining.run.live import LiveView
from bedplate.pretraining.run.model import new_model
from bedplate.pretraining.run.samples import as_base
from bedplate.pretraining.run.settings import Settings, settings_of
from bedplate.pretraining.runfile.file import RunFile, load_run
from bedplate.pretraining.suites import check_suites
from bedplate.skins.catalog import Catalog
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.loop import TrainResult, train
from bedplate.training.objectives import CorruptedSource, Corrupting, Models, Words
from bedplate.training.sources import ALONE
from bedplate.training.state import METRICS_FILE, StateFile

logger = logging.getLogger("bedplate.pretraining")


@dataclass(frozen=True)
class Pretrained:
    """What a run ended in. base: the directory of the base; judged: the last checkpoint's row."""

    directory: Path
    base: Path
    result: TrainResult
    judged: Mapping[str, Any]
    baselines: Mapping[str, Mapping[str, float]]


def pretrain(run: RunFile | Path | str, out: Path | str | None = None, overrides: Sequence[str] = ()) -> Pretrained:
    """Trains what a run file says in the directory `out` (None: runs/NAME), or goes on where a saved state was left.

    overrides: `key=value`, where `run` is a file's path.

    Raises ConfigError, DataError, UsageError (another process trains in `out`), TrainingError (a run begun otherwise;
    a loss that is not finite) and KeyboardInterrupt, after which the same call resumes.
    """
    run = run if isinstance(run, RunFile) else load_run(run, overrides)
    check_suites(run.evaluation.suites)
    out = Path("runs") / run.run if out is None else Path(out)
    with opened(run, out) as directory:
        for change in directory.changed:
            logger.warning("the run file has changed since the run was begun: %s", change)
        parent = None if run.base is None else load_base(run.base_source)
        data = data_of(run, out, parent)
        base = parent or _new_base(run, data, out)
        made = _Run(run, directory, data, base, None if parent is None else parent.name)
        return made.finish()


def data_of(run: RunFile, out: Path, parent: Base | None) -> RunData:
    """What the run learns from and is judged on."""
    tokenizer = None if parent is None else parent.need_tokenizer()
    if run.data.sources:
        return texts_data(run, out, tokenizer)
    if run.data.corpus is not None:
        return corpus_data(run, run.place(run.data.corpus), tokenizer)
    assert run.data.recipe is not None
    recipe = run.place(run.data.recipe)
    build(load_recipe(recipe), recipe.parent, out / places.CORPUS, processes=processes_here())
    return corpus_data(run, out / places.CORPUS, tokenizer)


def _new_base(run: RunFile, data: RunData, out: Path) -> Base:
    assert run.model is not None
    spec, family = spec_of(run.model, data.tokenizer.vocab_size, run.objective)
    model = new_model(spec, run.seed).to(resolve_device("auto"))
    return as_base(model, spec, family, data.tokenizer, run.run, out, generation_defaults=_starts(spec, data.tokenizer))


def _starts(spec: TextSpec, tokenizer: Tokenizer) -> dict[str, int]:
    """Of an encoder–decoder, what its decoder starts with: as in T5 what texts are padded with, or else what ends
    them."""
    if not isinstance(spec, EncoderDecoderSpec):
        return {}
    start = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.eos_id
    if start is None:
        raise ConfigError(
            "an encoder–decoder needs a token to start with: a tokenizer with one that pads or ends texts"
        )
    end = {} if tokenizer.eos_id is None else {"eos_token_id": tokenizer.eos_id}
    return {"decoder_start_token_id": start, "pad_token_id": start, **end}


class _Run:
    def __init__(self, run: RunFile, directory: RunDirectory, data: RunData, base: Base, parent: str | None) -> None:
        self.run, self.directory, self.data, self.base, self.parent = run, directory, data, base, parent
        self.out = directory.path
        self.settings: Settings = settings_of(run, base.spec, sum(data.tokens.values()))
        self.objective = run.made_objective(base.spec.prediction_modules)
        self.words = Words(data.tokenizer, base.spec.vocab_size, base.decoder_start)
        self.parents_id = base.identity.weights_id if parent else None
        self.tensorboard: TensorBoard | None = None
        self.peak: dict[str, Any] = {
            "flops_per_token": training_flops_per_token(base.spec, self.settings.rows.length),
            "flops_per_second": usable_peak(base.device),
            "convention": "6 operations a weight and the causal half of attention, over products measured here",
        }
        self.live = LiveView(run.run, self.settings.steps, self.peak["flops_per_token"] / self.peak["flops_per_second"])
        self.judge = Judge(
            self.out,
            base,
            run.evaluation,
            run.checkpoints,
            self._held(run.evaluation.tokens),
            self._judged,
        )

    def finish(self) -> Pretrained:
        store = StateFile(self.out)
        stood = store.latest() or 0
        self._record(status="running")
        self.tensorboard = TensorBoard.where_installed(self.out / places.TENSORBOARD, stood)
        takers: list[Callable[[Mapping[str, Any]], None]] = [self.live]
        try:
            with ExitStack() as around:
                if self.tensorboard is not None:
                    takers.append(self.tensorboard)
                    around.callback(self.tensorboard.close)
                self._before(stood)
                around.enter_context(self.live)
                around.enter_context(Follower(self.out / METRICS_FILE, takers))
                result = self._train(store)
                self._record(status="judged at the end")
                held = self._held(self.run.evaluation.end_tokens)
                last = self.judge.at(result.steps, result.tokens, self._number(result.steps), all_of=held)
        except BaseException as error:
            status = f"stopped: {type(error).__name__}"
            attempt("how the run stands", lambda: self._record(status=status))
            attempt("the page", self._page)
            raise
        return self._end(result, last)

    def _train(self, store: StateFile) -> TrainResult:
        base, settings = self.base, self.settings
        source = self.data.make(settings.rows, settings.steps, ALONE)
        if isinstance(self.objective, Corrupting):
            source = CorruptedSource(source, self.objective, self.words, self.run.seed)
        return train(
            base.model,
            source,
            self.objective,
            settings.config,
            self.out,
            list(base.model.named_parameters()),
            self._checkpoint,
            identity={
                "base": self.parents_id,
                "spec": base.spec.key(),
                "tokenizer": self.data.tokenizer.identity,
            },
            description=self.run.run,
            store=store,
        )

    # --- checkpoints

    def _before(self, stood: int) -> None:
        """What a base could do before it is trained further: what is forgotten is the difference to that."""
        if stood == 0 and self.parent is not None and not evaluations(self.out):
            self.judge.at(0, 0, 0)

    def _checkpoint(self, step: int, models: Models) -> None:
        if step == self.settings.steps:
            return  # judged on all of the held-out texts, when the models are in their own dtype again
        self.judge.at(step, self._tokens(step), self._number(step))
        attempt("the page", self._page)

    def _number(self, step: int) -> int:
        every = self.settings.config.save_steps or 1
        return -(-step // every)

    def _tokens(self, step: int) -> int:
        rows = read_jsonl(self.out / METRICS_FILE, allow_torn_tail=True)
        return sum(row["tokens"] for row in rows if row["step"] <= step)

    def _judged(self, row: dict[str, Any]) -> None:
        self.live.judged(row)
        if self.tensorboard is not None:
            self.tensorboard.judged(row)

    def _held(self, limit: int | None) -> Sequence[HeldBatches]:
        starts, size = bool(self.data.tokenizer.prompt_start), self.base.spec.vocab_size
        corrupted = self.objective if isinstance(self.objective, Corrupting) else None
        return [held_out(one, self.settings.rows, size, starts, limit, corrupted, self.words) for one in self.data.held]

    # --- what is known

    def _record(self, status: str, **more: Any) -> None:
        data, settings = self.data, self.settings
        sources = {
            name: {
                "documents": data.documents[name],
                "tokens": data.tokens[name],
                "bytes": data.bytes[name],
                "sha256": data.hashes[name],
                "licence": data.licences[name],
            }
            for name in data.tokens
        }
        self.directory.note(
            schema=1,
            run=self.run.run,
            status=status,
            objective=self.run.objective,
            family=self.base.family.name,
            base=self.parent,
            parameters=settings.sizes.parameters,
            body=settings.sizes.body,
            steps=settings.steps,
            settings=settings.shown(),
            machine=dict(machine()),
            peak=self.peak,
            data={
                "sources": sources,
                "tokenizer": {"id": data.tokenizer.identity, "ids": data.tokenizer.vocab_size},
                "bytes_per_token": data.bytes_per_token,
                **data.about,
            },
            **more,
        )

    def _page(self) -> None:
        write_page(self.out / places.PAGE, self.directory.record(), self.out / METRICS_FILE, evaluations(self.out))

    # --- the end

    def _end(self, result: TrainResult, last: Mapping[str, Any]) -> Pretrained:
        rows = read_jsonl(self.out / METRICS_FILE, allow_torn_tail=True)
        done = {
            "tokens_seen": result.tokens,
            "seen": seen(rows),
            "seconds": result.seconds,
            "arithmetic": result.arithmetic.to_json(),
        }
        self._record(status="trained", **done)
        place = self._export(self.directory.record(), result)
        found = self._baselines()
        self._record(status="finished", baselines=found, **done)
        record = self.directory.record()
        self._catalogue(place)
        atomic_write(place / "README.md", model_card(record, last, self.parent))
        self._page()
        return Pretrained(self.out, place, result, last, found)

    def _catalogue(self, place: Path) -> None:
        """Entered where skins find their bases; a catalogue that cannot be written costs a warning."""
        try:
            with Catalog.open() as catalog:
                parents = [self.parents_id] if self.parents_id else []
                written = load_base(place, device="cpu")
                catalog.record_base(self.run.run, written.identity, place, family=written.family.name, parents=parents)
        except BedplateError as error:
            logger.warning("the base is not in the catalogue: %s", error)

    def _baselines(self) -> dict[str, dict[str, float]]:
        kept = self.directory.record().get("baselines")
        if kept is not None:
            return kept
        if not self.run.evaluation.baselines or not reads_in_order(self.objective):
            return {}  # those say how likely a text is, in the order in which it is written
        try:
            return baselines(self.data.stream, self.data.held, self.data.tokenizer.vocab_size)
        except Exception as error:  # the base is written: counting words is not to cost it
            if is_interrupt(error):
                raise
            logger.warning("gzip, xz and n-grams are not beside it: %s: %s", type(error).__name__, error)
            return {}

    def _export(self, record: Mapping[str, Any], result: TrainResult) -> Path:
        """The base, with its run as lineage; one that a finished run wrote stays whole until this one is."""
        place = self.out / places.BASE
        made = {
            key: record[key]
            for key in ("run", "objective", "settings", "machine", "data", "seen", "seconds", "arithmetic")
        }
        kept = {k: v for k, v in self.base.lineage.items() if k not in ("parent", "source", "same_values")}
        lineage = {**kept, "name": self.run.run, "made": made}
        if not all(p.isfinite().all() for p in self.base.model.parameters()):
            raise TrainingError(f"{self.out}: weights are not finite after step {result.steps}; no base is written")
        identity = replace(self.base.identity, equivalent_of=None)
        return export_base(replace(self.base, lineage=lineage, identified=identity), place, replace=True)
