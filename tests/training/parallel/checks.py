"""What several ranks must do as one process does: run inside the processes of `worker.py`."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tests.tiny import tiny_spec
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter

from bedplate.core.errors import TrainingError, UsageError
from bedplate.models.decoder import Decoder
from bedplate.models.specs.transformer import Experts, TransformerSpec
from bedplate.training.batch import TrainingExample
from bedplate.training.config import GuardConfig, ParallelConfig, RouterConfig, TrainConfig
from bedplate.training.loop import TrainResult, train
from bedplate.training.objectives.contrastive import Contrastive, Crops, PairSource, TextPair
from bedplate.training.objectives.language import Sft
from bedplate.training.objectives.objective import CorruptedSource, CorruptionVocabulary, Term
from bedplate.training.parallel.apply import parallelised, whole_state
from bedplate.training.parallel.sharded_states import DistributedStates
from bedplate.training.ranks import ALONE, Ranks
from bedplate.training.sources import DocumentSource, ExampleSource

DENSE = tiny_spec(
    vocab_size=61,
    hidden_size=32,
    layers=2,
    heads=4,
    kv_heads=2,
    feedforward_size=48,
    context_length=64,
    qk_norm="head",
    attention_bias=True,
)
EXPERTS = DENSE.with_(experts=Experts(6, 2, 24, first_dense=1, selection_bias=True, scoring="sigmoid", shared_size=16))
CONFIG = TrainConfig(
    learning_rate=0.01, schedule="constant", warmup=0.0, clip=0.5, weight_decay=0.1, save_seconds=None, ema=0.5
)
ROUTER = RouterConfig(balance=0.02, z=0.01, bias_rate=0.01)


def examples(count: int = 14) -> list[TrainingExample]:
    """Of unequal length, with unequally many tokens to learn."""
    draw = random.Random(0)
    generated: list[TrainingExample] = []
    for i in range(count):
        prompt, answer = ([draw.randrange(61) for _ in range(draw.randint(2, n))] for n in (12, 5))
        generated.append(TrainingExample((*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer), f"e{i}"))
    return generated


def run(
    out: Path,
    spec: TransformerSpec,
    config: TrainConfig,
    parallel: ParallelConfig | None,
    objective: Sft | None = None,
    stop_at: int | None = None,
    dtype: torch.dtype = torch.float64,
    computes: str = "auto",
    epochs: int = 2,
    count: int = 14,
) -> tuple[dict[str, Tensor], TrainResult | None]:
    """Whole weights after training, in one process (None) or on all ranks."""
    torch.manual_seed(0)
    model = Decoder(spec, dtype=dtype)
    ranks: Ranks = ALONE if parallel is None else parallelised(model, parallel, computes)  # type: ignore[arg-type]
    source = ExampleSource(
        examples(count), 7, micro_tokens=40, order="shuffled", epochs=epochs, shard=ranks.shard, share_prefix=False
    )

    def stop(step: int, _: object) -> None:
        if step == stop_at:
            raise InterruptedError

    result: TrainResult | None = None
    with contextlib.suppress(InterruptedError):
        result = train(model, source, objective or Sft(), config, out, model.named_parameters(), stop, ranks=ranks)
    return {name: tensor.clone() for name, tensor in whole_state(model)}, result


def shared_dir(out: Path, name: str) -> Path:
    return out / name


def alone(out: Path, name: str) -> Path:
    """A directory of this rank's own."""
    return out / f"{name}-{dist.get_rank() if dist.is_initialized() else 0}"


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_close(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-12) -> None:
    assert actual.keys() == expected.keys()
    deviations = {name: float((actual[name] - expected[name]).abs().max()) for name in actual}
    assert max(deviations.values()) <= tolerance, {
        name: value for name, value in deviations.items() if value > tolerance
    }


def equals_one(
    out: Path,
    name: str,
    spec: TransformerSpec,
    config: TrainConfig,
    parallel: ParallelConfig,
    tolerance: float = 1e-12,
    count: int = 14,
) -> None:
    weights, result = run(shared_dir(out, name), spec, config, parallel, count=count)
    assert result is not None
    dist.barrier()
    if dist.get_rank():
        return
    expected, _ = run(alone(out, f"{name}-one"), spec, config, None, count=count)
    assert_close(weights, expected, tolerance)
    ours, theirs = lines(shared_dir(out, name)), lines(alone(out, f"{name}-one"))
    assert len(ours) == len(theirs) == 4
    for our_row, their_row in zip(ours, theirs, strict=True):
        assert our_row.keys() == their_row.keys()
        for key in our_row.keys() - {"tokens_per_second", "examples_per_second"}:
            assert our_row[key] == pytest.approx(their_row[key], rel=1e-9), key


