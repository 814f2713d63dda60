"""`bedplate plan serve` end to end: figures with their sources, ranges on a data sheet, mistakes in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.economics.test_machine import machine

from bedplate.cli.main import main
from bedplate.economics.hardware.machine import write_machine
from bedplate.economics.serving.serving_cost import SERVING_FORMULAS

H100 = ("llama-3.1-8b", "--device", "h100", "--calls-per-day", "1e6", "--prompt-tokens", "500~2000")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(["plan", "serve", *arguments])
    captured = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, captured.out, captured.err


@pytest.fixture
def measured(tmp_path: Path) -> str:
    return str(write_machine(machine(), tmp_path / "machine.json"))


def test_json_has_every_figure_and_the_range(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, *H100, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["usd_per_call"] == pytest.approx(report["replicas"] * report["usd_per_hour"] * 24 / 1e6)
    assert report["price_source"].startswith("an EXAMPLE, not a quotation")
    low, high = report["range"]["low"], report["range"]["high"]
    assert low["capacity_calls_per_second"] < report["capacity_calls_per_second"] < high["capacity_calls_per_second"]
    assert low["usd_per_call"] >= report["usd_per_call"] >= high["usd_per_call"]
    assert set(report["formulas"]) == set(SERVING_FORMULAS)


def test_people_see_formulas_and_where_speeds_are_from(capsys: pytest.CaptureFixture[str], measured: str) -> None:
    options = ("--usd-per-hour", "0.5", "--p95-ms", "5000", "--formulas")
    code, out, err = call(capsys, "small", "--machine", measured, *options)
    assert (code, err) == (0, "")
    flat = " ".join(out.split())
    for part in ("usd per call", "idle machines are paid for", "measured 2026-01-02: small, int4", "$0.50 an hour"):
        assert part in flat
    code, out, _ = call(capsys, "small", "--machine", measured)
    assert code == 0
    assert "give --usd-per-hour for dollars" in out
    assert "usd per call" not in out


def test_a_range_end_that_misses_the_target_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, *H100, "--p95-ms", "900")
    assert code == 0
    assert "never to" in out
    assert "$0.0000" in out  # as on the page
    assert "e-05" not in out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["small", "--machine", "FILE", "--calls-per-day", "0"], "calls_per_day is 0"),
        (["small", "--machine", "FILE", "--calls-per-day", "nan"], "'nan' is not a number"),
        (["small", "--machine", "FILE", "--usd-per-hour", "-1"], "usd_per_hour is -1"),
        (["small", "--machine", "FILE", "--prompt-tokens", "zero"], "--prompt-tokens is 'zero'"),
        (["small", "--machine", "FILE", "--p95-ms", "1"], "no number of replicas helps"),
        (["small", "--machine", "FILE", "--p95-ms", "0"], "'0' is not a length of time above 0"),
        (["small", "--machine", "FILE", "--devices", "2"], "several devices make a replica of devices of the table"),
        (["small", "--machine", "FILE", "--max-rows", "0"], "'0' is not a whole number above 0"),
        (["large", "--machine", "FILE"], "such as --device h100"),
        (
            ["small", "--machine", "/no/file.json"],
            "was not measured yet; run: bedplate plan calibrate BASE, or name a device",
        ),
        (["llama-3.1-8b", "--device", "h10"], "h100"),
        (["llama-3.1-9b", "--device", "h100"], "llama-3.1-8b"),
        (["llama-3.1-8b", "--device", "h100", "--like", "small"], "leave the device out"),
        (["llama-3.1-405b", "--device", "h100"], "it would fit with 16 devices"),
        (["llama-3.1-8b", "--device", "h100", "--prompt-tokens", "200000"], "longer than the model's context"),
        (["llama-3.1-8b", "--device", "h100", "--accepted", "2"], "must be in 0"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], measured: str, arguments: list[str], part: str
) -> None:
    code, out, err = call(capsys, *(measured if argument == "FILE" else argument for argument in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert part in err
    assert err.count("\n") == 1


def test_it_loads_nothing_heavy(measured: str) -> None:
    code = (
        "import sys\nfrom bedplate.cli.main import main\n"
        f"try: main(['plan', 'serve', 'small', '--machine', {measured!r}, '--p95-ms', '3000', '--json'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "print(sorted({'torch', 'numpy', 'scipy', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stderr.strip() == "[]"


def test_as_many_rows_as_fit_are_planned_with_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("llama-3.1-8b", "--device", "l4", "--prompt-tokens", "1k", "--json")
    code, out, _ = call(capsys, *options)
    assert code == 0
    report = json.loads(out)
    rows = int(report["basis"].partition(" rows at once, as many as fit (of 128)")[0].rpartition("; ")[2])
    assert sum(report["memory"].values()) <= 24e9 * 0.9 < sum(report["memory"].values()) * (rows + 2) / rows
    code, _, err = call(capsys, *options, "--max-rows", "128")
    assert code == 2
    assert f"or {rows} rows at once" in " ".join(err.split())
    assert call(capsys, *options, "--max-rows", str(rows))[0] == 0
