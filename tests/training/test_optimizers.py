"""Muon, cautious decay, rates by kind, averages. Oracles: torch's own Muon, AdamW and averaged models."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bedplate.core.errors import TrainingError
from bedplate.training.config import MuonConfig, Rates, TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives.language import Sft
from bedplate.training.optimizers import Optimization, averaged, classify_parameters, orthogonalised
from bedplate.training.ranks import ALONE
from bedplate.training.sources import ExampleSource
from bedplate.training.state import StateFile

NO, YES = torch.zeros(()), torch.ones(())
PLAIN = TrainConfig(learning_rate=0.02, schedule="constant", warmup=0.0, clip=None, save_seconds=None)


def build_optimization(shapes, config, dtype=torch.float64, category="matrix"):
    torch.manual_seed(0)
    parameters = {f"p{i}": nn.Parameter(torch.randn(shape, dtype=dtype)) for i, shape in enumerate(shapes)}
    categories = {id(p): category for p in parameters.values()}
    return parameters, Optimization(parameters.items(), config, None, categories)


def steps(parameters, optimization, count=3, void=NO, seed=1):
    torch.manual_seed(seed)
    for _ in range(count):
        for p in parameters.values():
            p.grad = torch.randn_like(p)
        optimization.collect()
        optimization.step(0.02, void)


@pytest.mark.parametrize(("scale", "theirs"), [("adamw", "match_rms_adamw"), ("original", "original")])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_that_of_torch(scale, theirs, nesterov) -> None:
    """torch's works in bfloat16 whatever it is given, and so does ours for bfloat16 parameters with their masters."""
    shapes = [(24, 16), (16, 24), (24, 16)]
    muon_config = MuonConfig(scale=scale, nesterov=nesterov, orthogonalisation="newton_schulz", momentum=0.9)
    config = TrainConfig(optimizer="muon", muon=muon_config, weight_decay=0.1, clip=None)
    parameters, optimization = build_optimization(shapes, config, torch.bfloat16)
    plain = [nn.Parameter(p.detach().float()) for p in parameters.values()]
    muon = torch.optim.Muon(
        plain, lr=0.02, weight_decay=0.1, momentum=0.9, nesterov=nesterov, adjust_lr_fn=theirs, ns_steps=5
    )
    torch.manual_seed(1)
    for _ in range(3):
        grads = [torch.randn_like(p, dtype=torch.bfloat16) for p in plain]
        for p, q, grad in zip(parameters.values(), plain, grads, strict=True):
            p.grad, q.grad = grad.clone(), grad.float()
        optimization.collect()
        optimization.step(0.02, NO)
        muon.step()
    start = dict(build_optimization(shapes, config, torch.bfloat16)[0])
    for (name, master), q in zip(optimization._masters.items(), plain, strict=True):
        moved = (q - start[name]).norm()
        assert (master - q).norm() < 0.05 * moved, "bfloat16's own noise"


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 3), st.integers(0, 1000))
def test_orthogonalised_matrices_keep_their_directions(rows, columns, stacked, seed) -> None:
    """The polar factor, of which the oracle is the singular value decomposition."""
    generator = torch.Generator().manual_seed(seed)
    shape = (*((stacked,) if stacked else ()), rows, columns)
    rank = min(rows, columns)
    left, right = (torch.randn(*shape[:-2], n, rank, generator=generator, dtype=torch.float64) for n in (rows, columns))
    left, right = torch.linalg.qr(left).Q, torch.linalg.qr(right).Q
    values = 0.05 + torch.rand(*shape[:-2], rank, generator=generator, dtype=torch.float64)
    x = (left * values[..., None, :]) @ right.mT
    # What the polynomials make of any number between 0.003 and 1, by themselves.
    for how, low, high in (("polar_express", 0.85, 1.15), ("newton_schulz", 0.68, 1.21)):
        polar = orthogonalised(x, how, 5)
        ours = left.mT @ polar @ right
        spread = torch.diagonal(ours, dim1=-2, dim2=-1)
        assert ((spread > low) & (spread < high)).all(), (how, spread)
        torch.testing.assert_close(left @ ours @ right.mT, polar)
        torch.testing.assert_close(torch.diag_embed(spread), ours)


def test_experts_are_matrices_of_their_own() -> None:
    config = TrainConfig(optimizer="muon", clip=None)
    whole, together = build_optimization([(3, 8, 6)], config)
    separate = {f"e{i}": nn.Parameter(expert.detach().clone()) for i, expert in enumerate(whole["p0"])}
    alone = Optimization(separate.items(), config, None, {id(p): "matrix" for p in separate.values()})
    torch.manual_seed(1)
    grad = torch.randn(3, 8, 6, dtype=torch.float64)
    whole["p0"].grad = grad.clone()
    for p, expert_grad in zip(separate.values(), grad, strict=True):
        p.grad = expert_grad.clone()
    together.step(0.1, NO)
    alone.step(0.1, NO)
    torch.testing.assert_close(whole["p0"].detach(), torch.stack([p.detach() for p in separate.values()]))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("cautious", [False, True])
