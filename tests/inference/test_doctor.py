"""`bedplate doctor`: the bounds against hand arithmetic, and what the command says of a tiny base."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.references import reference_bert
from tests.tiny import tiny_spec, write_tiny_base

from bedplate.cli.doctor import _cells
from bedplate.cli.main import main
from bedplate.core.files import bedplate_home
from bedplate.economics.hardware.machine import MeasuredMachine
from bedplate.inference.execution import calibration
from bedplate.inference.execution.calibration import block_weights, read_bytes
from bedplate.inference.execution.plan import ExecutionPlan
from bedplate.inference.measure import machine_report as doctor
from bedplate.inference.measure import speeds as measure
from bedplate.inference.measure.machine_report import bound, examine
from bedplate.models.checkpoints.base import load_base, parameter_count

pytestmark = pytest.mark.usefixtures("own_machine")

SIZES: dict[str, Any] = {"hidden_size": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "feedforward_size": 96}
T16, INT4 = ExecutionPlan("bfloat16", "torch", "bfloat16"), ExecutionPlan("bfloat16", "native", "int4")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_SECONDS", 0.01)
    monkeypatch.setattr(measure, "_BYTES", 1 << 20)
    monkeypatch.setattr(measure, "_SIZE", 64)
    monkeypatch.setattr(calibration, "MAX_SECONDS", 0.05)


def machine(**rates: float) -> MeasuredMachine:
    return MeasuredMachine(
        cpu="x",
        threads=1,
        memory_bytes=1,
        measured_at=datetime.date(2026, 1, 1),
        bandwidth_bytes_per_second=1e6,
        flops_per_second=rates,
    )


def test_bounds_by_hand(tmp_path: Path) -> None:
    spec = tiny_spec(**SIZES)
    model = load_base(write_tiny_base(tmp_path / "base", **SIZES)).model
    norms = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    head = spec.vocab_size * 64
    blocks = parameter_count(model) - norms - (1 if spec.tied_head else 2) * head
    assert 3 * block_weights(spec) == blocks
    assert read_bytes(spec, T16) == 2 * (blocks + head)
    # 32 values of 4 bits with a scale and a minimum of 16 bits; of 8 bits, the head's, with a scale.
    assert read_bytes(spec, INT4) == pytest.approx(blocks * (16 + 4) / 32 + head * (32 + 2) / 32, abs=1)
    slow_memory = machine(float32=1e15, bfloat16=1e15, int8=1e15)
    assert bound(spec, T16, "decode_1", slow_memory) == pytest.approx(2 * (blocks + head) / 1e6)
    slow_products = machine(float32=1e3, bfloat16=1e3, int8=1e2)
    assert bound(spec, T16, "decode_16", slow_products) == pytest.approx(2 * 16 * (blocks + head) / 1e3)
    assert bound(spec, T16, "prefill", slow_products) == pytest.approx(2 * 256 * blocks / 1e3)
    assert bound(spec, INT4, "prefill", slow_products) == pytest.approx(2 * 256 * blocks / 1e2)


def test_a_base_is_examined_and_the_choice_kept(tmp_path: Path) -> None:
    directory = write_tiny_base(tmp_path / "base", dtype=torch.bfloat16, **SIZES)
    report = json.loads(json.dumps(examine(str(directory)), allow_nan=False))
    assert report["base"]["stored"] == ["bfloat16"]
    plan = {name: report["chosen"][name] for name in ("dtype", "kernel", "weights")}
    [chosen] = [way for way in report["ways"] if plan.items() <= way.items()]
    assert chosen["keeps_what_is_stored"]
    assert chosen["reason"] is None
    assert {way["weights"] for way in report["ways"]} == {"bfloat16", "float32", "int8", "int4"}
    for way in report["ways"]:
        assert (way["reason"] is None) == bool(way["tokens_per_second"])
        assert set(way["tokens_per_second"]) == set(way["of_roof"])
        assert all(share is None or 0 < share <= 1 for share in way["of_roof"].values())
        assert all(rate > 0 for rate in way["tokens_per_second"].values())
    assert report["roofs"]["flops_per_second"].keys() >= {"float32", "bfloat16"}
    (saved,) = (bedplate_home() / "machine").iterdir()
    assert saved.name.startswith("ways-")


def test_a_machine_without_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for name in ("execution.choice", "native.packed_weights", "measure.machine_report"):
        monkeypatch.setattr(f"bedplate.inference.{name}.load", lambda: "no C++ compiler (c++)")
    report = examine(str(write_tiny_base(tmp_path / "base", **SIZES)))
    kernel = report["kernel"]
    assert (report["chosen"]["kernel"], kernel["level"], kernel["reason"]) == ("torch", None, "no C++ compiler (c++)")
    monkeypatch.setattr(doctor, "examine", lambda base: report)
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    output = capsys.readouterr().out
    assert not stop.value.code
    assert "kernel     none: no C++ compiler (c++); torch computes, and in 8 or 4 bits only if asked for" in output
    assert "chosen: torch float32: the only plan that is possible here" in output


def test_a_speed_above_the_roof_has_no_share() -> None:
    assert [doctor.share(1.0, seconds) for seconds in (2.0, 1.0, 0.95, 0.5)] == [0.5, 1.0, 1.0, None]
    way = {"tokens_per_second": {"decode_1": 89.0, "prefill": 900.0}, "of_roof": {"decode_1": None, "prefill": 0.63}}
    assert _cells(way) == ["89", "–", "900 (63%)"]


def test_why_the_processors_tiles_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(doctor, "tiles_refused", lambda: "arch_prctl is refused")
    report = examine(str(write_tiny_base(tmp_path / "base", **SIZES)))
    assert report["kernel"]["tiles_refused"] == "arch_prctl is refused"
    for refusal, expected in (("arch_prctl is refused", report["kernel"]["reason"] is None), (None, False)):
        report["kernel"]["tiles_refused"] = refusal
        monkeypatch.setattr(doctor, "examine", lambda base: report)
        with pytest.raises(SystemExit):
            main(["doctor"])
        output = " ".join(capsys.readouterr().out.split())  # a narrow screen breaks lines
        assert ("without the processor's AMX: arch_prctl is refused" in output) is expected


def test_an_encoder_has_prompts_only(tmp_path: Path) -> None:
    reference_bert(0).save_pretrained(tmp_path)
    report = examine(str(tmp_path))
    assert {of for way in report["ways"] for of in way["tokens_per_second"]} == {"prefill"}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_tiny_base(tmp_path / "base", dtype=torch.bfloat16, **SIZES)
    with pytest.raises(SystemExit) as stop:
        main(["doctor", str(directory), "--json"])
    assert not stop.value.code
    values = json.loads(capsys.readouterr().out)
    assert values["base"] == {"name": str(directory), "stored": ["bfloat16"]}
    assert values["threads"]["from_environment"] is True  # the tests' own OMP_NUM_THREADS
    with pytest.raises(SystemExit) as stop:
        main(["doctor", str(tmp_path / "none")])
    assert (stop.value.code, capsys.readouterr().err.startswith("error: ")) == (2, True)
