"""Routers in training: exact under every cut of a step, balanced by a loss or by a bias. Oracle: transformers' loss."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny import tiny_spec
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from bedplate.core.errors import UsageError
from bedplate.models.decoder import Decoder
from bedplate.models.inputs import Inputs
from bedplate.models.layers.experts import Router
from bedplate.models.specs.transformer import Experts
from bedplate.training.batch import MicroBatch, TrainingExample, pack_examples
from bedplate.training.config import RouterConfig, TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives.contrastive import Crops, TextPair, pack_pairs
from bedplate.training.objectives.language import Sft
from bedplate.training.objectives.objective import CorruptedSource, CorruptionVocabulary, documents_of
from bedplate.training.ranks import ALONE, Ranks
from bedplate.training.routers import Routers
from bedplate.training.sources import DocumentSource, ExampleSource

SPEC = tiny_spec(
    vocab_size=61,
    hidden_size=32,
    layers=3,
    heads=4,
    feedforward_size=48,
    context_length=64,
    experts=Experts(6, 2, 24, first_dense=1, selection_bias=True, scoring="sigmoid", scale=1.5),
)
PLAIN = TrainConfig(learning_rate=0.01, schedule="constant", warmup=0.0, clip=None, save_seconds=None)
ExampleFactory = Callable[..., list[TrainingExample]]


def decoder(seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(SPEC, dtype=torch.float64)


def biases(model: Decoder) -> list[torch.Tensor]:
    selection_biases = [module.selection_bias for module in model.modules() if isinstance(module, Router)]
    return [bias.clone() for bias in selection_biases if bias is not None]


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_auxiliary_loss_of_a_document_is_that_of_transformers(make_examples: ExampleFactory) -> None:
    examples = make_examples(3)  # which share their beginning
    assert_transformers_loss(pack_examples(examples), [example.ids[: example.last_loss] for example in examples])


@pytest.mark.parametrize("negatives", [0, 2])
def test_so_is_that_of_pairs_of_texts(negatives: int) -> None:
    """More texts than the batch has names."""
    draw = random.Random(0)
    texts = [tuple(draw.randrange(61) for _ in range(draw.randint(1, 9))) for _ in range(4 * (2 + negatives))]
    pairs = [TextPair(texts[n], texts[n + 4], str(n), tuple(texts[n + 8 :: 4])) for n in range(4)]
    assert_transformers_loss(pack_pairs(pairs), texts)


def test_so_is_that_of_crops(tmp_path: Path) -> None:
    draw = random.Random(0)
    documents = [[draw.randrange(61) for _ in range(draw.randint(4, 30))] for _ in range(5)]
    tokenizer: Any = SimpleNamespace(prompt_start=(), prompt_end=(), eos_id=None)
    rows, objective = DocumentSource(documents, 160, 1), Crops()
    [[batch]] = CorruptedSource(rows, objective, CorruptionVocabulary(tokenizer, 61), seed=0)
    assert_transformers_loss(batch, [tuple(ids.tolist()) for _, ids in documents_of(batch)])
    model, config = decoder(), PLAIN.model_copy(update={"router": RouterConfig(balance=0.3)})
    source = CorruptedSource(DocumentSource(documents, 160, 1), objective, CorruptionVocabulary(tokenizer, 61), seed=0)
    train(model, source, objective, config, tmp_path, model.named_parameters())
    assert lines(tmp_path)[-1]["router/balance/1"] >= 2


def assert_transformers_loss(batch: MicroBatch, read: Sequence[Sequence[int]]) -> None:
    """The batch's auxiliary loss is that of these documents one by one."""
    model = Decoder(SPEC.with_(experts=Experts(6, 2, 24)), dtype=torch.float64)
    expected = torch.zeros(SPEC.layers)
    for ids in read:
        routings = model(Inputs(torch.tensor([ids]))).aux
        losses = [load_balancing_loss_func((routing.logits_NE.float(),), 6, 2) for routing in routings]
        expected += len(ids) * torch.stack([torch.as_tensor(loss) for loss in losses])
    routers = Routers.of(model, RouterConfig(balance=0.5), model.parameters())
    assert routers is not None
    assert routers.weights(batch) == {"router": sum(map(len, read))}
    [term] = routers.terms(model(batch.inputs).aux, batch).values()
    balances = torch.stack([term.metrics[f"balance/{layer}"] for layer in range(SPEC.layers)])
    torch.testing.assert_close(balances.float(), expected)
    torch.testing.assert_close(term.total.float(), 0.5 * expected.mean())
    assert float(sum(term.metrics[f"load/{e}"] for e in range(6))) == pytest.approx(term.weight)


