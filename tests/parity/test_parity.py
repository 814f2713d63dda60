"""Every family of Hugging Face's format against transformers, on the examples in its own file."""

from __future__ import annotations

from pathlib import Path

import pytest

from bedplate.inference.measure.parity import DType, Reading, read
from bedplate.models.families import FAMILIES

NAMES = sorted(name for format_, name in FAMILIES if format_ == "hf")
CASES: list[tuple[int, int, DType]] = [
    *((example, seed, "float32") for seed in range(3) for example in range(2)),
    *((seed % 2, seed, "float64") for seed in range(3)),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_family_is_its_reference(name: str, tmp_path: Path) -> None:
    family = FAMILIES["hf", name]
    assert len(family.examples) >= 2, "two shapes at least"
    wrong: list[Reading] = []
    for number, (example, seed, dtype) in enumerate(CASES):
        found = list(read(family, tmp_path / str(number), example, seed, dtype))
        assert found
        wrong += [one for one in found if not one.holds]
    assert not wrong, "\n".join(map(str, wrong))
