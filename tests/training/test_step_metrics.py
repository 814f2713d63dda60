"""What a step leaves on the device is read once for each time that lines are written, and nothing is lost by it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tests.core.clocks import set_monotonic
from tests.rows import slow_unless
from tests.tiny import tiny_spec
from torch import nn

from bedplate.core.errors import TrainingError
from bedplate.data.packing import pack_documents
from bedplate.models.build import build
from bedplate.models.layers import grouped
from bedplate.models.layers.recomputation import recomputing
from bedplate.models.specs import EncoderDecoderSpec
from bedplate.models.specs.parts import DeltaRule
from bedplate.models.specs.position import RelativeBias
from bedplate.models.specs.split import Recompute
from bedplate.models.specs.transformer import Experts, LongRopeScaling, Rope, Scales
from bedplate.training import loop
from bedplate.training.batch import TrainingExample, pack_examples, rows_batch
from bedplate.training.config import TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives.language import MultiTokenPrediction, NextToken, Sft
from bedplate.training.objectives.objective import Term
from bedplate.training.optimizers import Optimization
from bedplate.training.sources import DocumentSource, ExampleSource

READS = ("item", "tolist", "numpy", "__float__", "__int__", "__bool__", "__index__")
CONFIG = TrainConfig(learning_rate=0.01, clip=0.5, save_seconds=None)


class Watching(ExampleSource):
    """Says which step is being drawn."""

    drawn = 0

    def _micro_batches(self, numbers: list[int]):
        self.drawn += 1
        return super()._micro_batches(numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("log_steps", [1, 3, 100])
def test_one_reading_for_each_time_that_lines_are_written(
    dtype, log_steps, make_decoder, make_examples, tmp_path, monkeypatch
) -> None:
    model, source = make_decoder(dtype), Watching(make_examples(32), 4, micro_tokens=40)
    assert len(next(iter(ExampleSource(make_examples(32), 4, micro_tokens=40)))) > 1
    reads: list[tuple[str, int]] = []
    for name in READS:
        before = getattr(torch.Tensor, name)

        def counted(self, *args, name=name, before=before, **kwargs):
            reads.append((name, source.drawn))
            return before(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    monkeypatch.setattr(loop, "READ_SECONDS", float("inf"))
    config = CONFIG.model_copy(update={"log_steps": log_steps})
    result = train(model, source, Sft(), config, tmp_path, model.named_parameters())
    monkeypatch.undo()
    assert result.steps == 8
    assert reads == [("tolist", step) for step in range(1, 9) if step % log_steps == 0 or step == 8]


def test_slow_steps_are_read_before_there_are_many(make_decoder, make_examples, tmp_path, monkeypatch) -> None:
    written: list[tuple[int, int]] = []
    model, source = make_decoder(), Watching(make_examples(32), 4, micro_tokens=40)
    set_monotonic(monkeypatch, loop, lambda: 1.5 * source.drawn)
    config = CONFIG.model_copy(update={"log_steps": 100})

    def on_row(row) -> None:
        written.append((source.drawn, row["step"]))

    train(model, source, Sft(), config, tmp_path, model.named_parameters(), on_row=on_row)
    assert written == [(step + step % 2, step) for step in range(1, 9)]


def test_lines_and_weights_are_the_same_however_often_they_are_written(make_decoder, make_examples, tmp_path) -> None:
    outcomes = []
    for log_steps in (1, 3):
        model, out = make_decoder(), tmp_path / str(log_steps)
        config = CONFIG.model_copy(update={"log_steps": log_steps, "save_steps": 4})
        result = train(model, ExampleSource(make_examples(14), 2, seed=1), Sft(), config, out, model.named_parameters())
        rows = [json.loads(line) for line in result.metrics_path.read_text().splitlines()]
        speeds = {"tokens_per_second", "examples_per_second"}
        assert sum(row["tokens"] / row["tokens_per_second"] for row in rows) == pytest.approx(result.seconds)
        outcomes.append(
            ([{k: v for k, v in row.items() if k not in speeds} for row in rows], dict(model.named_parameters()))
        )
    (rows, weights), (second_rows, theirs) = outcomes
    assert rows == second_rows
    assert all(torch.equal(value, theirs[name]) for name, value in weights.items())


class _BrokenOnce(Sft):
    def __call__(self, models, batch):
        term = super().__call__(models, batch)["sft"]
        return {"sft": Term(term.total * (math.nan if "e2" in batch.ids else 1.0), term.weight)}


def test_nothing_is_applied_from_a_step_on_that_is_not_finite(make_decoder, make_examples, tmp_path: Path) -> None:
    """Although nobody has read yet that it is not."""
    model, after_one = make_decoder(), make_decoder()
    config = TrainConfig(learning_rate=0.01, schedule="constant", warmup=0.0, save_seconds=None)
    short = config.model_copy(update={"steps": 1})
    train(after_one, ExampleSource(make_examples(8), 2), Sft(), short, tmp_path / "1", after_one.named_parameters())
    config = config.model_copy(update={"log_steps": 4})
    with pytest.raises(TrainingError, match=r"step 2: the loss is .*nan.*examples e2, e3\."):
        train(
            model, ExampleSource(make_examples(8), 2), _BrokenOnce(), config, tmp_path / "4", model.named_parameters()
        )
    for (name, value), expected in zip(model.named_parameters(), after_one.parameters(), strict=True):
        assert torch.equal(value, expected), name


def test_documents_in_padded_rows_are_read_once_a_step_too(make_decoder, tmp_path) -> None:
    model = make_decoder(torch.float32)
    source = DocumentSource([[1, 2, 3, 4, 5]] * 9, 8, 4, micro_rows=2)
    result = train(model, source, Sft(), CONFIG, tmp_path, model.named_parameters())
    assert json.loads(result.metrics_path.read_text().splitlines()[0])["targets"] == 16


SPECS = {
    "gated": tiny_spec(),
    "positions": tiny_spec(position_rows=64, rope=None, norm="layer"),
    "sandwich": tiny_spec(
        norm_placement="sandwich", qk_norm="head", windows=(5, None), scales=Scales(attention_cap=20.0)
    ),
    "long rope": tiny_spec(rope=Rope(10_000.0, scaling=LongRopeScaling((1.0,) * 4, (2.0,) * 4, 6, 2.0))),
    "sinks": tiny_spec(attention_sinks=True),
    "state": tiny_spec(state=DeltaRule(4, 2, 6, 8), state_layers=(True, False, True)),
    "further": tiny_spec(prediction_modules=1),
}


@pytest.mark.parametrize("setting", ["none", "full"])
@pytest.mark.parametrize("name", slow_unless({"gated", "sandwich", "state", "further"}.__contains__, SPECS))
def test_a_pass_over_a_batch_on_a_device_reads_nothing(name: str, setting: Recompute, make_examples) -> None:
    """On the meta device there is nothing to be read: any attempt raises. With padding, and with a shared prefix."""
    model, multi_token = build(SPECS[name], device="meta"), MultiTokenPrediction(1) if name == "further" else None
    documents = [[1, 2, 3, 4, 5]] * 9
    padded = rows_batch(pack_documents([5] * 9, 8).rows, documents, list("abcdefghi"), 8)
    for batch in [padded, *([] if multi_token else [pack_examples(make_examples(5))])]:
        objective = NextToken(multi_token)
        objective.weights(batch)
        with recomputing(setting):
            terms = objective({"policy": model}, batch.to(torch.device("meta")))
            torch.stack([term.total for term in terms.values()]).sum().backward()
        assert all(parameter.grad is not None for parameter in model.layers.parameters())


def test_an_encoder_and_experts_on_a_device_read_nothing(monkeypatch) -> None:
    """As above, of two sides and of grouped products, whose trial reads what it gave."""
    monkeypatch.setattr(grouped, "torch_product_works", lambda device, dtype: True)
    side = {"rope": None, "relative_bias": RelativeBias(), "kv_heads": 6}
    reads = tiny_spec(kind="encoder", embedding_norm=False, final_norm=True, **side)
    seq2seq_spec = EncoderDecoderSpec(reads, tiny_spec(cross_size=48, **side), shared_embedding=True)
    experts = tiny_spec(experts=Experts(4, 2, 32, selection_bias=True, scoring="sigmoid"))
    for spec, source in ((seq2seq_spec, (7, 8, 9)), (experts, ())):
        examples = [
            TrainingExample((0, 5, *range(9, 11 + n)), (False, *(True,) * (n + 3)), str(n), source and (*source, n))
            for n in range(4)
        ]
        model = build(spec, device="meta", dtype=torch.bfloat16)
        batch = pack_examples(examples).to(torch.device("meta"))
        NextToken()({"policy": model}, batch)["next_token"].total.backward()
        assert model.embedding.weight.grad is not None


def test_a_resumed_optimizer_is_where_and_what_it_was() -> None:
    """Devices and dtypes of a loaded state are those that torch's own loading gives; the next step is the same."""
    torch.manual_seed(0)
    start = {"a": torch.randn(4, 3), "b": torch.randn(5, dtype=torch.float64)}

    def build_optimization() -> tuple[Optimization, dict[str, nn.Parameter]]:
        parameters = {name: nn.Parameter(value.clone()) for name, value in start.items()}
        return Optimization(parameters.items(), CONFIG), parameters

    def step(optimization: Optimization, parameters: dict[str, nn.Parameter], number: int) -> None:
        for parameter in parameters.values():
            parameter.grad = torch.full_like(parameter, 0.1 * number)
        optimization.step(0.1, torch.zeros(()))

    (first, ours), (second, theirs) = build_optimization(), build_optimization()
    step(first, ours, 1)
    # A file may hold the step as another number.
    saved = {name: x.double() if name.startswith("step/") else x.clone() for name, x in first.tensors().items()}
    second.load(saved)
    for name, x in first.tensors().items():
        assert (second.tensors()[name].dtype, second.tensors()[name].device) == (x.dtype, x.device), name
    step(first, ours, 2)
    step(second, theirs, 2)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
