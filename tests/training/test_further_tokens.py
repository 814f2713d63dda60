"""The loss of modules that predict further tokens: each token's two places on, of documents apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.counting import Counted
from tests.tiny import tiny_spec

from bedplate.core.errors import UsageError
from bedplate.models.decoder import Decoder
from bedplate.models.inputs import Inputs
from bedplate.models.layers.attention import RowAttention
from bedplate.models.layers.experts import collect_routings
from bedplate.models.specs.transformer import Experts, TransformerSpec
from bedplate.training.batch import TrainingExample
from bedplate.training.config import RouterConfig, TrainConfig
from bedplate.training.loop import evaluate_loss, train
from bedplate.training.objectives.language import MultiTokenPrediction, NextToken
from bedplate.training.sources import DocumentSource, ExampleSource

SPEC = tiny_spec(
    vocab_size=61,
    hidden_size=32,
    layers=2,
    heads=4,
    feedforward_size=48,
    context_length=64,
    experts=Experts(4, 2, 16, first_dense=1),
    prediction_modules=2,
)
PLAIN = TrainConfig(learning_rate=0.01, schedule="constant", warmup=0.0, clip=None, save_seconds=None)


def decoder(spec: TransformerSpec = SPEC) -> Decoder:
    torch.manual_seed(0)
    return Decoder(spec, dtype=torch.float64)


def examples(count: int) -> list[TrainingExample]:
    torch.manual_seed(2)
    ids = [torch.randint(0, 61, (length,)).tolist() for length in range(4, 4 + count)]
    return [
        TrainingExample(tuple(sequence), (False, *(True,) * (len(sequence) - 1)), str(n))
        for n, sequence in enumerate(ids)
    ]


@pytest.mark.parametrize("micro_tokens", [10_000, 12, 1])
def test_it_is_the_plain_formula_however_a_step_is_cut(micro_tokens: int, tmp_path: Path) -> None:
    """Two steps against torch's AdamW on documents one by one, with an auxiliary loss of the modules' routers too."""
    config = PLAIN.model_copy(update={"router": RouterConfig(z=0.1)})
    model, documents = decoder(), examples(5)
    source = ExampleSource(documents, 5, epochs=2, micro_tokens=micro_tokens)
    train(model, source, NextToken(MultiTokenPrediction(2, 0.4)), config, tmp_path, model.named_parameters())
    plain = decoder()
    adamw = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.0)
    for _ in range(2):
        lost, counts, z, tokens = [torch.zeros(()).double() for _ in range(3)], [0, 0, 0], torch.zeros(()).double(), 0
        for document in documents:
            ids = torch.tensor([document.ids])
            read = ids[:, :-1]  # by the last prediction
            out = plain(Inputs(read))
            routings = list(out.aux)
            states = [out.hidden]
            for number, module in enumerate(plain.predictions, start=1):
                shifted = torch.cat((read[:, number:], read[:, -1:].expand(-1, min(number, read.shape[1]))), 1)
                x = plain.embedding(shifted)
                by = plain._rotations.at(torch.arange(read.shape[1])[None], x.dtype)[-1]
                joined = torch.cat((module.token_norm(x), module.state_norm(states[-1])), -1)
                with collect_routings() as pass_routings:
                    states.append(module.norm(module.block(module.join(joined), by, RowAttention(True))))
                routings += pass_routings
            for place, state in enumerate(states):
                targets = ids[0, 1 + place :]
                logits = plain.head(state[0, : len(targets)])
                lost[place] = lost[place] + F.cross_entropy(logits, targets, reduction="sum")
                counts[place] += len(targets)
            z = z + sum(routing.logits_NE.logsumexp(-1).square().sum() for routing in routings) / len(routings)
            tokens += read.shape[1]
        mean = [total / count for total, count in zip(lost, counts, strict=True)]
        (mean[0] + 0.4 * (mean[1] + mean[2]) / 2 + 0.1 * z / tokens).backward()
        adamw.step()
        adamw.zero_grad()
    for (name, ours), theirs in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


@pytest.mark.parametrize("experts", [SPEC.experts, None])
def test_pieces_of_one_document_are_told_apart(experts: Experts | None, tmp_path: Path) -> None:
    """A document longer than a row lies in several micro-batches of one step, each time under its name."""
    document, config = torch.randint(0, 61, (47,), generator=torch.Generator().manual_seed(3)), PLAIN
    config = config if experts is None else config.model_copy(update={"router": RouterConfig(balance=0.3, z=0.1)})
    trained: list[Decoder] = []
    for micro_rows in (4, 1):
        model = decoder(SPEC.with_(experts=experts))
        source = DocumentSource([document.tolist()], 12, 4, micro_rows=micro_rows, epochs=2)
        objective = NextToken(MultiTokenPrediction(2))
        train(model, source, objective, config, tmp_path / str(micro_rows), model.named_parameters())
        trained.append(model)
    torch.testing.assert_close(trained[0].state_dict(), trained[1].state_dict())


def test_what_the_batch_says_is_read_before_it_is_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step waits for nothing after its weights are known, and an evaluation only for what it gives."""
    model, objective = decoder().float(), NextToken(MultiTokenPrediction(2))
    (batches,) = ExampleSource(examples(5), 5)
    (batch,) = batches
    plain = evaluate_loss(model, [batch], objective)
    for _ in range(2):  # what is tried once, and kept, is so the first time
        objective.weights(batch)
        with monkeypatch.context() as patched, Counted() as counted:
            patched.setattr(torch.Tensor, "is_cpu", property(lambda tensor: False))
            terms = objective({"policy": model}, batch)
    assert counted.waited == 0, counted.waits
    for name, term in terms.items():
        assert float(term.total.detach()) / term.weight == pytest.approx(plain[name], rel=1e-5)


def test_a_model_without_the_modules_is_refused(make_decoder: Callable[..., Decoder], tmp_path: Path) -> None:
    model = make_decoder()
    with pytest.raises(UsageError, match="2 modules are to predict further tokens"):
        train(
            model,
            ExampleSource(examples(3), 3),
            NextToken(MultiTokenPrediction(2)),
            PLAIN,
            tmp_path,
            model.named_parameters(),
        )
