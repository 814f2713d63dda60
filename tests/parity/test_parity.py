"""Every family of Hugging Face's format against transformers, on the examples in its own file."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.rows import slow_unless

from bedplate.inference.measure.parity import DType, ParityCheck, read
from bedplate.models.families import FAMILIES

NAMES = sorted(name for format_, name in FAMILIES if format_ == "hf")
ALIKE = {
    *("mistral", "ministral3", "qwen2", "qwen3", "smollm3", "starcoder2", "granite", "olmo3", "gemma3_text"),
    *("qwen3_moe", "olmoe", "glm4_moe", "qwen3_5_text", "roberta", "xlm-roberta", "marian"),
}
"""Of what other families have too: ways to attend, to know positions, to name and pack weights."""
CASES: list[tuple[int, int, DType]] = [(0, 0, "float32")]
ALL_CASES: list[tuple[int, int, DType]] = [
    (example, seed, dtype) for example in range(2) for seed in range(3) for dtype in ("float32", "float64")
]


@pytest.mark.parametrize("name", slow_unless(lambda name: name not in ALIKE, NAMES))
def test_a_family_is_its_reference(name: str, tmp_path: Path) -> None:
    assert len(FAMILIES["hf", name].examples) >= 2, "two shapes at least"
    extra_examples = range(2, len(FAMILIES["hf", name].examples))
    check(name, [*CASES, *((example, 1, "float32") for example in extra_examples)], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_family_is_its_reference_with_every_seed(name: str, tmp_path: Path) -> None:
    extra_examples = range(2, len(FAMILIES["hf", name].examples))
    extra_cases = [
        (example, seed, dtype)
        for example in extra_examples
        for case_example, seed, dtype in ALL_CASES
        if case_example == 0
    ]
    check(name, [*ALL_CASES, *extra_cases], tmp_path)


def check(name: str, cases: list[tuple[int, int, DType]], directory: Path) -> None:
    wrong: list[ParityCheck] = []
    for number, (example, seed, dtype) in enumerate(cases):
        readings = list(read(FAMILIES["hf", name], directory / str(number), example, seed, dtype))
        assert readings
        wrong += [reading for reading in readings if not reading.passes]
    assert not wrong, "\n".join(map(str, wrong))
