"""Numbers from measured files: a ladder's report.json, and a machine.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.economics.decisions.builders import PRICES, TODAY, case_values

from bedplate.core.errors import ConfigError
from bedplate.economics.costs.decisions import Decision, decide, load_case
from bedplate.economics.costs.decisions.explanation import answer, as_values, reasons
from bedplate.economics.hardware.devices import find_device
from bedplate.economics.hardware.machine import (
    EngineSpeed,
    MeasuredMachine,
    SecondsCurve,
    StepShape,
    read_machine,
    write_machine,
)
from bedplate.economics.serving.replica import LOCAL_ENGINE, ON_DEVICES, measured_replica, on_devices
from bedplate.economics.serving.serving_cost import plan_serving
from bedplate.economics.serving.simulation import Traffic, parse_lengths

TRAFFIC = Traffic(parse_lengths("100", "prompt"), parse_lengths("50", "output"), 500)


def row(rung: str, split: str = "valid", **changes: Any) -> dict[str, Any]:
    """As adaptation/report/report.py writes it."""
    return {
        "rung": rung,
        "status": "done",
        "reason": None,
        "split": split,
        "estimate": 0.9,
        "interval": [0.86, 0.93],
        "n": 587,
        "groups": 60,
        "seeds": [],
        "usd_per_1k_calls": 0.001,
        "p50_ms": 33.0,
        "p95_ms": 54.0,
        "train_seconds": 240.0,
        "skin": f"skins/{rung}",
        **changes,
    }


REPORT: dict[str, Any] = {
    "schema_version": 1,
    "task": "reviews-sentiment",
    "rungs": [
        row("zero_shot", estimate=0.82, interval=[0.78, 0.86], train_seconds=0.0),
        row("lora", estimate=0.913, interval=[0.887, 0.935]),
        row("lora", "test", estimate=0.899, interval=[0.872, 0.923], usd_per_1k_calls=0.00095),
        {
            **row("few_shot"),
            "status": "skipped",
            "reason": "prompt over the budget",
            "estimate": None,
            "interval": None,
        },
    ],
    "machine": {"usd_per_hour": 0.10, "as_of": "2026-11-24", "cores": 2},
    "verdict": {"status": "PASS", "rung": "lora", "reason": "lora is the cheapest", "exploratory": False},
    "nominees": {
        "confirmations": [
            {
                "rung": "lora",
                "lower": 0.868,
                "lower_confidence": 0.97,
                "expected": 0.895,
                "passed": True,
                "reason": None,
            }
        ]
    },
    "guards": {},
}


def write(tmp_path: Path, report: Any, option: dict[str, Any], **changes: Any) -> Path:
    (tmp_path / "report.json").write_text(report if isinstance(report, str) else json.dumps(report))
    (tmp_path / "prices.yaml").write_text(PRICES)
    path = tmp_path / "case.yaml"
    path.write_text(yaml.safe_dump(case_values({"it": option}, prices="prices.yaml", **changes)))
    return path


def decided(path: Path, *overrides: str) -> Decision:
    return decide(*load_case(path, None, overrides), TODAY)


LORA = {"machine": {"name": "box", "utilisation": 0.5}, "report": {"file": "report.json", "rung": "lora"}}
MEASURED = (
    "measured on 2 cores of an unknown processor, whatever `text` says; for another machine give `planned`, `measured` "
    "or speeds"
)


def test_a_rung_gives_quality_latency_and_seconds_at_todays_price(tmp_path: Path) -> None:
    option = {**LORA, "tuning": {"labels": 1772}}
    outcome = decided(write(tmp_path, REPORT, option)).outcome("it")
    assert outcome.quality == 0.895  # what passed reads high
    assert outcome.quality_interval == pytest.approx((0.868, 0.923))  # down to the verdict's own bound
    assert outcome.p95_ms == 54.0
    seconds = 0.00095 / 1000 / (0.10 / 3600)  # measured seconds, at the report's own price
    assert outcome.busy == pytest.approx(1000 * seconds / 86_400)
    bill = {label: usd for _, label, usd in outcome.lines}
    assert bill["tuning compute"] == pytest.approx(240 / 3600 * 2)  # the price file's machine, not the report's
    assert bill["reserved machines"] == pytest.approx(4800)
    assert outcome.notes == (
        "the verdict of its report is PASS: quality at least 0.868 with 97.0% confidence (report.json, lora on test)",
        "it is tuned once and never again",
        f"a call takes the seconds that report.json, lora on test {MEASURED}",
    )
    assert outcome.doubts == ()


def test_valid_rows_are_said_to_be_what_choices_were_made_on(tmp_path: Path) -> None:
    option = {**LORA, "report": {**LORA["report"], "rung": "zero_shot"}}
    outcome = decided(write(tmp_path, REPORT, option)).outcome("it")
    assert outcome.quality == 0.82
    assert outcome.notes == (
        "its quality is an estimate on rows that choices were made on (report.json, zero_shot on valid)",
        f"a call takes the seconds that report.json, zero_shot on valid {MEASURED}",
    )
    lora = {**LORA, "report": {**LORA["report"], "split": "valid"}}
    assert decided(write(tmp_path, REPORT, lora)).outcome("it").quality == 0.913


def skin_entry(skin_type: str, main: str | None = "w" * 64, *parents: str) -> dict[str, Any]:
    """As adaptation/report/report.py writes it of a skin."""
    return {
        "kind": skin_type,
        "skin_id": skin_type,
        "parents": list(parents),
        "bases": {} if main is None else {"main": main},
    }


@pytest.mark.parametrize(
    ("skin", "method", "in_short"),
    [
        (skin_entry("probe"), "Tune open weights", "open, tuned"),
        (skin_entry("lora+retrieval"), "Tune open weights with retrieval", "open, tuned, retrieval"),
        (skin_entry("prompt", "c" * 64), "Tune open weights", "open, tuned"),  # on a base of its own
        (skin_entry("cascade", None, "probe"), "Tune open weights", "open, tuned"),
        (skin_entry("classical", None), "Train a classical model", "own, classical"),
        (skin_entry("prompt"), "Prompt open weights", "open, prompted"),
        (skin_entry("knn"), "Prompt open weights", "open, prompted"),
        (skin_entry("cascade", None, "prompt"), "Prompt open weights", "open, prompted"),
        (skin_entry("hosted", "model at address"), "Prompt open weights", "open, prompted"),
    ],
)
def test_what_was_done_is_what_the_skin_of_the_report_says(
    tmp_path: Path, skin: dict[str, Any], method: str, in_short: str
) -> None:
    parent_skins = {"a": skin_entry("probe"), "b": skin_entry("prompt")}
    lineage = {"bases": [{"weights_id": "w" * 64}], "skins": {**parent_skins, "lora": skin}}
    decision = decided(write(tmp_path, {**REPORT, "lineage": lineage}, LORA))
    assert answer(decision).startswith(f"{method}: it costs ")
    outcome = decision.outcome("it")
    assert outcome.method_in_short == in_short
    unpaid = [note for note in outcome.notes if "has no `tuning`" in note]
    assert len(unpaid) == ("prompted" not in in_short)
    stated = decided(write(tmp_path, {**REPORT, "lineage": lineage}, {**LORA, "tuning": {"labels": 10}})).outcome("it")
    assert stated.method_in_short.startswith("open, tuned")
    assert not [note for note in stated.notes if "has no `tuning`" in note]


def test_options_of_one_bill_cost_as_much(tmp_path: Path) -> None:
    case = write(tmp_path, REPORT, LORA)
    values = yaml.safe_load(case.read_text())
    values["options"]["same"] = {**LORA, "quality": 0.5}
    case.write_text(yaml.safe_dump(values))
    decision = decided(case)
    assert answer(decision).endswith("next is same, which costs as much.")
    assert "same costs as much." in reasons(decision)


def test_what_the_option_states_goes_before_the_report(tmp_path: Path) -> None:
    option = {**LORA, "quality": 0.7, "p95_ms": 300, "machine": {**LORA["machine"], "seconds_per_call": 2}}
    outcome = decided(write(tmp_path, REPORT, option)).outcome("it")
    assert (outcome.quality, outcome.p95_ms) == (0.7, 300)
    assert outcome.busy == pytest.approx(2000 / 86_400)


def test_a_hosted_option_may_take_its_quality_from_a_report(tmp_path: Path) -> None:
    option = {"model": "large", "report": {"file": "report.json", "rung": "zero_shot"}}
    assert decided(write(tmp_path, REPORT, option)).outcome("it").quality == 0.82


@pytest.mark.parametrize(
    ("report", "change", "message"),
    [
        (REPORT, {"rung": "loar"}, "there is no rung 'loar'; did you mean 'lora'?"),
        (REPORT, {"rung": "few_shot"}, "the rung 'few_shot' was skipped (prompt over the budget); choose another"),
        (REPORT, {"rung": "zero_shot", "split": "test"}, "was estimated on valid only, not on test"),
        ({**REPORT, "target": {"lower_is_better": True}}, {}, "estimates are US dollars of a call"),
        (REPORT, {"file": "none.json"}, "none.json: cannot be read"),
        ("{", {}, "report.json is not JSON"),
        ("[]", {}, "is not a ladder's report: it has no `rungs`"),
        ({**REPORT, "rungs": [row("lora", estimate=None)]}, {}, "the rung has no estimate with an interval"),
        ({**REPORT, "rungs": [row("lora", estimate=1.5, interval=[0.9, 1.6])]}, {}, "is not a share of 1"),
        ({**REPORT, "rungs": [row("lora", estimate=0.5, interval=["a", "b"])]}, {}, "is not a share of 1"),
        ({**REPORT, "rungs": [row("lora", p95_ms=-1)]}, {}, "p95_ms is -1; it must be a number, at least 0"),
        ({**REPORT, "rungs": [row("lora", p95_ms=True)]}, {}, "p95_ms is True"),
        ({key: value for key, value in REPORT.items() if key != "verdict"}, {}, "the report has no `verdict`"),
        ({**REPORT, "machine": {"usd_per_hour": 0.0}}, {}, "a machine price of 0, or nothing computed"),
        ({**REPORT, "rungs": [row("lora")], "machine": []}, {}, "a machine price of 0, or nothing computed"),
    ],
)
def test_a_report_that_cannot_be_used(tmp_path: Path, report: Any, change: dict[str, str], message: str) -> None:
    option = {**LORA, "report": {**LORA["report"], **change}}
    with pytest.raises(ConfigError) as caught:
        decided(write(tmp_path, report, option))
    assert message in str(caught.value)
    assert "case.yaml: options.it" in str(caught.value)


FAILED = {
    **REPORT,
    "verdict": {"status": "FAIL", "rung": None, "reason": "Every upper bound lies below.", "exploratory": False},
    "nominees": {"confirmations": [{**REPORT["nominees"]["confirmations"][0], "passed": False}]},
}
BROKEN = {"guard": "retention", "holds": False, "reason": "accuracy fell by 0.1"}


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (FAILED, "the report's verdict is FAIL: Every upper bound lies below."),
        ({**FAILED, "verdict": {**FAILED["verdict"], "status": "INSUFFICIENT_DATA"}}, "verdict is INSUFFICIENT_DATA"),
        ({**REPORT, "verdict": {**REPORT["verdict"], "exploratory": True}}, "the report's PASS is exploratory"),
        ({**REPORT, "guards": {"lora": [BROKEN]}}, "the retention guard of lora is broken: accuracy fell by 0.1"),
        ({**REPORT, "guards": {"lora": [{**BROKEN, "holds": None}]}}, "the retention guard of lora is undecided"),
        ({**REPORT, "requirements": {"lora": [BROKEN]}}, "a requirement of lora is broken: accuracy fell by 0.1"),
        ({**REPORT, "requirements": {"lora": [{**BROKEN, "holds": None}]}}, "a requirement of lora is undecided"),
    ],
)
def test_what_is_no_pass_is_refused_and_used_with_a_reason_it_is_said(
    tmp_path: Path, report: Any, message: str
) -> None:
    path = write(tmp_path, report, LORA)
    with pytest.raises(ConfigError, match=r"or say under report\.despite why") as caught:
        decided(path)
    assert message in str(caught.value)
    decision = decided(path, "options.it.report.despite=nothing else is there")
    assert message in decision.outcome("it").doubts[0]
    assert decision.outcome("it").doubts[-1] == "used nonetheless: nothing else is there"
    assert "on a report without a valid PASS" in answer(decision)
    assert reasons(decision)[0].startswith("it rests on no PASS: ")
    assert as_values(decision)["options"][0]["doubts"] == decision.outcome("it").doubts


def test_the_bound_of_a_comparison_is_none_of_quality(tmp_path: Path) -> None:
    """Both systems are right on nearly the same rows: the bound of the difference lies close below the estimate."""
    confirmed = {**REPORT["nominees"]["confirmations"][0], "lower": 0.894}
    target = {"value": 0.86, "value_given": False, "against": "current", "better_by": 0}
    report = {**REPORT, "target": target, "nominees": {"confirmations": [confirmed]}}
    path = write(tmp_path, report, LORA, bar={"quality": 0.88})
    outcome = decided(path).outcome("it")
    assert outcome.quality == 0.895
    assert outcome.quality_interval == pytest.approx((0.872, 0.923))
    assert not outcome.feasible
    assert outcome.notes[0] == (
        "the verdict of its report is PASS, by a comparison with current, which bounds the difference alone: its "
        "quality is an estimate with its interval (report.json, lora on test)"
    )


def test_the_bar_is_held_against_the_verdicts_bound(tmp_path: Path) -> None:
    below = write(tmp_path, REPORT, LORA, bar={"quality": 0.87})  # under the interval's end, above the bound
    assert not decided(below).outcome("it").feasible
    assert decided(below, "bar.quality=0.868").outcome("it").feasible


def test_another_rung_of_a_report_that_passed_has_its_own_bound_or_none(tmp_path: Path) -> None:
    probe = {**REPORT["nominees"]["confirmations"][0], "rung": "probe", "lower": 0.79, "passed": False}
    rows = [*REPORT["rungs"], row("probe", "test", estimate=0.82, interval=[0.78, 0.86]), row("majority", "test")]
    report = {**REPORT, "rungs": rows, "nominees": {"confirmations": [probe]}}
    path = write(tmp_path, report, {**LORA, "report": {**LORA["report"], "rung": "probe"}})
    assert decided(path).outcome("it").notes[0].startswith("the verdict of its report is PASS of lora, not of probe: ")
    assert (decided(path).outcome("it").quality_interval or (0,))[0] == pytest.approx(0.79)
    outcome = decided(path, "options.it.report.rung=majority").outcome("it")
    assert "it was no nominee, so that no verdict bounds it" in outcome.notes[0]


def test_the_bounds_of_the_p95_are_its_range(tmp_path: Path) -> None:
    rows = [row("lora", "test", p95_bounds_ms=[50.0, 80.0])]
    path = write(tmp_path, {**REPORT, "rungs": rows}, LORA, bar={"p95_ms": 70})
    assert not decided(path).outcome("it").feasible
    assert decided(path, "bar.p95_ms=80").outcome("it").feasible


def speed() -> EngineSpeed:
    return EngineSpeed(
        base="smollm2-135m",
        shape=StepShape(blocks=100, head=10, key_features=4, query_features=6),
        weights="int4",
        kernel="native",
        threads=2,
        measured_at=TODAY,
        blocks=SecondsCurve(counts=(1, 8, 512), seconds=(0.004, 0.010, 0.25)),
        head=SecondsCurve(counts=(1, 8), seconds=(0.001, 0.002)),
        key_seconds=1e-6,
        pair_seconds=1e-8,
    )


def test_a_measured_engine_gives_both_speeds(tmp_path: Path) -> None:
    write_machine(
        MeasuredMachine(
            cpu="test",
            threads=2,
            memory_bytes=1,
            measured_at=TODAY,
            bandwidth_bytes_per_second=1,
            flops_per_second={},
            engines=(speed(),),
        ),
        tmp_path / "machine.json",
    )
    measured = {"base": "smollm2-135m", "batch": 8}
    option = {"machine": {"name": "box", "measured": measured, "utilisation": 1, "paid": "by_use"}}
    path = write(tmp_path, REPORT, option)
    (tmp_path / "prices.yaml").write_text(
        PRICES.replace("box: {usd_per_hour: 2,", "box: {usd_per_hour: 2, measured: machine.json,")
    )
    # 100 new tokens behind 500 cached ones; then 50 steps of eight sequences, of 500 + 100 + 25 keys each on average:
    # no more than that one after the other, since prompts join the steps of answers, and no less than the steps alone
    share = (100 - 8) / (512 - 8)
    prompt = 0.010 + share * 0.24 + 0.001 + 1e-6 * 600 + 1e-8 * 100 * 550.5
    step = 0.010 + 0.002 + 1e-6 * 8 * 625
    seconds = decided(path).outcome("it").cost_per_call * 3600 / 2
    assert prompt < seconds < prompt + 50 * step / 8
    measured_machine = read_machine(tmp_path / "machine.json")
    for rows, override in ((8, ()), (16, ("options.it.machine.measured={base: smollm2-135m}",))):
        engine = LOCAL_ENGINE.with_rows(rows)
        served = plan_serving(measured_replica(measured_machine, "smollm2-135m", None, TRAFFIC, engine), TRAFFIC, 1e4)
        seconds = decided(path, *override).outcome("it").cost_per_call * 3600 / 2
        assert seconds == pytest.approx(1 / served.saturated_calls_per_second)
    for change, message in (
        ({"base": "smollm"}, "smollm was not measured on this machine"),
        ({**measured, "weights": "int8"}, "smollm2-135m in int8 was not measured"),
    ):
        with pytest.raises(ConfigError, match=message):
            decided(path, f"options.it.machine.measured={json.dumps(change)}")
    with pytest.raises(ConfigError, match="this machine was not measured yet"):
        decided(path, "prices.machines.box.measured=gone.json")


def test_a_stated_latency_that_the_machine_does_not_reach_is_named(tmp_path: Path) -> None:
    """Nothing else would: the bar is held against what is stated."""
    machine = {"name": "node", "planned": {"model": "llama-3.1-8b", "batch": 64}, "utilisation": 0.6}
    path = write(tmp_path, REPORT, {"machine": machine, "quality": 0.9}, bar={"p95_ms": 100})
    outcome = decided(path).outcome("it")
    assert not outcome.feasible
    assert [note for note in outcome.notes if note.startswith("its p95_ms is its machine's")]
    busy = decided(path, "traffic.calls_per_day=50M").outcome("it")
    assert busy.p95_ms is not None
    assert outcome.p95_ms is not None
    assert busy.p95_ms > 1.1 * outcome.p95_ms
    stated = decided(path, "options.it.p95_ms=50").outcome("it")
    assert stated.feasible
    assert [note for note in stated.notes if note.startswith("WARNING: its p95_ms of 50 is stated, and its machine")]
    assert not decided(path, f"options.it.p95_ms={outcome.p95_ms}").outcome("it").notes


def test_what_has_no_effect_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, REPORT, {"model": "small", "tokens_per_unit": 1.3})
    notes = decided(path, "traffic.waiting_share=0.5").outcome("it").notes
    assert [note.partition(" has")[0] for note in notes] == [
        "tokens_per_unit",
        "calls that may wait cost what others do: small",
    ]


def test_a_data_sheet_gives_a_range_of_speeds(tmp_path: Path) -> None:
    """Eight billion parameters on an H100 (989 TFLOP/s, 3.35 TB/s), what engines reach of it by economics.steps."""
    option = {
        "machine": {
            "name": "node",
            "planned": {"model": "llama-3.1-8b", "batch": 64},
            "utilisation": 1,
            "paid": "by_use",
        }
    }
    path = write(tmp_path, REPORT, option)
    (tmp_path / "prices.yaml").write_text(PRICES.replace("devices: 8", "devices: 1"))
    decision = decided(path)
    speeds = {sensitivity.input.name.rpartition(".")[2]: sensitivity.input for sensitivity in decision.sensitivities}
    prefill, decode = speeds["prefill_tokens_per_second"], speeds["decode_tokens_per_second"]
    # 100 tokens are fewer than it takes to be bound by products: the step reads 7.5 billion weights of two bytes; a
    # full machine reads them for a prompt and for answers at once
    read = 7.5e9 * 2 / 3.35e12
    assert prefill.value > 100 / (read / 0.75 + 1.5e-3)
    keys = 64 * 625 * 131_072  # 128 KiB a token
    assert decode.value > 64 / ((7.5e9 * 2 + keys) / 3.35e12 / 0.75 + 1.5e-3)
    replicas = on_devices("llama-3.1-8b", find_device("h100"), 1, "bfloat16", TRAFFIC, ON_DEVICES.with_rows(64))
    for end in ("value", "low", "high"):
        case = "central" if end == "value" else end
        served = plan_serving(replicas[case], TRAFFIC, 1e4).saturated_calls_per_second
        assert 100 / getattr(prefill, end) + 50 / getattr(decode, end) == pytest.approx(1 / served)
    assert prefill.low < prefill.value < prefill.high
    assert "planned: llama-3.1-8b in bfloat16, data sheet of NVIDIA H100" in prefill.source
    half = decided(path, "options.it.machine.utilisation=0.5").outcome("it").p95_ms
    latency = plan_serving(replicas["central"], TRAFFIC, 1e4).alone.total_p95
    assert half is not None
    assert 1000 * latency < half < decision.outcome("it").p95_ms
    low, high = decision.outcome("it").total_interval
    assert low < decision.outcome("it").total_usd < high
    for override, message in (
        ("options.it.machine.planned.batch=9000", r"it does not fit: .* rows at once"),
        ("options.it.machine.planned.model=llama-3.1-9b", r"planned: .*llama-3\.1-8b"),
        ("options.it.machine.planned.model=bert-base", "decoder"),
        ("options.it.machine.name=box", "does not say which `device` 'box' has"),
        ("options.it.machine.planned={model: a, batch: 0}", "greater than or equal to 1"),
        ("options.it.machine.seconds_per_call=1", "give one of seconds_per_call"),
    ):
        with pytest.raises(ConfigError, match=message):
            decided(path, override)
