"""Tables at any width: what they show is whole, what they leave out is named."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bedplate
from bedplate.core.progress import console
from bedplate.core.tables import Column, laid_out, numbers, show, show_wide

WORD = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=30)
CELL = st.lists(WORD, max_size=5).map(" ".join)
COLUMN = st.builds(Column, st.lists(WORD, min_size=1, max_size=2).map(" ".join), st.booleans(), st.booleans())


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Column], list[list[str]]]:
    first = Column("name")
    extra = st.builds(Column, WORD, extra=st.just(True))
    columns = [first, *draw(st.lists(st.one_of(COLUMN, extra), max_size=8))]
    row = st.tuples(*[CELL] * len(columns)).map(list)
    return columns, draw(st.lists(row, max_size=5))


@given(table=tables(), width=st.integers(20, 200))
def test_every_word_is_whole_and_what_is_left_out_is_named(
    table: tuple[list[Column], list[list[str]]], width: int
) -> None:
    columns, rows = table
    lines = laid_out(columns, rows, width=width)
    shown = "\n".join(lines).split()
    left_out = "--wide shows all)" in " ".join(shown)
    for row in rows:
        for column, cell in zip(columns, row, strict=True):
            for word in cell.split():
                assert word in shown or (column.extra and left_out), (word, lines)
    names = {"", *(column.name for column in columns)}
    for line in lines:
        assert line == line.rstrip()
        if _width(line) > width:  # one word, alone or behind its column's name
            assert line.rpartition(" ")[0].strip() in names, (line, width)


def _width(line: str) -> int:
    from rich.cells import cell_len

    return cell_len(line)


@given(table=tables())
def test_without_a_width_nothing_is_left_out(table: tuple[list[Column], list[list[str]]]) -> None:
    columns, rows = table
    shown = " ".join(laid_out(columns, rows, width=None)).split()
    for row in rows:
        assert all(word in shown for cell in row for word in cell.split())


ROWS = (("own-3b", "tune a base", "$303k", "$281k to $354k"), ("prompt", "", "$92.9k", "$72.7k to $120k"))
COLUMNS = ("option", Column("method", prose=True, extra=True), *numbers("total", "90% interval"))


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (
            80,
            [
                "option  method        total     90% interval",
                "own-3b  tune a base   $303k   $281k to $354k",
                "prompt               $92.9k  $72.7k to $120k",
            ],
        ),
        (
            40,
            [
                "option   total     90% interval",
                "own-3b   $303k   $281k to $354k",
                "prompt  $92.9k  $72.7k to $120k",
                "(not shown: method; --wide shows all)",
            ],
        ),
        (
            28,
            [
                "option own-3b",
                "  method        tune a base",
                "  total         $303k",
                "  90% interval  $281k to",
                "                $354k",
                "option prompt",
                "  total         $92.9k",
                "  90% interval  $72.7k to",
                "                $120k",
            ],
        ),
    ],
)
def test_narrow_then_fewer_columns_then_blocks(width: int, expected: Sequence[str]) -> None:
    columns = [Column(column) if isinstance(column, str) else column for column in COLUMNS]
    assert laid_out(columns, ROWS, width=width) == expected


def test_wide_shows_everything_and_colours_change_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    show(COLUMNS, ROWS)
    assert "method" not in capsys.readouterr().out.splitlines()[0]
    show_wide(True)
    try:
        show(COLUMNS, ROWS, title="[bold]options")
    finally:
        show_wide(False)
    assert capsys.readouterr().out.splitlines()[:2] == ["[bold]options", "option  method        total     90% interval"]


def test_a_row_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 cells in a table of 2 columns"):
        laid_out([Column("a"), Column("b")], [["x"]], width=80)


def test_lines_are_broken_between_words_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    console().print("  - kept in /a/path/that/is/longer/than/the/terminal.json, with [bold]more[/] words behind")
    assert capsys.readouterr().out.splitlines() == [
        "  - kept in",
        "    /a/path/that/is/longer/than/the/terminal.json,",
        "    with more words",
        "    behind",
    ]


def test_no_other_module_lays_out_tables() -> None:
    root = Path(bedplate.__file__).parent
    live = {"progress.py", "live.py"}  # what moves while it runs, and is gone then
    for path in root.rglob("*.py"):
        text = path.read_text("utf-8")
        if path.name in live or "table" not in text or "rich" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom) and node.module == "rich.table":
                raise AssertionError(f"{path}: tables are shown by bedplate.core.tables, which cuts nothing")
            assert "rich.table" not in names, path
