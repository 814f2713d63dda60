"""The page of families shows what `bedplate families --check` compared: each family, and all that its kind has."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import pytest
from tests.scripts import DOCS, script

from bedplate.inference.measure.parity import BOUNDS
from bedplate.models.families import FAMILIES

EMPTY = {"encoder": {"loss", "32 tokens"}, "encoder–decoder": {"32 tokens"}, "decoder": set[str]()}
"""By kind, what is not compared."""


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    return script(DOCS / "parity.py")


def rows_of(text: str) -> list[dict[str, str]]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_every_family_has_a_row_of_differences_within_the_bounds(parity: ModuleType) -> None:
    """Their digits are those of the machine that they were read on."""
    page = (DOCS / "families.md").read_text("utf-8")
    rows = rows_of(page.split(parity.BEGIN)[1].split(parity.END)[0])
    families = {name: family for (format_, name), family in FAMILIES.items() if format_ == "hf"}
    assert [row["family"].strip("`") for row in rows] == list(families), "docs/adding-a-family.md says how to fill it"
    for row, (name, family) in zip(rows, families.items(), strict=True):
        spec = family.to_spec(family.examples[0])
        cells = {column: row[column] for column in parity.COLUMNS}
        assert {column for column, cell in cells.items() if not cell} == EMPTY[spec.kind], name
        for column, cell in cells.items():
            bounds = (max(BOUNDS["float32"], family.noise), max(BOUNDS["float64"], family.noise))
            for number, bound in zip(re.findall(r"[\d.e-]+", cell.replace("equal", "")), bounds, strict=False):
                assert float(number) <= bound, (name, column)
        assert int(row["comparisons"]) >= 30, name


def reading(**changes: Any) -> dict[str, Any]:
    comparison = {
        "family": "olmo2",
        "what": "logits",
        "dtype": "float32",
        "difference": 3e-7,
        "bound": 1e-5,
        "holds": True,
    }
    return comparison | changes


def test_a_row_tells_the_largest_and_not_what_differs(parity: ModuleType) -> None:
    comparisons = [
        *(reading(), reading(difference=8e-7), reading(dtype="float64", difference=2e-16)),
        *(reading(what="exported weights", difference=0.0, bound=0.0), reading(what="base read again", bound=0.0)),
    ]
    [row] = rows_of(parity.table(comparisons))
    assert (row["family"], row["outputs"], row["export"], row["loss"]) == ("`olmo2`", "8e-07; 2e-16", "equal", "")
    assert row["comparisons"] == "5"
    with pytest.raises(ValueError, match="loss of olmo2 differs"):
        parity.table([*comparisons, reading(what="loss", difference=1.0, holds=False)])
    with pytest.raises(KeyError):
        parity.table([reading(what="something new")])
