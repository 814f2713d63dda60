"""`bedplate pretrain`: a run from its file to a base. The same call resumes a run that was stopped or killed.

1. `pretrain` joins the processes (torchrun, Slurm) and opens the run's directory (directory.py).
2. `_planned` reads data (data.py), builds or loads the model, and derives settings (sizes.py).
3. `_Run` distributes the model over the ranks and trains it with `training.loop`.
4. At checkpoints and at the end one process evaluates and writes (outputs.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor

from bedplate.core.arguments import checked
from bedplate.core.errors import ConfigError
from bedplate.core.progress import log_line, silent
from bedplate.models.build import build
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.models.checkpoints.identity import Identity
from bedplate.models.model import Model
from bedplate.models.precision import dtype_name, resolve_device
from bedplate.models.specs import EncoderDecoderSpec, TextSpec
from bedplate.pretraining.plan.sizes import check_shares, config_of, sizes_of, spec_of
from bedplate.pretraining.run import directory as places
from bedplate.pretraining.run.data import RunData, built_corpus, corpus_data, texts_data
from bedplate.pretraining.run.directory import RunDirectory, evaluations, opened
from bedplate.pretraining.run.outputs import PreparedRun, Pretrained, RunOutputs
from bedplate.pretraining.runfile.file import RunFile, load_run
from bedplate.text.tokenizer import Tokenizer
from bedplate.training.config import DtypeChoice
from bedplate.training.loop import TrainResult, store_of, train
from bedplate.training.objectives.objective import CorruptionVocabulary, Models
from bedplate.training.parallel.launch import Processes, launched
from bedplate.training.ranks import ALONE, Ranks
from bedplate.training.state import StateStore

logger = logging.getLogger("bedplate.pretraining")
T = TypeVar("T")

__all__ = ["Pretrained", "data_of", "pretrain"]


@checked
def pretrain(
    run: RunFile | Path | str, out: Path | str | None = None, overrides: Sequence[str] = (), *, catalogued: bool = True
) -> Pretrained:
    """Trains what a run file describes in the directory `out` (None: runs/NAME), or resumes there.

    overrides: `key=value`, where `run` is a path. catalogued: enter the base in the catalogue. Raises ConfigError,
    DataError, UsageError (another run trains in `out`; processes that do not fit `parallel`), TrainingError (another
    run's directory; a loss that is not finite; RankError where another process ended), and KeyboardInterrupt, after
    which the same call resumes.
    """
    run = run if isinstance(run, RunFile) else load_run(run, overrides)
    out = Path("runs") / run.run if out is None else Path(out)
    with launched(), ExitStack() as around:
        processes = Processes()
        around.enter_context(silent(not processes.main))
        directory = processes.broadcast(lambda: around.enter_context(opened(run, out)))
        for change in directory.changed if processes.main else ():
            logger.warning("the run file has changed since the run was begun: %s", change)
        planned = processes.in_turn(lambda: _planned(run, directory, processes.world, catalogued))
        return _Run(planned, processes).finish()


def _planned(run: RunFile, directory: RunDirectory, world: int, catalogued: bool) -> PreparedRun:
    """Reads all that the run begins with. What is trained or built for it is kept in its directory, where the next one
    that asks finds it."""
    axes = run.parallel.sizes(world)
    log_line(f"{run.run} reads its data")
    parent = None if run.base is None else load_base(run.base_source)
    data = data_of(run, directory.path, parent)
    base = parent or _new_base(run, data, directory.path)
    sizes = sizes_of(run, base.spec, sum(data.tokens.values()))
    check_shares(sizes, axes)
    return PreparedRun(
        run,
        directory,
        data,
        base,
        None if parent is None else parent.name,
        None if parent is None else parent.identity.weights_id,
        sizes,
        config_of(run, sizes),
        run.made_objective(base.spec.prediction_modules),
        CorruptionVocabulary(data.tokenizer, base.spec.vocab_size, base.decoder_start, base.spec.pooling),
        ", ".join(f"{axis} {size}" for axis, size in axes.items() if size > 1),
        catalogued,
    )


def data_of(run: RunFile, out: Path, parent: Base | None) -> RunData:
    """What the run learns from and is judged on."""
    tokenizer = None if parent is None else parent.need_tokenizer()
    if run.data.sources:
        return texts_data(run, out, tokenizer)
    if run.data.corpus is not None:
        return corpus_data(run, run.place(run.data.corpus), tokenizer)
    built_corpus(run, out)
    return corpus_data(run, out / places.CORPUS, tokenizer)


def _new_base(run: RunFile, data: RunData, out: Path) -> Base:
    assert run.model is not None
    spec, family = spec_of(run.model, data.tokenizer.vocab_size, run.objective)
    model = new_model(spec, run.seed).to(resolve_device("auto"))
    first = next(model.parameters())
    return Base(
        spec=spec,
        raw_model=model,
        tokenizer=data.tokenizer,
        family=family,
        identified=Identity("", data.tokenizer.identity),  # it has none before it is written
        source=run.run,
        path=out,
        dtype=first.dtype,
        device=first.device,
        stored_dtype=dtype_name(first.dtype),
        generation_defaults=_starts(spec, data.tokenizer),
    )


def _starts(spec: TextSpec, tokenizer: Tokenizer) -> dict[str, int]:
    """Generation defaults of an encoder–decoder: its decoder starts with the padding token, as in T5, or else with the
    token that ends texts."""
    if not isinstance(spec, EncoderDecoderSpec):
        return {}
    start = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.eos_id
    if start is None:
        raise ConfigError("an encoder–decoder needs a tokenizer with a token that pads or ends texts, to start with")
    end = {} if tokenizer.eos_id is None else {"eos_token_id": tokenizer.eos_id}
    return {"decoder_start_token_id": start, "pad_token_id": start, **end}


_OUTPUTS = ("attention.o.weight", "feedforward.down.weight")
"""The products whose results are added to the residual."""


def new_model(spec: TextSpec, seed: int) -> Model:
    """First weights, drawn from `seed`: normal, of a standard deviation of 1/√inputs, and 1/√(2·layers) of that where a
    block's parts end in the residual, which so does not grow with depth (GPT-2, section 2.3)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(spec)
    layers = spec.main.layers
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(_OUTPUTS):
                parameter.mul_((2 * layers) ** -0.5)
    return model


def gathered(base: Base, ranks: Ranks, dtype: torch.dtype | None = None) -> Base:
    """On the main rank the base with a model of its own that has all of the weights as they are now, which is freed
    with it; on the others, who must ask as well, and in a single process, the base itself. dtype: of the copy's
    parameters; None: as they are held."""
    if ranks.world == 1:
        return base
    from bedplate.training.parallel.apply import whole_state

    state: dict[str, Tensor] = {}
    parameters = {name for name, _ in base.model.named_parameters()}
    for name, tensor in whole_state(base.model):
        if ranks.main:
            target_dtype = dtype if name in parameters and dtype is not None else tensor.dtype
            state[name] = tensor.to(base.device, target_dtype, copy=True)
    if not ranks.main:
        return base
    model = build(base.spec, dtype or base.dtype, "meta")
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False)
    return replace(base, raw_model=model, dtype=dtype or base.dtype, lineage=dict(base.lineage))


