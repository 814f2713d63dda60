"""The same training step in Bedplate and in peft: models, examples, padded batches, the mean loss."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn

from bedplate.models.build import build
from bedplate.models.decoder import Decoder
from bedplate.models.families import FAMILIES
from bedplate.training.batch import TrainingExample

LLAMA = FAMILIES[("hf", "llama")]


def ours(reference: Any) -> Decoder:
    model = build(LLAMA.to_spec(reference.config.to_dict()))
    model.load_state_dict({LLAMA.weights.from_external(k): v for k, v in reference.state_dict().items()}, strict=False)
    assert isinstance(model, Decoder)
    return model.to(reference.dtype).requires_grad_(False).eval()


def examples(seed: int, count: int = 4, shared: int = 5) -> list[TrainingExample]:
    """Of several lengths, with a beginning that all share, and one to three tokens to learn."""
    draw = random.Random(seed)
    begin = [draw.randrange(97) for _ in range(shared)]
    generated: list[TrainingExample] = []
    for i in range(count):
        ids = (*begin, *(draw.randrange(97) for _ in range(draw.randint(4, 12))))
        learned = draw.randint(1, 3)
        generated.append(TrainingExample(ids, (False,) * (len(ids) - learned) + (True,) * learned, f"{seed}/{i}"))
    return generated


def padded(training_examples: list[TrainingExample]) -> dict[str, torch.Tensor]:
    """The same examples as peft takes them."""
    width = max(len(e.ids) for e in training_examples)
    rows = [(width - len(e.ids), e) for e in training_examples]
    ids = torch.tensor([[*e.ids, *[0] * room] for room, e in rows])
    mask = torch.tensor([[*[1] * len(e.ids), *[0] * room] for room, e in rows])
    labels = [[i if on else -100 for i, on in zip(e.ids, e.loss, strict=True)] + [-100] * room for room, e in rows]
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(labels)}


def loss_of(theirs: Any, training_examples: list[TrainingExample], virtual: int = 0) -> torch.Tensor:
    """Mean over the tokens to learn, `virtual` positions standing before them; transformers' own loss is rounded to
    float32."""
    batch = padded(training_examples)
    labels = batch.pop("labels")
    logits = theirs(**batch).logits[:, virtual:]
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
