"""What a run computes in: chosen by measurement, kept by a resumed run, never left behind in the base."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_spec

from bedplate.adapters.bank import Bank
from bedplate.adapters.lora import LoraConfig
from bedplate.core.errors import TrainingError, UsageError
from bedplate.core.measurements import Allowance
from bedplate.models.decoder import Decoder
from bedplate.models.layers.linear import Linear, has_onednn
from bedplate.training import precision
from bedplate.training import precision as arithmetics
from bedplate.training.config import TrainConfig
from bedplate.training.loop import train
from bedplate.training.objectives.language import Sft
from bedplate.training.precision import Arithmetic, by_turns, candidates, choose, measured
from bedplate.training.sources import ExampleSource
from bedplate.training.state import StateFile

pytestmark = pytest.mark.usefixtures("own_machine")

BF16, F32, ONEDNN = Arithmetic("bfloat16"), Arithmetic("float32"), Arithmetic("float32", "onednn")
CONFIG = TrainConfig(learning_rate=0.01, save_seconds=None)
CPU = torch.device("cpu")


def lora_run(model: Decoder, examples, out: Path, config: TrainConfig = CONFIG, steps: int | None = None):
    """An adapter trained on all linears: what the run says, its losses, its tensors."""
    bank = Bank(model)
    slot = bank.add(LoraConfig(r=4, alpha=8.0))
    bank.select(slot)
    source = ExampleSource(examples, 4, epochs=3)
    try:
        if steps is not None:

            def stop(step: int, _) -> None:
                if step == steps:
                    raise InterruptedError

            with pytest.raises(InterruptedError):
                train(model, source, Sft(), config, out, bank.parameters(slot), stop)
            return None
        result = train(model, source, Sft(), config, out, bank.parameters(slot))
        losses = [json.loads(line)["loss"] for line in result.metrics_path.read_text().splitlines()]
        return result, losses, bank.state(slot)
    finally:
        bank.close()


def fake_measurement(monkeypatch: pytest.MonkeyPatch, chosen: Arithmetic) -> None:
    """The measurement finds this."""
    monkeypatch.setattr("bedplate.training.precision.choose", lambda *_: chosen)


def bits(model: Decoder) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("base_dtype", [torch.bfloat16, torch.float32])
def test_what_is_learned_is_the_same_beyond_rounding_and_the_base_the_same_bit_by_bit(
    base_dtype, make_decoder, make_examples, tmp_path, monkeypatch
) -> None:
    model, examples = make_decoder(base_dtype), make_examples(12)
    before, places = bits(model), {name: p.data_ptr() for name, p in model.named_parameters()}
    learned: dict[Arithmetic, list[float]] = {}
    for number, chosen in enumerate((BF16, F32, ONEDNN)):
        fake_measurement(monkeypatch, chosen)
        result, losses, _ = lora_run(model, examples, tmp_path / str(number))
        assert result.arithmetic == chosen
        learned[chosen] = losses
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
        # what reads the weights by their address, as a compiled kernel does, still finds them
        assert {name: p.data_ptr() for name, p in model.named_parameters()} == places
        assert all(m.products == "torch" for m in model.modules() if isinstance(m, Linear))
    assert learned[F32][0] - learned[F32][-1] > 0.1
    assert learned[ONEDNN] == pytest.approx(learned[F32], rel=1e-4)
    # 8 bits of mantissa
    assert learned[BF16] == pytest.approx(learned[F32], rel=2e-2)


def test_widened_training_is_training_of_the_widened_base(make_decoder, make_examples, tmp_path, monkeypatch) -> None:
    fake_measurement(monkeypatch, F32)
    narrow, examples = make_decoder(torch.bfloat16), make_examples(8)
    widened = make_decoder(torch.bfloat16).float()
    _, ours, tensors = lora_run(narrow, examples, tmp_path / "narrow")
    _, theirs, expected = lora_run(widened, examples, tmp_path / "wide")
    assert ours == theirs
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


@pytest.mark.parametrize("first", [BF16, F32, ONEDNN])
def test_a_resumed_run_computes_as_it_began(first, make_decoder, make_examples, tmp_path, monkeypatch) -> None:
    """Whatever a new measurement says: the same weights bit by bit."""
    examples, config = make_examples(12), CONFIG.model_copy(update={"save_steps": 2})
    fake_measurement(monkeypatch, first)
    _, losses, expected = lora_run(make_decoder(torch.bfloat16), examples, tmp_path / "whole", config)
    lora_run(make_decoder(torch.bfloat16), examples, tmp_path / "parts", config, steps=4)
    fake_measurement(monkeypatch, F32 if first == BF16 else BF16)
    result, resumed_losses, tensors = lora_run(make_decoder(torch.bfloat16), examples, tmp_path / "parts", config)
    assert (result.resumed_at, result.arithmetic) == (4, first)
    assert resumed_losses == losses
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("base_dtype", "chosen"), [(torch.bfloat16, F32), (torch.float32, BF16)])
def test_weights_that_are_trained_keep_float32_masters_and_go_back_rounded(
    base_dtype, chosen, make_decoder, make_examples, tmp_path, monkeypatch
) -> None:
    fake_measurement(monkeypatch, chosen)
    model, before = make_decoder(base_dtype), bits(make_decoder(base_dtype))
    source = ExampleSource(make_examples(8), 4, epochs=2)
    train(model, source, Sft(), CONFIG, tmp_path, model.named_parameters())
    store = StateFile(tmp_path)
    state = store.load(store.latest())
    for name, parameter in model.named_parameters():
        assert parameter.dtype == base_dtype
        assert parameter.grad is None
        master = state.tensors[f"parameter/{name}"]
        assert master.dtype == torch.float32
        assert torch.equal(parameter, master.to(base_dtype)), name
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert len(moved) == len(before)
    # a float32 base is not rounded to bfloat16 on the way
    if base_dtype == torch.float32:
        assert any(not torch.equal(p, p.bfloat16().float()) for p in model.parameters())


def test_whole_weights_learn_the_same_by_either_library(make_decoder, make_examples, tmp_path, monkeypatch) -> None:
    learned: dict[Arithmetic, list[float]] = {}
    for chosen in (F32, ONEDNN):
        fake_measurement(monkeypatch, chosen)
        model, source = make_decoder(torch.float32), ExampleSource(make_examples(8), 4, epochs=3)
        result = train(model, source, Sft(), CONFIG, tmp_path / chosen.products, model.named_parameters())
        assert result.arithmetic == chosen
        learned[chosen] = [json.loads(line)["loss"] for line in result.metrics_path.read_text().splitlines()]
    assert learned[F32][0] - learned[F32][-1] > 0.1
    assert learned[ONEDNN] == pytest.approx(learned[F32], rel=1e-4)


def test_what_is_asked_for_is_computed_in(make_decoder, make_examples, tmp_path) -> None:
    for dtype in ("float32", "bfloat16"):
        config = CONFIG.model_copy(update={"dtype": dtype})
        result, _, _ = lora_run(make_decoder(torch.bfloat16), make_examples(4), tmp_path / dtype, config)
        assert result.arithmetic.dtype == dtype
    bfloat16_config = CONFIG.model_copy(update={"dtype": "bfloat16"})
    with pytest.raises(TrainingError, match=r'config\.dtype: "float32" before, "bfloat16" now'):
        lora_run(make_decoder(torch.bfloat16), make_examples(4), tmp_path / "float32", bfloat16_config)
    with pytest.raises(UsageError, match="training in bfloat16 is for bases in bfloat16 or float32"):
        lora_run(make_decoder(torch.float64), make_examples(4), tmp_path / "wide", bfloat16_config)
    assert "dtype" not in CONFIG.numbers()  # states of earlier versions are resumed
    assert bfloat16_config.numbers()["dtype"] == "bfloat16"


def test_memory_that_does_not_suffice(make_decoder, make_examples, tmp_path, monkeypatch, caplog) -> None:
    model, examples = make_decoder(torch.bfloat16), make_examples(4)
    needed = 4 * sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(precision, "free_bytes", lambda: needed)
    fake_measurement(monkeypatch, F32)
    result, _, _ = lora_run(model, examples, tmp_path / "auto")
    assert result.arithmetic == BF16
    assert "training in float32 is faster here, but the weights in float32 take" in caplog.text
    float32_config = CONFIG.model_copy(update={"dtype": "float32"})
    with pytest.raises(
        TrainingError, match=r"computes in float32, but the weights in float32 take .* GB of memory are"
    ):
        lora_run(model, examples, tmp_path / "asked", float32_config)
    monkeypatch.setattr(precision, "free_bytes", lambda: int(1.2 * needed))
    result, _, _ = lora_run(model, examples, tmp_path / "enough")
    assert result.arithmetic == F32


# --- the choice

SPEC = tiny_spec(vocab_size=61, hidden_size=256, layers=4, heads=4, kv_heads=4, head_dim=64, feedforward_size=512)


def test_the_fastest_is_chosen_where_it_is_clearly_so(monkeypatch) -> None:
    model = Decoder(SPEC, dtype=torch.bfloat16)
    times = {BF16: 1.0, F32: 0.99, ONEDNN: 2.0}
    monkeypatch.setattr(arithmetics, "measured", lambda *_: times)
    assert choose(model, "adapters") == BF16
    times |= {ONEDNN: 0.5}
    assert choose(model, "adapters") == ONEDNN
    del times[BF16]  # it cannot run here
    assert choose(model, "adapters") == ONEDNN
    assert choose(Decoder(tiny_spec(), dtype=torch.bfloat16), "adapters") == BF16  # too small to be measured
    assert candidates(F32, CPU, "weights") == [F32, BF16, *([ONEDNN] if has_onednn() else [])]
    assert candidates(Arithmetic("float64"), CPU, "adapters") == [Arithmetic("float64")]
    assert candidates(F32, torch.device("cuda"), "adapters") == [F32]


@pytest.mark.slow
def test_a_measurement_is_made_once_and_a_damaged_one_again(isolated_home, monkeypatch) -> None:
    before = torch.get_rng_state()
    options = candidates(BF16, CPU, "adapters")
    timings = measured(SPEC, "adapters", options)
    assert F32 in timings
    assert torch.equal(torch.get_rng_state(), before)
    files = list((isolated_home / "machine").glob("training-*.json"))
    assert len(files) == 1
    measurements = []
    monkeypatch.setattr(arithmetics, "measure", lambda *args: measurements.append(args) or timings)
    assert measured(SPEC, "adapters", options) == timings
    assert not measurements
    whole = json.loads(files[0].read_text())
    impossible = (
        [],
        [[whole["found"][0][0], math.nan]],
        [[whole["found"][0][0], 0.0]],
        [[Arithmetic("float16").to_json(), 1.0]],
    )
    damaged = [json.dumps(whole | {"found": found}) for found in impossible]
    for damage in (
        "",
        "[]",
        '{"key": 1}',
        files[0].read_text().replace('"dtype": "float32"', '"dtype": "int8"'),
        *damaged,
    ):
        files[0].write_text(damage)
        assert measured(SPEC, "adapters", options) == timings
    assert len(measurements) == 8
    monkeypatch.setattr(torch, "get_num_threads", lambda: 63)
    measured(SPEC, "weights", candidates(BF16, CPU, "weights"))
    assert len(list((isolated_home / "machine").glob("training-*.json"))) == 2


def test_turns_take_the_best_and_drop_what_fails_or_is_far_behind() -> None:
    clock, ran = 0.0, {BF16: 0, F32: 0, ONEDNN: 0}

    def step(choice: Arithmetic, *seconds: float):
        def run() -> None:
            nonlocal clock
            if not seconds:
                raise RuntimeError("could not create a primitive descriptor")
            clock += seconds[min(ran[choice], len(seconds) - 1)]
            ran[choice] += 1

        return run

    steps = {BF16: step(BF16), F32: step(F32, 9.0, 1.5, 1.0, 2.0), ONEDNN: step(ONEDNN, 9.0, 40.0)}
    assert by_turns(steps, lambda: clock) == {F32: 1.0, ONEDNN: 40.0}
    assert ran[ONEDNN] == 2
    ran[F32] = 0
    with Allowance(8.0).applied():  # less than the warm-up takes: one round, and it stops
        assert by_turns({F32: step(F32, 9.0, 1.5, 1.0, 2.0)}, lambda: clock) == {F32: 9.0}
    with pytest.raises(UsageError, match=r"no arithmetic can train this base here: bfloat16: could not create"):
        by_turns({BF16: step(BF16)}, lambda: clock)


def test_what_a_training_token_takes_is_of_all_blocks(monkeypatch) -> None:
    model = Decoder(SPEC, dtype=torch.bfloat16)
    times = {BF16: 0.4, F32: 0.8, ONEDNN: 0.2}
    monkeypatch.setattr(arithmetics, "measured", lambda *_: times)
    # 2 of 4 blocks; 12 documents of 32 tokens after 16 that they share
    assert arithmetics.token_seconds(model) == pytest.approx(0.2 * 2 / 400)
    assert arithmetics.token_seconds(model, "bfloat16") == pytest.approx(0.4 * 2 / 400)
    assert arithmetics.token_seconds(Decoder(tiny_spec())) is None


def test_where_measuring_has_no_time_the_arithmetic_is_guessed(monkeypatch) -> None:
    model = Decoder(SPEC, dtype=torch.bfloat16)
    monkeypatch.setattr(arithmetics, "_worth_measuring", lambda _: True)
    monkeypatch.setattr(arithmetics, "_step_of", lambda *_: pytest.fail("it was measured"))
    with Allowance(5.0).applied():
        for capability, guess in (("AVX512", BF16), ("AVX2", F32)):
            monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
            assert choose(model, "adapters") == guess
        assert choose(model, "adapters", "bfloat16") == BF16
        assert arithmetics.token_seconds(model) is None
