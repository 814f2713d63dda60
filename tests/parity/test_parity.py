"""Every family of Hugging Face's format against transformers, on the examples in its own file."""

from __future__ import annotations

from pathlib import Path

import pytest

from bedplate.inference.measure.parity import DType, Reading, read
from bedplate.models.families import FAMILIES

NAMES = sorted(name for format_, name in FAMILIES if format_ == "hf")
CASES: list[tuple[int, int, DType]] = [(0, 0, "float32"), (1, 1, "float32"), (0, 2, "float64")]
EVERY: list[tuple[int, int, DType]] = [
    (example, seed, dtype) for example in range(2) for seed in range(3) for dtype in ("float32", "float64")
]


@pytest.mark.parametrize("name", NAMES)
def test_a_family_is_its_reference(name: str, tmp_path: Path) -> None:
    assert len(FAMILIES["hf", name].examples) >= 2, "two shapes at least"
    more = range(2, len(FAMILIES["hf", name].examples))
    check(name, [*CASES, *((example, 1, "float32") for example in more)], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_family_is_its_reference_with_every_seed(name: str, tmp_path: Path) -> None:
    more = range(2, len(FAMILIES["hf", name].examples))
    others = [(example, seed, dtype) for example in more for one, seed, dtype in EVERY if one == 0]
    check(name, [*EVERY, *others], tmp_path)


def check(name: str, cases: list[tuple[int, int, DType]], directory: Path) -> None:
    wrong: list[Reading] = []
    for number, (example, seed, dtype) in enumerate(cases):
        found = list(read(FAMILIES["hf", name], directory / str(number), example, seed, dtype))
        assert found
        wrong += [one for one in found if not one.holds]
    assert not wrong, "\n".join(map(str, wrong))
