"""A run of ours against transformers' model and torch's own AdamW and clipping, on the same rows: the loss of each step
and the weights at the end, in float64 (the reference norms in float32), however its passes are cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.near import assert_near
from tests.references import reference_llama

from bedplate.core.files import read_jsonl
from bedplate.models.checkpoints.base import load_base
from bedplate.training.config import TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives import token_term
from bedplate.training.objectives.language import NextToken
from bedplate.training.sources import DocumentSource

LENGTH, ROWS = 40, 6
CLIP = 0.5
CONFIG = TrainConfig(learning_rate=3e-3, weight_decay=0.1, clip=CLIP, save_seconds=None)


def source(micro_rows: int) -> DocumentSource:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 97, (LENGTH,), generator=generator).tolist() for _ in range(4 * ROWS)]
    return DocumentSource(rows, LENGTH, ROWS, micro_rows=micro_rows, epochs=2)


def reference_losses(model: torch.nn.Module) -> list[float]:
    decayed = [p for p in model.parameters() if p.dim() > 1]
    undecayed = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": CONFIG.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(CONFIG.beta1, CONFIG.beta2), eps=CONFIG.eps)
    steps, losses = list(source(ROWS)), []
    for number, (batch,) in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = CONFIG.learning_rate_at(number, len(steps))
        logits = model(batch.tokens).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), batch.tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("piece", "micro_rows"), [(token_term.PIECE, ROWS), (500, 4)])
def test_a_run_learns_what_the_reference_learns(
    piece: int, micro_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_term, "PIECE", piece)
    reference = reference_llama(0).double()
    reference.save_pretrained(tmp_path / "reference")
    ours = load_base(tmp_path / "reference", "float64", "cpu").model
    result = train(ours, source(micro_rows), NextToken(), CONFIG, tmp_path / "run", ours.named_parameters())
    losses = reference_losses(reference)
    assert losses[0] - losses[-1] > 0.1
    assert [row["loss"] for row in read_jsonl(result.metrics_path)] == pytest.approx(losses, rel=1e-6)
    reference.save_pretrained(tmp_path / "learned")
    theirs = load_base(tmp_path / "learned", "float64", "cpu").model
    for (name, parameter), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_near(parameter, expected, 1e-4, name)