def test_a_step_is_the_same_however_it_is_cut(make_examples: ExampleFactory, tmp_path: Path) -> None:
    """Weights, biases and what is written of the routers: whole, in micro-batches, one example each; resumed."""
    config = PLAIN.model_copy(update={"router": RouterConfig(balance=0.3, z=0.1, bias_rate=0.05), "save_steps": 1})
    outcomes: list[tuple[Decoder, list[dict[str, float]]]] = []
    for micro_tokens in (10_000, 40, 1):
        model, out = decoder(), tmp_path / str(micro_tokens)
        source = ExampleSource(make_examples(8), 8, epochs=3, micro_tokens=micro_tokens)
        train(model, source, Sft(), config, out, model.named_parameters())
        outcomes.append((model, lines(out)))
    out = tmp_path / "resumed"

    class Stopped(Exception):
        pass

    def stop(step: int, models: object) -> None:
        if step == 2:
            raise Stopped

    for on_checkpoint in (stop, None):
        model = decoder()
        source = ExampleSource(make_examples(8), 8, epochs=3, micro_tokens=40)
        try:
            train(model, source, Sft(), config, out, model.named_parameters(), on_checkpoint)
        except Stopped:
            continue
    outcomes.append((model, lines(out)))
    first, written = outcomes[0]
    assert any(bias.any() for bias in biases(first))
    assert all(bias.abs().max() <= 3 * 0.05 + 1e-6 for bias in biases(first))
    names = [name for name in written[0] if name.startswith(("router/", "loss"))]
    assert {"router/balance/2", "router/load/5", "router/entropy", "router/z", "loss/router"} <= set(names)
    for variant, lines_ in outcomes[1:]:
        for (name, ours), theirs in zip(first.state_dict().items(), variant.state_dict().values(), strict=True):
            torch.testing.assert_close(ours, theirs, msg=name)
        for a, b in zip(written, lines_, strict=True):
            assert [a[name] for name in names] == pytest.approx([b[name] for name in names])


@pytest.mark.parametrize("how", [{"balance": 0.3}, {"bias_rate": 0.02}])
def test_balancing_shares_out_the_experts_work(
    how: dict[str, float], make_examples: ExampleFactory, tmp_path: Path
) -> None:
    heaviest: list[float] = []
    for number, router in enumerate((RouterConfig(), RouterConfig(**how))):
        model, out = decoder(3), tmp_path / str(number)
        config = PLAIN.model_copy(update={"router": router, "learning_rate": 2e-3})
        source = ExampleSource(make_examples(12, prefix=0), 12, epochs=15)
        train(model, source, Sft(), config, out, model.named_parameters())
        last = lines(out)[-1]
        heaviest.append(max(last[f"router/balance/{layer}"] for layer in (1, 2)))
    assert heaviest[1] < heaviest[0] - 0.01, "2 is the least that two experts a token can have"


def test_the_bias_moves_against_the_load_of_all_ranks(make_examples: ExampleFactory) -> None:
    model = decoder()
    batch = pack_examples(make_examples(4))

    class WithOthers(Ranks):
        def device_sum(self, local: torch.Tensor) -> torch.Tensor:
            return local + torch.tensor([1000.0, *[0.0] * 5])

    for ranks, void in ((ALONE, 0.0), (WithOthers(), 0.0), (ALONE, 1.0)):
        for bias in [m.selection_bias for m in model.modules() if isinstance(m, Router)]:
            assert bias is not None
            bias.zero_()
        routers = Routers.of(model, RouterConfig(bias_rate=0.5), model.parameters(), ranks)
        assert routers is not None
        routers.weights(batch)
        routings = model(batch.inputs).aux
        routers.terms(routings, batch)
        routers.step(torch.tensor(void))
        for routing, bias in zip(routings, biases(model), strict=True):
            shared = (batch.segments.reshape(-1) == 0).long() * (len(batch.ids) - 1)
            token_weights = (shared + 1).repeat_interleave(2).double()
            counts = torch.bincount(routing.chosen_Nk.flatten(), token_weights, minlength=6)
            counts[0] += 1000.0 if ranks is not ALONE else 0.0
            torch.testing.assert_close(bias, ((counts.mean() - counts).sign() * 0.5 * (1 - void)).float())


def test_what_cannot_be_balanced_is_refused(make_examples: ExampleFactory, tmp_path: Path) -> None:
    dense, experts = Decoder(SPEC.with_(experts=None)), Decoder(SPEC.with_(experts=Experts(4, 2, 8)))
    balanced, biased = RouterConfig(balance=0.1), RouterConfig(bias_rate=0.1)
    with pytest.raises(UsageError, match="this one has none"):
        Routers.of(dense, balanced, dense.parameters())
    assert Routers.of(dense, RouterConfig(), dense.parameters()) is None
    with pytest.raises(UsageError, match="needs routers with a selection bias"):
        Routers.of(experts, biased, experts.parameters())
    with pytest.raises(UsageError, match="changes the base, of which this run trains nothing"):
        Routers.of(decoder(), biased, [torch.nn.Parameter(torch.zeros(1))])
