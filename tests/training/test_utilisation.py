"""Model FLOPs utilisation: counted as published, over a peak that is known or measured."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from tests.tiny import tiny_spec

from bedplate.training import step_metrics
from bedplate.training.config import TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives.language import Sft
from bedplate.training.sources import ExampleSource
from bedplate.training.step_metrics import Utilisation, measure_peak, utilisation_of

CPU = torch.device("cpu")


def test_it_is_counted_as_published() -> None:
    """6 N + 6 L H d (s + 1) for a token, with the causal half of attention (https://arxiv.org/abs/2204.02311)."""
    spec, row = tiny_spec(tied_head=False), 64
    attention = spec.hidden_size * spec.attention.head_dim * (2 * spec.attention.heads + 2 * spec.attention.kv_heads)
    block = attention + 3 * spec.hidden_size * spec.feedforward.size
    products = spec.layers * block + spec.vocab_size * spec.hidden_size
    expected_flops = 6 * products + 6 * spec.layers * spec.attention.heads * spec.attention.head_dim * (row + 1)
    utilization = utilisation_of(spec, row, CPU, "float32")
    assert utilization.flops_per_token == pytest.approx(expected_flops)
    assert utilization.source == "products in float32, measured here"
    assert utilization.share(1000, 2.0, 4) == pytest.approx(expected_flops * 1000 / (2.0 * 4 * utilization.peak))


def test_the_table_knows_a_device(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    utilization = utilisation_of(tiny_spec(), 64, torch.device("cuda", 0), "bfloat16")
    assert utilization.peak == pytest.approx(989e12, rel=0.01)
    assert utilisation_of(tiny_spec(), 64, torch.device("cuda", 0), "auto") == utilization


def test_a_measured_peak_is_one_of_a_machine() -> None:
    assert 1e8 < measure_peak(CPU, "float32") < 1e16


def test_a_product_that_takes_long_is_measured_once(monkeypatch) -> None:
    """A processor without arithmetic of its own for the dtype takes seconds for each."""
    readings = itertools.count()
    monkeypatch.setattr(step_metrics, "time", SimpleNamespace(perf_counter=lambda: float(next(readings))))
    assert measure_peak(CPU, "float32") == 2 * 1024**3
    assert next(readings) == 4


def test_a_measured_peak_that_is_no_rate_is_measured_again(own_machine, monkeypatch) -> None:
    monkeypatch.setattr(step_metrics, "measure_peak", lambda *_: 1e9)
    assert step_metrics.peak_of(CPU, "float32")[0] == 1e9
    (file,) = (own_machine / "machine").glob("peak-*.json")
    for damage in ("0", "-1", "NaN", "Infinity", '"x"', "[]"):
        file.write_text(file.read_text().replace("1000000000.0", damage))
        assert step_metrics.peak_of(CPU, "float32")[0] == 1e9


def test_lines_say_it(make_decoder, make_examples, tmp_path) -> None:
    model = make_decoder()
    config, utilization = TrainConfig(learning_rate=0.01, save_seconds=None), Utilisation(1e6, 1e12, "told")
    source = ExampleSource(make_examples(4), 2)
    train(model, source, Sft(), config, tmp_path, model.named_parameters(), utilisation=utilization)
    for row in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()):
        assert row["mfu"] == pytest.approx(row["tokens_per_second"] * 1e6 / 1e12)


@pytest.mark.slow
def test_compiled_blocks_learn_the_same(make_decoder, make_examples, tmp_path) -> None:
    losses = []
    for compiled in (False, True):
        model = make_decoder(torch.float32)
        config = TrainConfig(learning_rate=0.01, save_seconds=None, compile=compiled)
        source, out = ExampleSource(make_examples(8), 4, share_prefix=False), tmp_path / str(compiled)
        losses.append(train(model, source, Sft(), config, out, model.named_parameters()).losses["sft"])
        assert all(block._compiled_call_impl is None for block in model.layers)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
