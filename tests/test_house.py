"""The house stays untied: no circle of files, no crowded folder, an order for every room."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from tests.scripts import DOCS, script

MOST_FILES = 25


@pytest.fixture(scope="module")
def house() -> ModuleType:
    return script(DOCS / "house.py")


def write(package: Path, **files: str) -> Path:
    package.mkdir()
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    return package


def test_no_circle_of_files(house: ModuleType) -> None:
    assert house.circles(house.imports()) == []


def test_a_circle_is_found_wherever_its_imports_stand(house: ModuleType, tmp_path: Path) -> None:
    package = write(
        tmp_path / "pkg",
        __init__="",
        a="from pkg import b\n",
        b="def f():\n    from pkg.c import x\n",
        c="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import y\nx = 1\n",
        d="import pkg.a\n",
    )
    assert house.circles(house.imports(package)) == [["pkg.a", "pkg.b", "pkg.c"]]


def test_no_folder_is_crowded(house: ModuleType) -> None:
    crowded = {folder: count for folder, count in house.folders().items() if count > MOST_FILES}
    crowded |= {
        f"tests/{folder}": count for folder, count in house.folders(Path(__file__).parent).items() if count > MOST_FILES
    }
    assert crowded == {}


def test_every_room_with_inner_rooms_has_its_order(house: ModuleType) -> None:
    """A folder of folders has a list of layers in pyproject.toml, and the list names every one of them."""
    rooms = [room for row in house.layers() for room in row]
    assert set(rooms) == {path.name for path in house.PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    for room in rooms:
        inner = {path.name for path in (house.PACKAGE / room).iterdir() if (path / "__init__.py").is_file()}
        ordered = {name for row in house.layers(f"bedplate.{room}") for name in row}
        if len(inner) > 3:
            assert inner <= ordered, room
