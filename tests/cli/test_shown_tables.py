"""The tables that commands of the docs print at 80 columns: no number, id or name is cut."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.economics.test_machine import machine

import bedplate.core.tables
from bedplate.cli.data.funnel import show as show_funnel
from bedplate.cli.main import main
from bedplate.cli.plan.calibrate import _show as show_machine
from bedplate.core.tables import Column, laid_out
from bedplate.economics.hardware.machine import write_machine

ROOT = Path(__file__).parents[2]
DECIDE = sorted(str(path) for path in (ROOT / "examples/decide").glob("*.yaml"))
COMMANDS: dict[str, list[str]] = {
    "plan train": ["plan", "train", "llama-3.1-405b", "--tokens", "15.6T", "--devices", "16384", "--formulas"],
    "plan train, a budget": ["plan", "train", "--budget-usd", "100k", "--devices", "64", "--inference-tokens", "5T"],
    "plan serve": ["plan", "serve", "llama-3.1-8b", "--device", "h100", "--calls-per-day", "1M", "--formulas"],
    "plan serve, here": ["plan", "serve", "small", "--machine", "MACHINE", "--usd-per-hour", "0.5"],
    "plan decide": ["plan", "decide", *DECIDE],
    "plan amortise": ["plan", "amortise", str(ROOT / "examples/amortise/account.yaml")],
    "pull": ["pull", "--list"],
    "families": ["families"],
    "keys": ["keys", "list", "--file", "KEYS"],
    "init": ["init", "ROWS", "--yes", "--out", "TASK"],
}


@pytest.fixture
def shown_tables(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Sequence[Column], Sequence[Sequence[str]]]]:
    """The tables that were shown."""
    tables: list[tuple[Sequence[Column], Sequence[Sequence[str]]]] = []

    def watched(columns: Sequence[Column], rows: Sequence[Sequence[str]], **how: Any) -> list[str]:
        tables.append((columns, rows))
        return laid_out(columns, rows, **how)

    monkeypatch.setattr(bedplate.core.tables, "laid_out", watched)
    monkeypatch.setenv("COLUMNS", "80")
    return tables


def is_whole(out: str, shown_tables: list[tuple[Sequence[Column], Sequence[Sequence[str]]]]) -> None:
    """Every word of every cell is there, unless its column is named among those that are not shown."""
    assert shown_tables
    words = set(out.split())
    left_out = " ".join(re.findall(r"\(not shown: ([^;]+);", out.replace("\n", " ")))
    for columns, rows in shown_tables:
        for row in rows:
            for column, cell in zip(columns, row, strict=True):
                lost = [word for word in cell.split() if word not in words]
                assert not lost or (column.extra and column.name in left_out), (column.name, lost)
    for line in out.splitlines():
        assert len(line) <= 80 or max(map(len, line.split())) > 30, line


@pytest.mark.parametrize("command", COMMANDS)
def test_of_commands(
    command: str,
    shown_tables: list[tuple[Sequence[Column], Sequence[Sequence[str]]]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    names = {name: str(tmp_path / name.lower()) for name in ("KEYS", "TASK")}
    names["MACHINE"] = str(write_machine(machine(), tmp_path / "machine.json"))
    rows = [f"the {i}. message of somebody,{('billing', 'delivery')[i % 2]},customer-{i // 3}" for i in range(300)]
    (tmp_path / "rows.csv").write_text("\n".join(["message,category,customer_id", *rows]) + "\n", "utf-8")
    names["ROWS"] = str(tmp_path / "rows.csv")
    if command == "keys":
        limits = ["--tokens-per-month", "200M", "--requests-per-minute", "1k", "--usd-per-month", "1234.5"]
        for name in ("a-rather-long-name-of-a-key", "shop"):
            assert run("keys", "create", name, "reviews-lora", "--file", names["KEYS"], *limits) == 0
        capsys.readouterr()
    assert run(*(names.get(word, word) for word in COMMANDS[command])) == 0
    is_whole(capsys.readouterr().out, shown_tables)


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*words])
    return int(ended.value.code or 0)


FUNNEL = {
    "corpus": "notes",
    "documents": 1_234_567,
    "bytes": 123_456_789_012,
    "kept": 1_000_000,
    "kept_bytes": 100_000_000_000,
    "steps": [
        {
            "rule": "near_duplicates",
            "in": 1_234_567,
            "dropped": 234_567,
            "out": 1_000_000,
            "reasons": {"alike by 0.8": 234_560, "alike within a document": 7},
        }
    ],
    "sources": {
        name: {
            "documents": 1_234_567,
            "kept": 1_000_000,
            "splits": {"train": 990_000, "valid": 10_000},
            "tokens": 25_000_000_000,
            "bytes_per_token": 4.02,
        }
        for name in ("a-source-of-a-long-name", "web")
    },
    "changed": {},
}


@pytest.mark.parametrize(
    "shown", [lambda: show_funnel(FUNNEL), lambda: show_machine(machine(), Path("/tmp/machine.json"))]
)
def test_of_what_takes_long(
    shown: Callable[[], None],
    shown_tables: list[tuple[Sequence[Column], Sequence[Sequence[str]]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown()
    is_whole(capsys.readouterr().out, shown_tables)


def test_of_a_ladder(
    shown_tables: list[tuple[Sequence[Column], Sequence[Sequence[str]]]], capsys: pytest.CaptureFixture[str]
) -> None:
    from bedplate.cli.adapt import _cells, show_curve
    from bedplate.core.tables import numbers, show

    finished_row = {
        "status": "done",
        "split": "valid",
        "interval": (0.123, 0.456),
        "estimate": 0.345,
        "n": 12345,
        "groups": 999,
    }
    costs = {"usd_per_1k_calls": 12.3456, "p50_ms": 12345.6, "p95_ms": 23456.7, "train_seconds": 3456.7}
    rows = [{"rung": "continued_pretrain@smollm2-135m", **finished_row, **costs}, {"rung": "full", "status": "skipped"}]
    names = ("accuracy", "interval", "n", "groups", "$/1k calls", "p50 ms", "p95 ms", "fit s")
    show(("rung", "split", *numbers(*names)), [_cells({"target": {}, "not_tried": []}, row) for row in rows])
    points = [
        {"rung": rung, "size": size, "estimate": 0.5, "interval": (0.4, 0.6)}
        for rung in ("probe", "lora")
        for size in (50, 100, 200, 500, 1000, 2000)
    ]
    curve = {"metric": "accuracy", "points": points, "flat": [], "left_out": [], "says": []}
    show_curve({"target": {}, "curve": curve})
    is_whole(capsys.readouterr().out, shown_tables)


def test_wide_and_pipes_have_every_column(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert run("pull", "--list") == 0
    assert "description" not in capsys.readouterr().out.splitlines()[0]
    assert run("pull", "--list", "--wide") == 0
    assert "description" in capsys.readouterr().out.splitlines()[0]
    monkeypatch.delenv("COLUMNS")
    assert run("pull", "--list") == 0
    output = capsys.readouterr().out
    assert "description" in output.splitlines()[0]
    assert "not shown" not in output
    assert run("pull", "--list", "--json") == 0
    assert json.loads(capsys.readouterr().out)
