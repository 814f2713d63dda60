"""Losses made piece by piece: those of all positions at once, and so are all gradients. Oracle: torch's autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import tiny_spec

from bedplate.core.errors import UsageError
from bedplate.models.decoder import Decoder
from bedplate.models.specs.transformer import Scales
from bedplate.training.batch import NO_TARGET
from bedplate.training.objectives.token_term import summed_losses, token_losses

SPEC = tiny_spec(vocab_size=61, hidden_size=16, heads=2, layers=1, feedforward_size=24, scales=Scales(logit_cap=5.0))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 7, 20])
def test_gradients_are_those_of_all_at_once(tied, rows) -> None:
    torch.manual_seed(0)
    model = Decoder(SPEC.with_(tied_head=tied), dtype=torch.float64)
    base, targets = torch.randn(20, 16, dtype=torch.float64), torch.randint(0, 61, (20,))
    results = []
    for size in (rows, 100):
        model.zero_grad()
        states = base.clone().requires_grad_()
        loss = token_losses(model, states * 2, targets, size) / 3.0
        loss.backward()
        table = model.embedding.weight if model.lm_head is None else model.lm_head.weight
        assert table.grad is not None
        results.append((loss.detach(), states.grad, table.grad.clone()))
        assert model.norm.weight.grad is None
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(token_losses(model, base * 2, targets, rows) / 3.0, results[0][0])


@pytest.mark.parametrize(("dtype", "off"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_cross_entropy_is_torchs_own(dtype: torch.dtype, off: float, share: float) -> None:
    torch.manual_seed(0)
    model = Decoder(SPEC, dtype=dtype)
    states, targets = 40 * torch.randn(9, 16, dtype=dtype), torch.randint(0, 61, (9,))
    results = []
    for in_pieces in (True, False):
        model.zero_grad()
        hidden = states.clone().requires_grad_()
        if in_pieces:
            loss = token_losses(model, hidden, targets)
        else:
            logits = model.head(hidden).to(torch.promote_types(dtype, torch.float32))
            loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        (loss * share).backward()
        results.append((loss.detach(), hidden.grad, model.embedding.weight.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=off, atol=off)


@pytest.mark.parametrize("rows", [4, 100])
@pytest.mark.parametrize("ignored", [(0, 4, 5, 6, 7, 8), (3,), tuple(range(9))])
def test_what_has_no_target_adds_nothing_as_in_torch(rows: int, ignored: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = Decoder(SPEC, dtype=torch.float64)
    states, targets = torch.randn(9, 16, dtype=torch.float64), torch.randint(0, 61, (9,))
    targets[list(ignored)] = NO_TARGET
    results = []
    for in_pieces in (True, False):
        model.zero_grad()
        hidden = states.clone().requires_grad_()
        if in_pieces:
            loss = token_losses(model, hidden, targets, rows)
        else:
            loss = torch.nn.functional.cross_entropy(model.head(hidden), targets, reduction="sum")
        loss.backward()
        results.append((loss.detach(), hidden.grad, model.embedding.weight.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(token_losses(model, states, targets, rows), results[1][0])


def test_a_target_that_is_no_token_is_refused() -> None:
    states, targets = torch.randn(3, 16, requires_grad=True), torch.tensor([1, -5, 2])
    with pytest.raises(RuntimeError, match="index -5 is out of bounds"):
        token_losses(Decoder(SPEC), states, targets)


@pytest.mark.parametrize("rows", [4, 100])
def test_gradients_are_computed_once(rows: int) -> None:
    torch.manual_seed(0)
    model, targets = Decoder(SPEC), torch.randint(0, 61, (9,))
    states = torch.randn(9, 16, requires_grad=True)
    loss = token_losses(model, states, targets, rows)
    loss.backward(retain_graph=True)
    with pytest.raises(UsageError, match=r"were computed already.*compute the loss again"):
        loss.backward()
    loss = token_losses(model, states, targets, rows)
    with pytest.raises(UsageError, match="no gradients of its gradients: leave create_graph out"):
        torch.autograd.grad(loss, states, create_graph=True)


def test_a_frozen_head_has_no_gradient() -> None:
    torch.manual_seed(0)
    model = Decoder(SPEC)
    model.requires_grad_(False)
    states, targets = torch.randn(9, 16), torch.randint(0, 61, (9,))
    assert not token_losses(model, states, targets, 4).requires_grad
    gradients = []
    for rows in (4, 100):
        hidden = states.clone().requires_grad_()
        token_losses(model, hidden, targets, rows).backward()
        gradients.append(hidden.grad)
    torch.testing.assert_close(*gradients)
    assert model.embedding.weight.grad is None


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 14))
def test_any_cut_gives_the_sum(count: int, rows: int) -> None:
    x, weight = torch.linspace(0.1, 1, count)[:, None].requires_grad_(), torch.tensor(2.0, requires_grad=True)
    total = summed_losses(lambda s, t: (s.sin() * weight).sum() + t.sum(), x, torch.zeros(count), rows)
    total.backward()
    torch.testing.assert_close(total.detach(), (2 * x.detach().sin()).sum())
    torch.testing.assert_close(x.grad, 2 * x.detach().cos())
    torch.testing.assert_close(weight.grad, x.detach().sin().sum())
