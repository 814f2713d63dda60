"""A weight belongs to one run at a time: a second one of the same process is refused, and changes nothing."""

from __future__ import annotations

import threading

import pytest
import torch

from bedplate.core.errors import TrainingError
from bedplate.training.config import TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives.language import Sft
from bedplate.training.precision import Arithmetic, computing
from bedplate.training.sources import ExampleSource

CONFIG = TrainConfig(learning_rate=0.01, save_seconds=None, dtype="float32")
BUSY = "another run of this process computes with these weights"


class _Waiting(Sft):
    """In its first forward pass, until it is let on."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.go_on = threading.Event(), threading.Event()

    def __call__(self, models, batch):
        self.inside.set()
        assert self.go_on.wait(60)
        return super().__call__(models, batch)


def test_two_trainings_of_one_module_do_not_interleave(make_decoder, make_examples, tmp_path) -> None:
    model, expected = make_decoder(torch.bfloat16), make_decoder(torch.bfloat16)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    objective, trained = _Waiting(), [("norm.weight", model.norm.weight)]
    first = threading.Thread(
        target=lambda: train(model, ExampleSource(make_examples(4), 2), objective, CONFIG, tmp_path / "1", trained)
    )
    first.start()
    assert objective.inside.wait(60)
    try:
        with pytest.raises(TrainingError, match=BUSY):
            train(model, ExampleSource(make_examples(4), 2), Sft(), CONFIG, tmp_path / "2", trained)
        with pytest.raises(TrainingError, match=BUSY), computing({"base": model}, Arithmetic("float32")):
            pass
        assert model.embedding.weight.dtype == torch.float32  # the first one's still
        # another module, the same moment
        with computing({"base": expected}, Arithmetic("float32")):
            assert expected.embedding.weight.dtype == torch.float32
    finally:
        objective.go_on.set()
        first.join()
    train(
        expected,
        ExampleSource(make_examples(4), 2),
        Sft(),
        CONFIG,
        tmp_path / "3",
        [("norm.weight", expected.norm.weight)],
    )
    assert not torch.equal(model.norm.weight, before["norm.weight"])
    for (name, value), expected_weight in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(value, expected_weight), name
        assert name == "norm.weight" or torch.equal(value, before[name])
    # and afterwards it is free again
    train(model, ExampleSource(make_examples(4), 2), Sft(), CONFIG, tmp_path / "2", trained)


def test_models_of_several_dtypes_keep_them(make_decoder) -> None:
    narrow, float32_model = make_decoder(torch.bfloat16), make_decoder(torch.float32)
    with computing({"policy": float32_model, "reference": narrow}, Arithmetic("float32")) as originals:
        assert originals == {}
        assert narrow.norm.weight.dtype == torch.bfloat16
