"""Training of the whole model on full rows: our loop beside a plain one in torchtitan's manner (a compiled model, flash
attention by torch, fused AdamW), from the same weights on the same rows. The first losses must agree."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from results import Check, Part, Skipped, Speed
from shapes import prompts, random_llama
from torch import Tensor

from bedplate.models.checkpoints.base import load_base
from bedplate.training.batch import PackedBatch
from bedplate.training.config import TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives.language import NextToken
from bedplate.training.sources import DocumentSource

STEPS, WARM = 12, 4
RATE = 1e-5


class Timed(DocumentSource):
    """Notes when each step is drawn, which is after the one before was read back, and its tokens."""

    times: list[float]
    drawn: list[Tensor]

    def __iter__(self) -> Iterator[tuple[PackedBatch, ...]]:
        self.times, self.drawn = [], []
        for batches in super().__iter__():
            self.times.append(time.perf_counter())
            self.drawn.append(torch.cat([batch.tokens.reshape(-1) for batch in batches]))
            yield batches


def main() -> None:
    part = Part()
    rows, length = (2, 32) if part.small else (4, 2048)
    place = random_llama(part.models, part.small, part.device)
    vocabulary = json.loads((place / "config.json").read_text("utf-8"))["vocab_size"]
    documents = prompts(rows * STEPS, length, vocabulary, 0)
    speed, losses, drawn = ours(part, place, documents, rows, length)
    name = f"{place.name}: whole model, {rows} × {length}"
    part.add(Speed(name, speed, "tokens/s", note="ours alone"))
    gc.collect()
    if part.device.startswith("cuda"):
        torch.cuda.empty_cache()
    if part.seconds < 60 and not part.small:
        part.add(Skipped("the plain loop", f"{part.seconds:.0f} s were left"))
        return
    theirs, their_losses = plain(part, place, [batch.view(rows, length) for batch in drawn])
    part.add(Speed(name, speed, "tokens/s", theirs, "plain loop, compiled"))
    loss_gap = abs(losses[0] - their_losses[0]) / their_losses[0]
    part.add(Check("first loss beside the plain loop's, relative", loss_gap, 1e-4 if part.small else 1e-2))


def ours(
    part: Part, place: Path, documents: list[list[int]], rows: int, length: int
) -> tuple[float, list[float], list[Tensor]]:
    """Tokens per second, the losses, and the tokens of each step."""
    dtype = "float32" if part.small else "bfloat16"
    base = load_base(place, dtype=dtype, device=part.device)
    base.model.requires_grad_(True).train()
    source = Timed(documents, length, rows, method="sequential")
    config = TrainConfig(
        learning_rate=RATE, schedule="constant", warmup=0.0, save_seconds=None, dtype=dtype, steps=STEPS
    )
    out = part.models / f"run-{time.time_ns()}"
    result = train(base.model, source, NextToken(), config, out, base.model.named_parameters())
    steps = [b - a for a, b in zip(source.times[WARM:], source.times[WARM + 1 :], strict=False)]
    lines = [json.loads(line) for line in result.metrics_path.read_text("utf-8").splitlines()]
    losses = [next(value for name, value in line.items() if name.startswith("loss")) for line in lines]
    return rows * length / statistics.median(steps), losses, source.drawn


def plain(part: Part, place: Path, drawn: list[Tensor]) -> tuple[float, list[float]]:
    """The same by transformers' model, compiled, and torch's own optimizer; master weights in float32, products in
    bfloat16."""
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        place, dtype=torch.float32, attn_implementation="sdpa"
    ).to(part.device)
    model.train()
    compiled = torch.compile(model, backend="eager" if part.small else "inductor")
    on_device = part.device.startswith("cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=on_device)
    batches = [batch.to(part.device) for batch in drawn]
    ends, losses = list[float](), list[float]()
    for batch_BT in batches:
        with torch.autocast(torch.device(part.device).type, torch.bfloat16, enabled=not part.small):
            hidden_BTD = compiled.model(input_ids=batch_BT, use_cache=False).last_hidden_state
            loss = _loss(model.lm_head, hidden_BTD, batch_BT)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss))
        ends.append(time.perf_counter())
    steps = [b - a for a, b in zip(ends[WARM - 1 :], ends[WARM:], strict=False)]
    return batches[0].numel() / statistics.median(steps), losses


def _loss(head: Any, hidden_BTD: Tensor, batch_BT: Tensor) -> Tensor:
    logits_NV = head(hidden_BTD[:, :-1]).flatten(0, 1)
    return F.cross_entropy(logits_NV.float(), batch_BT[:, 1:].flatten())


if __name__ == "__main__":
    main()
