"""A whole run on two ranks, on one and on two again: what one process does alone. Run inside the processes of
`tests/training/parallel/worker.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.pretraining import test_memory
from tests.pretraining.runs import tiny_run

from bedplate.core.errors import ConfigError, RankError, UsageError
from bedplate.core.files import read_jsonl
from bedplate.models.checkpoints.base import Base, load_base
from bedplate.pretraining.plan.dry_run import device_bytes
from bedplate.pretraining.plan.sizes import sizes_of, spec_of
from bedplate.pretraining.run.directory import evaluations, read_record
from bedplate.pretraining.run.outputs import RunOutputs
from bedplate.pretraining.run.pretrain import pretrain
from bedplate.pretraining.runfile.file import RunFile
from bedplate.training.parallel.apply import parallelised

NAME, ALONE = "a_run", "a_run_alone"
STEPS = 9


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _run(out: Path, **changes: object) -> RunFile:
    """Each rank reads a file of its own, as on machines that share nothing but the run's directory."""
    place = out / f"files-{_rank()}"
    place.mkdir(exist_ok=True)
    evaluation = {"baselines": False, "prompts": ["the cat"], "sample_tokens": 2}
    return tiny_run(place, evaluation=evaluation, dtype="float32", log_steps=1, **changes)


def _stopped(out: Path, at: int) -> None:
    """By what comes in the middle of a checkpoint, on the rank that writes; the other hears of it."""
    whole = RunOutputs.checkpoint

    def checkpoint(self: RunOutputs, base: Base, step: int) -> None:
        if step == at:
            raise KeyboardInterrupt
        whole(self, base, step)

    RunOutputs.checkpoint = checkpoint  # type: ignore[method-assign]
    try:
        with pytest.raises(RankError if _rank() else KeyboardInterrupt):
            pretrain(_run(out), out / NAME)
    finally:
        RunOutputs.checkpoint = whole  # type: ignore[method-assign]
    if not _rank():
        assert read_record(out / NAME)["status"] == "stopped by Ctrl-C; run the same command to resume"


def begin_a_run(out: Path) -> None:
    """And what does not fit is refused before anything is written, by the first rank; the other ends with it."""
    for change, error, message in (
        ({"parallel": {"tensor": 4}}, UsageError, "is for 4 processes, and there are 2"),
        ({"batch": {"tokens": 32}, "tokens": 320}, ConfigError, "steps of 1 rows, and 2 ranks"),
    ):
        with pytest.raises(RankError if _rank() else error, match=message):
            pretrain(_run(out, **change), out / "refused")
    dist.barrier()
    assert not (out / "refused" / "pretraining.json").exists()
    _stopped(out, 3)


def go_on_alone_with_a_run(out: Path) -> None:
    pretrain(_run(out), out / ALONE)
    _stopped(out, 6)


def end_a_run(out: Path) -> None:
    """Two ranks, one, and two that each hold everything: the losses of the one that did it all, its order of texts, its
    judgements and, as far as sums go, its weights."""
    finished = pretrain(_run(out, parallel={"data": 2}), out / NAME)
    assert finished.result.resumed_at == 6
    assert finished.result.steps == STEPS
    dist.barrier()
    ours, theirs = (read_jsonl(out / name / "metrics.jsonl") for name in (NAME, ALONE))
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1))
    for our_row, reference in zip(ours, theirs, strict=True):
        assert our_row["tokens/lines"] == reference["tokens/lines"]
        # Sums of float32 in another order: processors with wider vectors differ by 1e-6 already.
        assert our_row["loss"] == pytest.approx(reference["loss"], rel=1e-5)
        assert 0 < our_row["mfu"] < 1
    judged, expected = (evaluations(out / name) for name in (NAME, ALONE))
    assert [row["step"] for row in judged] == [STEPS], "the other two checkpoints were broken off"
    assert not any(row["errors"] for row in judged)
    last, reference = judged[-1]["held_out"]["lines"], expected[-1]["held_out"]["lines"]
    assert last["bits_per_byte"] == pytest.approx(reference["bits_per_byte"], rel=1e-5)
    parallel_state, alone_state = (load_base(out / name / "base").model.state_dict() for name in (NAME, ALONE))
    assert all(
        torch.allclose(parallel_state[name], tensor, rtol=1e-4, atol=1e-5) for name, tensor in alone_state.items()
    )
    record = read_record(out / NAME)
    assert record["status"] == "finished"
    assert record["settings"]["processes"] == "data 2"


def memory_of_a_shard(out: Path) -> None:
    """What a dry run says that each of two ranks holds is what torch allocates on each."""
    place = out / f"memory-{_rank()}"
    place.mkdir(exist_ok=True)
    for name in ("adamw", "one pass a step", "made again", "muon and an average"):
        # A state is saved at the end alone: in between, how long its copy is held would depend on the disk.
        run = test_memory.planned(place, checkpoints={"every": 1.0, "seconds": None}, **test_memory.CASES[name])
        assert run.model is not None
        spec, _ = spec_of(run.model, test_memory.VOCABULARY)
        axes = run.parallel.sizes(2)
        memory = device_bytes(run, spec, sizes_of(run, spec, None), run.dtype, axes, on_cpu=True)
        del memory["state being written"]

        def trained(directory: Path, run: RunFile = run) -> object:
            return test_memory.trained(run, directory, lambda model: parallelised(model, run.parallel))

        trained(out / f"{name}-warm")
        peak = test_memory.peak_of(lambda: trained(out / name))  # noqa: B023
        assert peak == pytest.approx(sum(memory.values()), rel=0.1), (name, peak, memory)