# --- four ranks


def shard_and_tensor(out: Path) -> None:
    equals_one(out, "shard_and_tensor", DENSE, CONFIG, ParallelConfig(shard=2, tensor=2))


def shard_and_expert(out: Path) -> None:
    config = CONFIG.model_copy(update={"router": ROUTER})
    equals_one(out, "shard_and_expert", EXPERTS, config, ParallelConfig(shard=2, expert=2))


def data_and_shard(out: Path) -> None:
    equals_one(out, "data_and_shard", DENSE, CONFIG, ParallelConfig(data=2, shard=2))


# --- two ranks


def shard(out: Path) -> None:
    equals_one(out, "shard", DENSE, CONFIG, ParallelConfig())


def shard_and_recompute(out: Path) -> None:
    config = CONFIG.model_copy(update={"recompute": "full"})
    equals_one(out, "shard_recompute", DENSE, config, ParallelConfig())


def shard_with_muon(out: Path) -> None:
    config = CONFIG.model_copy(update={"optimizer": "muon", "cautious_decay": True})
    equals_one(out, "shard_with_muon", EXPERTS, config, ParallelConfig(), 1e-10)


def replicas(out: Path) -> None:
    equals_one(out, "replicas", DENSE, CONFIG, ParallelConfig(data=2))


def tensor(out: Path) -> None:
    equals_one(out, "tensor", DENSE, CONFIG, ParallelConfig(tensor=2))


def tensor_beside_experts(out: Path) -> None:
    equals_one(out, "tensor_experts", EXPERTS, CONFIG, ParallelConfig(tensor=2))


def expert(out: Path) -> None:
    config = CONFIG.model_copy(update={"router": ROUTER, "optimizer": "muon"})
    equals_one(out, "expert", EXPERTS, config, ParallelConfig(expert=2), 1e-10)


def a_rank_without_rows(out: Path) -> None:
    """Each epoch's last step is one example; its expert biases move on both ranks as on the one that has it."""
    config = CONFIG.model_copy(update={"router": ROUTER})
    equals_one(out, "without_rows", EXPERTS, config, ParallelConfig(), count=8)


def half_precision(out: Path) -> None:
    """Products in bfloat16 of float32 weights: near what one process does in float32, and not the same."""
    config = CONFIG.model_copy(update={"steps": 2})
    expected, _ = run(alone(out, "half-one"), DENSE, config, None, dtype=torch.float32)
    weights, result = run(
        shared_dir(out, "half"), DENSE, config, ParallelConfig(), dtype=torch.float32, computes="bfloat16"
    )
    assert result is not None
    assert result.arithmetic.dtype == "bfloat16"
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    deviation = max(float((weights[name] - expected[name]).abs().max()) for name in weights)
    assert 0 < deviation < 0.05


def negatives_of_other_ranks(out: Path) -> None:
    """Every rank's texts are candidates of each: the weights are those of one process that has them all."""
    draw = random.Random(0)

    def text() -> tuple[int, ...]:
        return tuple(draw.randrange(61) for _ in range(draw.randint(1, 9)))

    pairs = [TextPair(text(), text(), str(n), tuple(text() for _ in range(n % 3))) for n in range(11)]

    texts = [pair.anchor + pair.positive for pair in pairs]
    nothing: Any = SimpleNamespace(prompt_start=(), prompt_end=(), eos_id=None)

    def drawn(source_type: str, ranks: Ranks) -> tuple[Any, Any]:
        if source_type == "pairs":
            return PairSource(pairs, 5, shard=ranks.shard), Contrastive(ranks=ranks)
        crops = Crops(shortest=0.3)
        rows = DocumentSource(texts, 20, 4, shard=ranks.shard)
        return CorruptedSource(rows, crops, CorruptionVocabulary(nothing, 61), seed=0), crops.for_ranks(ranks)

    def learned(source_type: str, place: Path, shared: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = Decoder(DENSE, dtype=torch.float64)
        ranks = parallelised(model, ParallelConfig()) if shared else ALONE
        source, objective = drawn(source_type, ranks)
        train(model, source, objective, CONFIG, place, model.named_parameters(), ranks=ranks)
        return {name: tensor.clone() for name, tensor in whole_state(model)}

    for source_type in ("pairs", "crops"):
        weights = learned(source_type, shared_dir(out, source_type), True)
        assert_close(weights, learned(source_type, alone(out, f"{source_type}-one"), False))
        dist.barrier()
        ours, theirs = lines(shared_dir(out, source_type)), lines(alone(out, f"{source_type}-one"))
        assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=1e-9)


class Broken(Sft):
    """Not finite where e2 takes part: in one rank's share."""

    def __call__(self, models, batch):  # type: ignore[no-untyped-def]
        term = super().__call__(models, batch)["sft"]
        return {"sft": Term(term.total * (math.nan if "e2" in batch.ids else 1.0), term.weight)}


