"""Triton's kernels on CPU tensors, through its interpreter."""

from __future__ import annotations

import pytest

NO_TRITON = "NO TRITON"
"""Why a kernel's test is skipped; told at the end of a run."""


def interpreting(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, kernels that are imported are interpreted; skips where they cannot be."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when Triton and the kernels are imported
    triton = pytest.importorskip("triton", reason=f"{NO_TRITON}; its interpreter would run the kernels here")
    if type(triton.language.zeros).__name__ != "InterpretedFunction":
        pytest.skip("Triton was imported to compile; run this file by itself")
