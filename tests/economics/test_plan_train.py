"""`bedplate plan train` end to end: one object, tables with sources, mistakes in one line, nothing heavy loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bedplate.cli.main import main
from bedplate.core.errors import UsageError
from bedplate.core.quantities import parse_count
from bedplate.economics.training.training_cost import TRAINING_FORMULAS

LLAMA = ("llama-3.1-405b", "--tokens", "15.6e12", "--device", "h100", "--devices", "16384")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(["plan", "train", *arguments])
    captured = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, captured.out, captured.err


def test_json_is_one_object_with_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, *LLAMA, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    for name in ("parameters", "active_parameters", "flops", "mfu", "gpu_hours", "days", "usd", "bytes_per_device"):
        assert report[name] > 0
    assert report["flops"] == pytest.approx(3.8e25, rel=0.1)
    assert report["gpu_hours"] == pytest.approx(30.84e6, rel=0.25)
    assert 0.25 < report["mfu_range"][0] < report["mfu"] < report["mfu_range"][1] < 0.45
    assert report["days"] == pytest.approx(report["gpu_hours"] / 16384 / 24)
    assert report["price_source"].startswith("an EXAMPLE, not a quotation")
    assert report["layout"]["tensor"] >= 1


def test_formulas_are_shown_with_their_sources_where_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    _, plain, _ = call(capsys, *LLAMA, "--usd-per-hour", "2")
    assert "2001.08361" not in plain
    code, out, err = call(capsys, *LLAMA, "--usd-per-hour", "2", "--formulas")
    assert (code, err) == (0, "")
    flat = " ".join(out.split())
    for name in ("parameters", "flops", "mfu", "gpu_hours", "days", "usd", "kwh", "energy_usd", "bytes_per_device"):
        assert name in flat
        assert TRAINING_FORMULAS[name][1].split(",", maxsplit=1)[0].split(";", maxsplit=1)[0][:20] in flat
    for part in ("2001.08361", "2204.02311", "$2.00 an hour (given)", "layout: data ", "overhead 1.1", "optimizer"):
        assert part in flat
    assert "example, not a quotation" not in flat


@pytest.mark.parametrize(("tokens", "unit"), [("1M", "seconds"), ("10B", "hours"), ("1T", "days")])
def test_time_is_shown_in_the_unit_that_has_at_least_one(
    capsys: pytest.CaptureFixture[str], tokens: str, unit: str
) -> None:
    code, out, _ = call(capsys, "smollm2-135m", "--tokens", tokens, "--devices", "1", "--formulas")
    assert code == 0
    rows = [line.split() for line in out.splitlines() if line.split()]
    (value,) = (float(row[1]) for row in rows if row[0] == unit and row[1][:1].isdigit())
    assert 0.1 < value < 1000
    assert any(row[0] == "days" for row in rows)


def test_options_reach_the_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "ours.yaml"
    file.write_text("devices:\n  ours: {like: h100, memory_bytes: 96.0e+9, usd_per_hour: 1.5}\n")
    options = {
        "--sequence-length": "4096",
        "--global-batch-tokens": "2M",
        "--precision": "fp8",
        "--execution": "compile",
        "--optimizer": "adamw_8bit",
        "--usd-per-kwh": "0.3",
        "--pue": "1.5",
        "--overhead": "1.5",
        "--mfu": "0.35",
        "--hardware": str(file),
    }
    flat = [part for pair in options.items() for part in pair]
    arguments = ("llama-3.1-8b", "--tokens", "1T", "--device", "ours", "--devices", "16")
    code, out, _ = call(capsys, *arguments, *flat, "--json")
    assert code == 0
    report = json.loads(out)
    expected = {
        "sequence_tokens": 4096,
        "global_batch_tokens": 2_000_000 // 4096 * 4096,
        "precision": "fp8",
        "execution": "compile",
        "optimizer": "adamw_8bit",
        "overhead": 1.5,
        "mfu": 0.35,
        "mfu_source": "given",
        "device": "ours",
        "memory_bytes": 96e9,
        "usd_per_hour": 1.5,
    }
    assert {name: report[name] for name in expected} == expected
    assert report["energy_usd"] == pytest.approx(report["gpu_hours"] * 0.7 * 1.5 * 0.3)


def test_a_config_of_ones_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1536}
    config = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 2048, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, out, err = call(capsys, str(tmp_path), "--tokens", "10B", "--devices", "1", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["parameters"] == 2 * 32000 * 512 + 8 * (4 * 512**2 + 3 * 512 * 1536 + 2 * 512) + 512
    assert report["sequence_tokens"] == 2048


def test_a_budget_suggests_size_and_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--budget-usd", "100k", "--device", "h100", "--devices", "64", "--usd-per-hour", "2")
    code, out, _ = call(capsys, *arguments, "--json")
    assert code == 0
    report = json.loads(out)
    best = report["compute_optimal"]
    assert best["training_flops"] == pytest.approx(report["flops"])
    assert report["flops"] == pytest.approx(1e5 / 2 * 3600 * 989.4e12 * (0.30 + 0.16 * 8**-0.2) / 1.1)
    assert [optimum["inference_tokens"] for optimum in report["inference_aware"]] == [1e11, 1e12, 1e13]
    assert report["inference_aware"][-1]["parameters"] < best["parameters"]
    code, out, _ = call(capsys, *arguments, "--inference-tokens", "5T", "--formulas")
    assert code == 0
    assert "5 T tokens of use" in out
    assert "2401.00448" in out


def test_a_budget_and_a_model_say_how_many_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("llama-3.2-1b", "--budget-usd", "10k", "--usd-per-hour", "2", "--json")
    code, out, _ = call(capsys, *arguments)
    assert code == 0
    report = json.loads(out)
    assert report["usd"] == pytest.approx(1e4)
    assert report["budget"]["budget_usd"] == 1e4
    code, out, _ = call(capsys, *arguments[:-1])
    assert code == 0
    assert "gpu_hours" in out
    assert "loss of this training" in out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "say what is trained"),
        (("gpt2",), "say how much is trained"),
        (("gpt2", "--tokens", "many"), "--tokens 'many' is not a number"),
        (("gpt2", "--tokens", "0"), "--tokens is 0: it must be a number above 0"),
        (("gpt2", "--tokens", "-1e9"), "above 0"),
        (("gpt2", "--tokens", "nan"), "is not a number"),
        (("gpt2", "--tokens", "1e999"), "above 0"),
        (("gpt3", "--tokens", "1T"), "gpt3-175b"),
        (("gpt2", "--tokens", "1B", "--device", "h1000"), "did you mean h100"),
        (("gpt2", "--tokens", "1B", "--devices", "0"), "'0' is not a whole number above 0"),
        (("gpt2", "--tokens", "1B", "--usd-per-hour", "nan"), "usd_per_hour is nan"),
        (("gpt2", "--tokens", "1B", "--usd-per-hour", "0"), "usd_per_hour is 0"),
        (("gpt2", "--tokens", "1B", "--mfu", "40"), "mfu is 40"),
        (("gpt2", "--tokens", "1B", "--overhead", "0"), "overhead is 0"),
        (("gpt2", "--tokens", "1B", "--budget-usd", "5"), "give one"),
        (("gpt2", "--tokens", "1B", "--inference-tokens", "5"), "is for --budget-usd"),
        (("--budget-usd", "-5"), "--budget-usd is -5"),
        (("--budget-usd", "5", "--device", "gb200"), "give --usd-per-hour"),
        (("llama-3.1-405b", "--tokens", "1T"), "more than the 72.0 GB"),
        (("gpt2", "--tokens", "1B", "--precision", "int3"), "--precision"),
        (("gpt2", "--tokens", "1B", "--hardware", "/nowhere.yaml"), "/nowhere.yaml"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], part: str
) -> None:
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert part in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    code, out, _ = call(capsys, *arguments, "--json")
    assert code == 2
    assert part in json.loads(out)["error"]["message"]


def test_what_does_not_fit_has_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "llama-3.1-405b", "--tokens", "1T", "--json")
    assert code == 2
    error = json.loads(out)["error"]
    assert error["code"] == "does_not_fit"
    assert "it would fit with 128 × h100-sxm" in error["message"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e12", 1e12), ("15.6T", 15.6e12), ("300b", 3e11), ("2M", 2e6), ("50_000", 5e4), ("1,000", 1e3), (".5k", 500)],
)
def test_numbers_as_people_write_them(text: str, value: float) -> None:
    assert parse_count("--tokens", text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "T", "1TT", "1 2", "1,5M", "1,0000", "0x10", "inf", "1e", "--1"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a number"):
        parse_count("--tokens", text)


def test_nothing_heavy_is_loaded() -> None:
    code = (
        "import sys\nfrom bedplate.cli.main import main\n"
        f"try: main(['plan', 'train', *{LLAMA!r}, '--json'])\nexcept SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'numpy', 'scipy', 'transformers', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_the_packages_import_nothing_heavy() -> None:
    packages = {
        "numbers": "formula money prices",
        "hardware": "devices machine",
        "training": "device_layout layout_search scaling_laws training_cost tuning_cost",
    }
    code = "".join(
        f"import bedplate.economics.{package}.{name}\n" for package in packages for name in packages[package].split()
    )
    code += (
        "import sys; heavy = {'torch', 'numpy', 'scipy', 'rich', 'typer'} & set(sys.modules); assert not heavy, heavy"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_the_price_that_is_shown_is_the_one_that_is_multiplied(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "llama-3.1-8b", "--tokens", "1B", "--usd-per-hour", "0.105")
    assert (code, "price: $0.105 an hour" in out) == (0, True)