class _Run:
    """All processes go through it together, each with a part of the model where there are several."""

    def __init__(self, planned: PreparedRun, processes: Processes) -> None:
        self.planned, self.processes, self.out = planned, processes, planned.directory.path
        self.ranks: Ranks = ALONE
        self.written: RunOutputs | None = None
        processes.broadcast(self._write)

    def _write(self) -> None:
        self.written = RunOutputs(self.planned)

    def finish(self) -> Pretrained:
        """From where it stands to the end."""
        try:
            self.ranks = self._shared()
            store = store_of(self.out, self.ranks)
            start_step = store.latest() or 0
            with nullcontext() if self.written is None else self.written.followed(start_step):
                self._before(start_step)
                result = self._train(store)
                base = gathered(self.planned.base, self.ranks)
                last = self._on_writer(lambda written: written.at_the_end(base, result))
            return self._on_writer(lambda written: written.end(base, result, last))
        except BaseException as error:
            if self.written is not None:
                self.written.stopped(error)
            raise

    def _on_writer(self, call: Callable[[RunOutputs], T]) -> T:
        """What the process that writes makes of it."""

        def invoke() -> T:
            assert self.written is not None
            return call(self.written)

        return self.processes.broadcast(invoke)

    def _shared(self) -> Ranks:
        """The model, given out to the processes."""
        if self.processes.world == 1:
            return ALONE
        from bedplate.training.parallel.apply import parallelised

        return parallelised(self.planned.base.model, self.planned.run.parallel, self.processes.broadcast(self._dtype))

    def _dtype(self) -> DtypeChoice:
        """What several processes compute in: what the file says, else what a run that is gone on with began in."""
        if self.planned.run.dtype != "auto":
            return self.planned.run.dtype
        store = store_of(self.out, ALONE)
        step = store.latest()
        arithmetic = {} if step is None else store.values(step).get("arithmetic", {})
        return cast(DtypeChoice, arithmetic.get("dtype", "auto"))

    def _train(self, store: StateStore) -> TrainResult:
        planned = self.planned
        base, objective = planned.base, planned.objective
        source = planned.data.make_source(planned.sizes, planned.sizes.steps, self.ranks.shard)
        return train(
            base.model,
            objective.source(source, planned.words, planned.run.seed),
            objective.for_ranks(self.ranks),
            planned.config,
            self.out,
            list(base.model.named_parameters()),
            self._checkpoint,
            identity={
                "base": planned.parents_id,
                "spec": base.spec.key(),
                "tokenizer": planned.data.tokenizer.identity,
            },
            description=planned.run.run,
            store=store,
            ranks=self.ranks,
            utilisation=None if self.written is None else self.written.utilisation,
            on_row=None if self.written is None else self.written.row,
        )

    def _before(self, start_step: int) -> None:
        is_due = self.written is not None and start_step == 0 and self.planned.parent is not None
        if self.ranks.any_rank(is_due and not evaluations(self.out))[0]:
            base = gathered(self.planned.base, self.ranks)
            self._on_writer(lambda written: written.before(base))

    def _checkpoint(self, step: int, models: Models) -> None:
        if step == self.planned.sizes.steps:
            return  # judged on all of the held-out texts, when the models are in their own dtype again
        model = self.planned.base.model
        base = gathered(self.planned.base, self.ranks, self.ranks.computes_in(next(model.parameters())))
        self._on_writer(lambda written: written.checkpoint(base, step))
