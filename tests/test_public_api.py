"""The public names: sorted, all there, each the object its module defines."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import bedplate


def test_all_is_sorted_and_is_what_dir_shows() -> None:
    assert sorted(bedplate.__all__) == bedplate.__all__
    assert dir(bedplate) == bedplate.__all__


@pytest.mark.parametrize("name", bedplate.__all__)
def test_every_name_resolves(name: str) -> None:
    assert getattr(bedplate, name) is not None


def test_type_checkers_see_the_same_modules() -> None:
    tree = ast.parse(Path(bedplate.__file__).read_text("utf-8"))
    imports = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imports == bedplate._MODULES
    assert sorted([*imports, "BedplateError", "__version__"]) == bedplate.__all__


def test_unknown_name_lists_the_names() -> None:
    with pytest.raises(AttributeError, match="its names are BedplateError, Skin"):
        bedplate.nothing  # noqa: B018