def test_a_void_step_changes_nothing(optimizer, cautious) -> None:
    config = TrainConfig(optimizer=optimizer, weight_decay=0.1, cautious_decay=cautious, ema=0.9)
    parameters, optimization = build_optimization([(6, 4), (4, 4)], config)
    steps(parameters, optimization)
    before = {name: x.clone() for name, x in optimization.tensors().items()}
    for p in parameters.values():
        p.grad = torch.full_like(p, torch.nan)
    optimization.step(0.02, YES)
    assert all(torch.equal(x, before[name]) for name, x in optimization.tensors().items())
    assert all(p.grad is None for p in parameters.values())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_cautious_decay_falls_where_the_update_goes_the_same_way(optimizer) -> None:
    plain = TrainConfig(optimizer=optimizer, weight_decay=0.0)
    decayed = plain.model_copy(update={"weight_decay": 0.3, "cautious_decay": True})
    (free, first), (decaying, second) = build_optimization([(6, 4)], plain), build_optimization([(6, 4)], decayed)
    start = decaying["p0"].detach().clone()
    steps(free, first, 1)
    steps(decaying, second, 1)
    moved = free["p0"].detach() - start
    expected = free["p0"].detach() - torch.where(moved * start < 0, 0.02 * 0.3 * start, 0)
    torch.testing.assert_close(decaying["p0"].detach(), expected)
    assert 0 < (moved * start < 0).sum() < start.numel()


def test_rates_and_kinds(make_decoder) -> None:
    """Each kind's first step of AdamW is its rate long: Adam's update is ±1 then."""
    model = make_decoder()
    categories = classify_parameters(model.modules())
    names = {name: categories.get(id(p), "other") for name, p in model.named_parameters()}
    assert names["embedding.weight"] == "embedding"
    assert names["layers.0.attention.q.weight"] == names["layers.1.feedforward.down.weight"] == "matrix"
    assert names["norm.weight"] == names["layers.0.attention_norm.weight"] == "other"
    config = TrainConfig(rates=Rates(embedding=3.0, matrix=0.5, other=2.0, head=7.0), clip=None)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimization = Optimization(model.named_parameters(), config, None, categories)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimization.step(0.01, NO)
    rates = {"embedding": 3.0, "matrix": 0.5, "other": 2.0, "head": 7.0}
    for name, p in model.named_parameters():
        torch.testing.assert_close(start[name] - p.detach(), torch.full_like(p, 0.01 * rates[names[name]]))


def test_an_untied_head_is_no_matrix() -> None:
    from tests.tiny import tiny_spec

    from bedplate.models.decoder import Decoder
    from bedplate.models.specs.transformer import Experts

    model = Decoder(tiny_spec(tied_head=False, experts=Experts(4, 2, 8)))
    categories = classify_parameters(model.modules())
    names = {name: categories.get(id(p), "other") for name, p in model.named_parameters()}
    assert names["lm_head.weight"] == "head"
    assert names["layers.0.feedforward.experts.gate_up.weight"] == "matrix"
    assert names["layers.0.feedforward.router.weight"] == "other"


def test_the_average_is_torchs() -> None:
    parameters, optimization = build_optimization([(6, 4), (3, 3)], TrainConfig(ema=0.8))
    copies = nn.ParameterDict({name: nn.Parameter(p.detach().clone()) for name, p in parameters.items()})
    oracle = AveragedModel(copies, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    oracle.update_parameters(copies)
    for seed in range(4):
        steps(parameters, optimization, 1, seed=seed)
        with torch.no_grad():
            for name, p in parameters.items():
                copies[name].copy_(p)
        oracle.update_parameters(copies)
    tensors = optimization.tensors()
    for name in parameters:
        torch.testing.assert_close(tensors[f"average/{name}"], oracle.module[name].detach())
    with averaged(tensors, parameters.items(), ALONE):
        assert torch.equal(parameters["p0"], tensors["average/p0"])
    assert torch.equal(parameters["p0"], tensors["parameter/p0"])
    with (
        pytest.raises(TrainingError, match="no average of 'p0'"),
        averaged({"parameter/p0": NO}, parameters.items(), ALONE),
    ):
        pass


def stop(step: int, _: object) -> None:
    if step == 2:
        raise InterruptedError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_with_everything_resumes_bit_by_bit(dtype, make_decoder, make_examples, tmp_path) -> None:
    config = TrainConfig(
        learning_rate=0.01,
        optimizer="muon",
        ema=0.9,
        weight_decay=0.1,
        cautious_decay=True,
        rates=Rates(embedding=0.5),
        save_steps=2,
        save_seconds=None,
    )

    def run(out, on_checkpoint=None):
        model = make_decoder(dtype)
        source = ExampleSource(make_examples(8), 2, order="shuffled", epochs=2)
        train(model, source, Sft(), config, out, model.named_parameters(), on_checkpoint)
        store = StateFile(out)
        return store.load(8).tensors

    expected = run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(tmp_path / "parts", stop)
    resumed = run(tmp_path / "parts")
    assert expected.keys() == resumed.keys()
    assert {name.split("/")[0] for name in resumed} >= {"parameter", "momentum", "exp_avg", "average"}
    assert all(torch.equal(x, resumed[name]) for name, x in expected.items())


def test_what_is_not_asked_for_is_not_named() -> None:
    """States of earlier versions are resumed."""
    late = {"optimizer", "muon", "rates", "cautious_decay", "ema", "guard"}
    assert not late & PLAIN.numbers().keys()
    assert PLAIN.model_copy(update={"ema": 0.9}).numbers()["ema"] == 0.9
