"""The loop: exact weighting, the optimizer's arithmetic, refusals. Oracle: torch's own AdamW."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch

from bedplate.core.errors import DataError, TrainingError, UsageError
from bedplate.models.inputs import Inputs
from bedplate.training.batch import pack_examples
from bedplate.training.config import TrainConfig
from bedplate.training.loop import evaluate_loss, train
from bedplate.training.objectives.language import NextToken, Sft
from bedplate.training.objectives.objective import Term
from bedplate.training.sources import DocumentSource, ExampleSource

PLAIN = TrainConfig(learning_rate=0.01, schedule="constant", warmup=0.0, clip=None, save_seconds=None)


def _trained(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("micro_tokens", [10_000, 40, 1])
def test_micro_batches_give_the_gradient_of_the_whole_batch(
    micro_tokens, make_decoder, make_examples, tmp_path
) -> None:
    """One batch, several micro-batches, or one example each, of unequal length: the plain recipe's weights."""
    model, examples = make_decoder(), make_examples(8)
    source = ExampleSource(examples, 8, epochs=3, micro_tokens=micro_tokens)
    parts = len(next(iter(source)))
    assert {10_000: parts == 1, 40: 1 < parts < 8, 1: parts == 8}[micro_tokens]
    source = ExampleSource(examples, 8, epochs=3, micro_tokens=micro_tokens)
    train(model, source, Sft(), PLAIN.model_copy(update={"clip": 0.5}), tmp_path, model.named_parameters())
    plain = make_decoder()
    adamw = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.0)
    for _ in range(3):
        total = torch.zeros((), dtype=torch.float64)
        for e in examples:
            logs = plain.head(plain(Inputs(torch.tensor([e.ids]))).hidden[0]).log_softmax(-1)
            total = total - sum(logs[i - 1, t] for i, t in enumerate(e.ids) if e.loss[i])
        (total / sum(sum(e.loss) for e in examples)).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        adamw.step()
        adamw.zero_grad()
    for name, value in _trained(plain).items():
        torch.testing.assert_close(_trained(model)[name], value, msg=name)


def test_decay_falls_on_matrices_only(make_decoder, make_examples, tmp_path) -> None:
    model, before = make_decoder(), _trained(make_decoder())
    parameters = [(n, p) for n, p in model.named_parameters() if n in {"layers.0.attention.q.weight", "norm.weight"}]
    config = PLAIN.model_copy(update={"weight_decay": 0.5, "learning_rate": 1e-12})
    config = config.model_copy(update={"learning_rate": 1e-3, "eps": 1e9})  # eps silences the gradient's share
    train(model, ExampleSource(make_examples(4), 4), Sft(), config, tmp_path, parameters)
    after = _trained(model)
    name = "layers.0.attention.q.weight"
    torch.testing.assert_close(after[name], before[name] * (1 - 0.5 * 1e-3))
    torch.testing.assert_close(after["norm.weight"], before["norm.weight"])
    assert torch.equal(after["layers.1.attention.q.weight"], before["layers.1.attention.q.weight"])


def test_half_precision_parameters_have_float32_masters(make_decoder, make_examples, tmp_path) -> None:
    """Updates far below bfloat16's resolution add up: without masters the weights would never move."""
    model = make_decoder(torch.bfloat16)
    before = _trained(model)
    config = PLAIN.model_copy(update={"learning_rate": 2e-4})
    train(model, ExampleSource(make_examples(4), 4, epochs=40), Sft(), config, tmp_path, model.named_parameters())
    weight = before["norm.weight"]
    assert torch.equal(weight - 2e-4, weight)  # one step alone is rounded away
    assert not torch.equal(model.norm.weight, weight)


def test_what_is_not_trained_and_the_callers_settings_stay(make_decoder, make_examples, tmp_path) -> None:
    model = make_decoder().eval()
    model.embedding.weight.requires_grad_(False)
    python, numbers = random.getstate(), torch.get_rng_state()
    train(model, ExampleSource(make_examples(4), 2), Sft(), PLAIN, tmp_path, [("norm.weight", model.norm.weight)])
    assert not model.training
    assert not model.embedding.weight.requires_grad
    assert model.layers[0].attention.q.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert random.getstate() == python
    assert torch.equal(torch.get_rng_state(), numbers)


def test_metrics_and_result(make_decoder, make_examples, tmp_path) -> None:
    model, examples = make_decoder(), make_examples(5)
    config = TrainConfig(learning_rate=0.02, save_seconds=None)
    result = train(model, ExampleSource(examples, 2, epochs=8), Sft(), config, tmp_path, model.named_parameters())
    rows = [json.loads(line) for line in result.metrics_path.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 25))
    assert result.steps == 24
    assert result.examples == 40
    assert sum(row["examples"] for row in rows) == 40
    assert sum(row["targets"] for row in rows) == 8 * sum(sum(e.loss) for e in examples)
    assert sum(row["tokens"] for row in rows) == result.tokens
    assert rows[0]["learning_rate"] == config.learning_rate_at(0, 24)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["loss"] == result.losses["sft"]
    assert all(math.isfinite(row[k]) for row in rows for k in ("gradient_norm", "tokens_per_second"))


