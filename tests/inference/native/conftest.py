"""The kernel of each level that this processor runs."""

from __future__ import annotations

import pytest
from tests.inference.native.native_models import here

from bedplate.inference.native import compiler
from bedplate.inference.native.levels import LEVELS, Level
from bedplate.inference.native.library import Library, load

EVEX = "avx2_vnni in AVX-512's encoding"
_EVEX = [pytest.param(EVEX, marks=pytest.mark.slow)] if "avx512_vnni" in here() else []


@pytest.fixture(scope="module", params=[*here(), *_EVEX])
def library(request: pytest.FixtureRequest) -> Library:
    """The kernel of one level. AVX-VNNI's arithmetic also in the encoding that AVX-512 processors have (`make kernels`
    runs it: no processor is given that build)."""
    if request.param == EVEX:
        same, wide = LEVELS["avx2_vnni"], ("-mavx512vnni", "-mavx512vl")
        flags = (*(flag for flag in same.flags if flag != "-mavxvnni"), *wide)
        level = Level(EVEX, flags=flags, defines=(*same.defines, "BEDPLATE_EVEX"))
        found = compiler.opened(level, lambda built: Library(built.path, built.digest))
    else:
        found = load(request.param)
    assert isinstance(found, Library), found
    assert found.level == request.param
    return found