def a_step_that_one_rank_breaks(out: Path) -> None:
    config = CONFIG.model_copy(update={"guard": GuardConfig(allowed=4), "ema": None})
    expected, _ = run(alone(out, "broken-one"), DENSE, config, None, Broken())
    weights, _ = run(shared_dir(out, "broken"), DENSE, config, ParallelConfig(), Broken())
    assert_close(weights, expected)
    dist.barrier()
    skipped = [row for row in lines(shared_dir(out, "broken")) if "skipped" in row]
    assert len(skipped) == 2
    assert all("e2" in row["skipped_examples"] for row in skipped)  # type: ignore[operator]
    with pytest.raises(TrainingError, match=r"step \d+: the loss is .*e2"):
        run(shared_dir(out, "stopped"), DENSE, CONFIG, ParallelConfig(), Broken())


# --- states

SAVED = CONFIG.model_copy(update={"save_steps": 1, "router": ROUTER})


def resumed_twice(out: Path) -> None:
    """Bit by bit."""
    two = ParallelConfig()
    expected, _ = run(shared_dir(out, "unbroken"), EXPERTS, SAVED, two)
    for stop_at in (1, 3):
        run(shared_dir(out, "broken_twice"), EXPERTS, SAVED, two, stop_at=stop_at)
    weights, result = run(shared_dir(out, "broken_twice"), EXPERTS, SAVED, two)
    assert result is not None
    assert result.resumed_at == 3
    assert_close(weights, expected, 0.0)
    dist.barrier()
    ours, theirs = lines(shared_dir(out, "broken_twice")), lines(shared_dir(out, "unbroken"))
    assert [row["loss"] for row in ours] == [row["loss"] for row in theirs]


def begin_with_four(out: Path) -> None:
    run(shared_dir(out, "chain"), EXPERTS, SAVED, ParallelConfig(shard=2, expert=2), stop_at=1)


def go_on_with_two(out: Path) -> None:
    _, result = run(shared_dir(out, "chain"), EXPERTS, SAVED, ParallelConfig(tensor=2), stop_at=2)
    assert result is None


def go_on_alone(out: Path) -> None:
    run(shared_dir(out, "chain"), EXPERTS, SAVED, None, stop_at=3)
    assert (out / "chain" / "state.safetensors").exists()


def end_with_two(out: Path) -> None:
    """Four ranks, then two that share it otherwise, then one, then two: the weights of one that did it all."""
    weights, result = run(shared_dir(out, "chain"), EXPERTS, SAVED, ParallelConfig())
    assert result is not None
    assert result.resumed_at == 3
    dist.barrier()
    if dist.get_rank():
        return
    expected, _ = run(alone(out, "chain-one"), EXPERTS, SAVED, None)
    assert_close(weights, expected)
    ours, theirs = lines(shared_dir(out, "chain")), lines(alone(out, "chain-one"))
    assert [row["step"] for row in ours] == list(range(1, 5))
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=1e-12)


def killed_while_saving(out: Path) -> None:
    """The last check: one rank dies in the middle of its second save."""
    write, calls = FileSystemWriter.write_data, []

    def write_or_die(self, plan, planner):  # type: ignore[no-untyped-def]
        calls.append(plan)
        if len(calls) == 2 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, plan, planner)

    FileSystemWriter.write_data = write_or_die  # type: ignore[method-assign]
    try:
        run(shared_dir(out, "killed"), EXPERTS, SAVED, ParallelConfig())
    except BaseException as error:
        (out / "killed.txt").write_text(repr(error))
    os._exit(0)


def long_run(out: Path) -> None:
    """Wherever it stands, to its end."""
    config = SAVED.model_copy(update={"optimizer": "muon"})
    weights, _ = run(out / "run", EXPERTS, config, ParallelConfig(), epochs=20)
    if dist.get_rank() == 0:
        save_file(weights, out / "weights.safetensors")


def another_model_on_each_rank(out: Path) -> None:
    with pytest.raises(TrainingError, match="rank 1 has another model than rank 0; give all the same"):
        parallelised(Decoder(DENSE.with_(layers=1 + dist.get_rank())), ParallelConfig())


# --- one process


def refused(out: Path) -> None:
    model = Decoder(EXPERTS)
    assert parallelised(model, ParallelConfig()) is ALONE or dist.is_initialized()
    for config, error, message in ((ParallelConfig(tensor=2), UsageError, "is for 2 processes, and there are 1"),):
        with pytest.raises(error, match=message):
            parallelised(model, config)
    assert DistributedStates(out / "nothing", ALONE).latest() is None