def test_evaluate_loss_weighs_batches_exactly(make_decoder, make_examples) -> None:
    model, examples = make_decoder(), make_examples(7)
    whole = Sft()({"policy": model}, pack_examples(examples))["sft"]
    batches = [pack_examples(part) for part in (examples[:1], examples[1:3], examples[3:])]
    assert evaluate_loss(model, batches, Sft())["sft"] == pytest.approx(whole.total.item() / whole.weight)
    assert model.training


def test_next_token_on_documents_learns(make_decoder, tmp_path) -> None:
    model = make_decoder(torch.float32)
    documents = [[(7 * d + 3 * i) % 61 for i in range(5 + d)] for d in range(20)]
    source = DocumentSource(documents, 16, 8, micro_rows=3, epochs=20)
    result = train(
        model, source, NextToken(), TrainConfig(learning_rate=0.01, schedule="wsd"), tmp_path, model.named_parameters()
    )
    assert result.losses["next_token"] < 1.0 < math.log(61)


class _Broken(Sft):
    def __call__(self, models, batch):
        term = super().__call__(models, batch)["sft"]
        return {"sft": Term(term.total * (math.nan if "e2" in batch.ids else 1.0), term.weight)}


def test_a_loss_that_is_not_finite_names_step_and_examples(make_decoder, make_examples, tmp_path) -> None:
    model, source = make_decoder(), ExampleSource(make_examples(4), 2)
    with pytest.raises(TrainingError, match=r"step 2: the loss is .*nan.*e2, e3"):
        train(model, source, _Broken(), PLAIN, tmp_path, model.named_parameters())


def test_a_gradient_that_is_not_finite_is_never_applied(make_decoder, make_examples, tmp_path) -> None:
    model = make_decoder()
    model.norm.weight.register_hook(lambda g: g * math.inf)
    before = _trained(model)
    with pytest.raises(TrainingError, match=r"step 1: the gradient's norm is (nan|inf), on the examples e0, e1"):
        train(model, ExampleSource(make_examples(4), 2), Sft(), PLAIN, tmp_path, model.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in _trained(model).items())


def test_refusals(make_decoder, make_examples, tmp_path) -> None:
    model, examples = make_decoder(), make_examples(4)
    long = PLAIN.model_copy(update={"steps": 9})
    stray = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(TrainingError, match="no trainable parameter received a gradient"):
        train(model, ExampleSource(examples, 2), Sft(), PLAIN, tmp_path, [("stray", stray)])
    with pytest.raises(TrainingError, match="empty"):
        train(model, ExampleSource(examples, 2), Sft(), PLAIN, tmp_path, [])
    with pytest.raises(UsageError, match="9 steps are asked for, but the source holds 2"):
        train(model, ExampleSource(examples, 2), Sft(), long, tmp_path, model.named_parameters())
    with pytest.raises(UsageError, match="role 'policy'"):
        train({}, ExampleSource(examples, 2), Sft(), PLAIN, tmp_path, model.named_parameters())
    with pytest.raises(DataError, match="no training examples"):
        ExampleSource([], 2)
    with pytest.raises(DataError, match="'e0'"):
        ExampleSource([examples[0], examples[0]], 2)
    with pytest.raises(DataError, match="context holds 5"):
        ExampleSource(examples, 2, context_length=5)


@pytest.mark.parametrize("order", ["given", "shuffled", "length"])
def test_orders_hold_every_example_once_an_epoch(order, make_examples) -> None:
    examples = make_examples(23)

    def ids(seed: int) -> list[tuple[str, ...]]:
        return [b.ids for step in ExampleSource(examples, 4, seed=seed, epochs=2, order=order) for b in step]

    flat = [id for batch in ids(0) for id in batch]
    example_ids = [e.id for e in examples]
    assert sorted(flat[:23]) == sorted(flat[23:]) == sorted(example_ids)
    assert ids(0) == ids(0)
    if order == "given":
        assert flat == example_ids * 2
        assert ids(0) == ids(1)
    else:
        assert flat[:23] != flat[23:]
        assert ids(0) != ids(1)


@pytest.mark.parametrize("at", [0, 1, 5, 6, 11])
def test_sources_go_on_where_their_state_says(at, make_examples) -> None:
    for build_source in (
        lambda: ExampleSource(make_examples(23), 4, seed=1, epochs=2, order="length"),
        lambda: DocumentSource([[1, 2, 3, 4]] * 12, 8, 1, seed=1, epochs=2),
    ):
        whole = [[b.tokens for b in step] for step in build_source()]
        first, second = build_source(), build_source()
        drawn = iter(first)
        for _ in range(at):
            next(drawn)
        second.load_state(json.loads(json.dumps(first.state())))
        remaining = [[b.tokens for b in step] for step in second]
        assert len(whole) == 12
        assert [[t.tolist() for t in step] for step in whole[at:]] == [[t.tolist() for t in step] for step in remaining]
