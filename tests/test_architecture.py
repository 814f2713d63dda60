"""The architecture holds: no import cycle, no crowded folder, an order for every package."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from tests.scripts import DOCS, script

MOST_FILES = 25


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    return script(DOCS / "architecture.py")


def write(package: Path, **files: str) -> Path:
    package.mkdir()
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    return package


def test_no_circle_of_files(architecture: ModuleType) -> None:
    assert architecture.circles(architecture.imports()) == []


def test_a_circle_is_found_wherever_its_imports_stand(architecture: ModuleType, tmp_path: Path) -> None:
    package = write(
        tmp_path / "pkg",
        __init__="",
        a="from pkg import b\n",
        b="def f():\n    from pkg.c import x\n",
        c="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import y\nx = 1\n",
        d="import pkg.a\n",
    )
    assert architecture.circles(architecture.imports(package)) == [["pkg.a", "pkg.b", "pkg.c"]]


def test_no_folder_is_crowded(architecture: ModuleType) -> None:
    crowded = {folder: count for folder, count in architecture.folders().items() if count > MOST_FILES}
    crowded |= {
        f"tests/{folder}": count
        for folder, count in architecture.folders(Path(__file__).parent).items()
        if count > MOST_FILES
    }
    assert crowded == {}


def test_every_package_with_subpackages_has_an_order(architecture: ModuleType) -> None:
    """A folder of folders has a list of layers in pyproject.toml, and the list names every one of them."""
    packages = [package for row in architecture.layers() for package in row]
    assert set(packages) == {path.name for path in architecture.PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    for package in packages:
        inner = {path.name for path in (architecture.PACKAGE / package).iterdir() if (path / "__init__.py").is_file()}
        ordered = {name for row in architecture.layers(f"bedplate.{package}") for name in row}
        if len(inner) > 3:
            assert inner <= ordered, package
