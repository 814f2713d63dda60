"""How a base is held for a skin: as it was judged, also where quantised weights lie on another dtype than bfloat16."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bedplate.core.errors import SkinError
from bedplate.inference.predict.opening import SkinExecution, dtype_of, evaluated_now, held_as
from bedplate.skins.skin import EvaluatedWith
from bedplate.skins.verify import check_judged


def engine(dtype: torch.dtype, weights: str, kernel: str) -> Any:
    return SimpleNamespace(base=SimpleNamespace(dtype=dtype), weights=weights, kernel=kernel)


@pytest.mark.parametrize(
    ("dtype", "weights", "kernel", "expected"),
    [
        (torch.float32, "float32", "torch", SkinExecution("float32", "auto", "torch")),
        (torch.bfloat16, "bfloat16", "native", SkinExecution("bfloat16", "auto", "native")),
        (torch.bfloat16, "int4", "native", SkinExecution("bfloat16", "int4", "native")),
        (torch.float32, "int8", "native", SkinExecution("float32", "int8", "native")),
    ],
)
def test_what_was_judged_is_what_is_held(
    dtype: torch.dtype, weights: str, kernel: str, expected: SkinExecution
) -> None:
    assert held_as(evaluated_now(engine(dtype, weights, kernel))) == expected


def test_the_dtype_beneath_is_written_only_where_it_says_something() -> None:
    assert evaluated_now(engine(torch.bfloat16, "int4", "native")).model_dump() == {
        "weights": "int4",
        "kernel": "native",
    }
    assert evaluated_now(engine(torch.float32, "float32", "torch")).model_dump() == {
        "weights": "float32",
        "kernel": "torch",
    }
    assert evaluated_now(engine(torch.float32, "int4", "native")).model_dump()["dtype"] == "float32"
    assert (dtype_of("int4"), dtype_of("int4", "float32"), dtype_of("float16"), dtype_of("x")) == (
        "bfloat16",
        "float32",
        "float16",
        "auto",
    )


def test_another_dtype_beneath_is_never_silent() -> None:
    judged = EvaluatedWith(weights="int4", kernel="native", dtype="float32")
    assert check_judged("s", judged, "int4", "native", False, "float32") == []
    with pytest.raises(SkinError, match="int4 made from float32, and this base is bfloat16"):
        check_judged("s", judged, "int4", "native", False, "bfloat16")
    assert len(check_judged("s", judged, "int4", "native", True, "bfloat16")) == 1
    assert check_judged("s", EvaluatedWith(weights="int4", kernel="native"), "int4", "native", False, "bfloat16") == []
