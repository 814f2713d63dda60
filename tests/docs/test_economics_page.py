"""What the cost model's page says of its commands is what they answer, and it names every key of its files."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest

from bedplate.cli.main import main
from bedplate.cli.plan import ACTIONS
from bedplate.economics.costs.amortisation import AmortisationFile
from bedplate.economics.costs.decisions.decision_file import (
    Case,
    CaseTraffic,
    MachineUse,
    Option,
    Pretraining,
    QualityBar,
    Text,
    TuningSpec,
    Value,
)
from bedplate.economics.hardware.devices import HardwareFile
from bedplate.economics.numbers.money import number, usd
from bedplate.economics.numbers.prices import HostedModel, MachinePrice, Prices

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/economics.md").read_text("utf-8")

Phrases = list[str]


def _power(value: float) -> str:
    return f"{value:.3g}".replace("e+", "e")


def _count(value: float) -> str:
    size, suffix = (1e12, "T") if value >= 1e12 else (1e9, "B")
    return f"{value / size:.3g} {suffix}"


def _train(result: dict[str, Any]) -> Phrases:
    low, high = result["gpu_hours_range"]
    hours = f"{result['gpu_hours'] / 1e6:.1f} M GPU-hours ({low / 1e6:.1f} to {high / 1e6:.1f} M)"
    return [
        f"{_power(result['flops'])} operations",
        hours,
        f"{result['days']:.0f} days",
        f"{result['bytes_per_device'] / 1e9:.1f} GB on each device",
    ]


def _budget(result: dict[str, Any]) -> Phrases:
    best, (used,) = result["compute_optimal"], result["inference_aware"]
    return [
        f"{_count(best['parameters'])} parameters on {_count(best['tokens'])} tokens",
        f"{_count(used['inference_tokens'])} tokens, the same",
        f"at {_count(used['parameters'])} on {_count(used['tokens'])}.",
    ]


def _serve(result: dict[str, Any]) -> Phrases:
    worst, best = result["range"]["low"]["replicas"], result["range"]["high"]["replicas"]
    return [
        f"{result['replicas']} replicas ({worst} at the worst of what engines reach, {best} at the best)",
        f"{usd(result['usd_per_call'])} a call",
        f"{result['at_peak']['total_p95']:.3g} s",
        f"The {result['traffic']['skin_tokens']} tokens",
    ]


def _decide(result: dict[str, Any]) -> Phrases:
    by_name = {option["name"]: option for option in result["options"]}
    best, alternative = by_name[result["answer"]], by_name["tune-small"]
    (pays,) = (
        break_even
        for break_even in result["break_evens"]
        if {break_even["option"], break_even["against"]} == {best["name"], "tune-small"}
    )
    low, high = best["total_interval"]
    assert pays["option"] == "tune-small"
    return [
        "prompting a large hosted model",
        f"{usd(best['total_usd'])} over a year (90%: {usd(low)} to {usd(high)})",
        f"{usd(alternative['net_usd'] - best['net_usd'])} less",
        f"from {number(pays['calls_per_day'])} calls a day on ({' to '.join(map(number, pays['interval']))})",
    ]


def _amortise(result: dict[str, Any]) -> Phrases:
    idle = next(row["machine_usd"] for row in result["skins"] if row["kind"] == "idle")
    revenue = sum(row["revenue_usd"] for row in result["skins"])
    return [
        f"brought in {usd(revenue)} and cost {usd(result['bill_usd'])} of machine",
        f"{usd(result['base_usd'])} of the base",
        f"{idle / result['bill_usd']:.0%} of the machine's bill",
    ]


FIGURES: dict[str, Callable[[dict[str, Any]], Phrases]] = {
    "plan train llama": _train,
    "plan train --budget-usd": _budget,
    "plan serve": _serve,
    "plan decide": _decide,
    "plan amortise": _amortise,
}
NOT_RUN = {"plan calibrate", "plan scaling"}  # it measures; it reads runs: their options are checked with all commands'

COMMANDS: list[tuple[str, str]] = re.findall(r"^```sh\n(.*?)\n```\n(.*?)(?=^##|^```)", PAGE, re.M | re.S)


def _key(command: str) -> str:
    return next(key for key in (*FIGURES, *NOT_RUN) if command.startswith(f"bedplate {key}"))


def test_every_verb_has_a_section_and_a_command() -> None:
    assert {_key(command) for command, _ in COMMANDS} == {*FIGURES, *NOT_RUN}
    assert re.findall(r"^## ([a-z]+)$", PAGE, re.M) == list(ACTIONS)


@pytest.mark.parametrize(
    ("command", "text"), [pair for pair in COMMANDS if _key(pair[0]) not in NOT_RUN], ids=lambda value: value[:30]
)
def test_the_page_says_what_the_command_answers(
    command: str, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        main([*shlex.split(command)[1:], "--json"])
    assert ended.value.code == 0
    text = " ".join(text.split())
    for figure in FIGURES[_key(command)](json.loads(capsys.readouterr().out)):
        assert figure in text, f"{command}: the page should say {figure!r}"


@pytest.mark.parametrize(
    "model",
    [
        AmortisationFile,
        QualityBar,
        Case,
        HardwareFile,
        HostedModel,
        MachinePrice,
        MachineUse,
        Option,
        Prices,
        Text,
        CaseTraffic,
        Value,
    ],
    ids=lambda model: model.__name__,
)
def test_every_key_of_the_files_is_named(model: type[pydantic.BaseModel]) -> None:
    files = PAGE.split("\n## Files\n")[1]
    missing = [name for name in model.model_fields if not re.search(rf"\b{name}\b", files)]
    assert not missing


@pytest.mark.parametrize("model", [Pretraining, TuningSpec], ids=lambda model: model.__name__)
def test_keys_that_are_said_in_words_exist(model: type[pydantic.BaseModel]) -> None:
    key = model.__name__.removesuffix("Spec").lower()
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{key}`"))
    named = set(re.findall(r"`(\w+)`", row)) - {key}
    assert named
    assert named <= set(model.model_fields)
