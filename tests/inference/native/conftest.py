"""The kernel of each level that this processor runs."""

from __future__ import annotations

import pytest
from tests.inference.native.native_builds import EMULATED
from tests.inference.native.native_models import is_quick, supported_levels
from tests.rows import slow_unless

from bedplate.inference.native import compiler
from bedplate.inference.native.levels import LEVELS, Level
from bedplate.inference.native.library import Library, load

EVEX = "avx2_vnni in AVX-512's encoding"
_EVEX = [pytest.param(EVEX, marks=pytest.mark.slow)] if "avx512_vnni" in supported_levels() else []
_EMULATED = pytest.param(EMULATED.name, marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=[*slow_unless(is_quick, supported_levels()), _EMULATED, *_EVEX])
def library(request: pytest.FixtureRequest) -> Library:
    """The kernel of one level. AVX-VNNI's arithmetic also in the encoding that AVX-512 processors have (`make kernels`
    runs it: no processor is given that build), and AMX's tiles in plain C++."""
    if request.param == EMULATED.name:
        loaded = request.getfixturevalue("emulated")
    elif request.param == EVEX:
        base_level, vnni_flags = LEVELS["avx2_vnni"], ("-mavx512vnni", "-mavx512vl")
        flags = (*(flag for flag in base_level.flags if flag != "-mavxvnni"), *vnni_flags)
        level = Level(EVEX, flags=flags, defines=(*base_level.defines, "EVEX"))
        loaded = compiler.opened(level, lambda built: Library(built.path, built.digest))
    else:
        loaded = load(request.param)
    assert isinstance(loaded, Library), loaded
    assert loaded.level == request.param
    return loaded


@pytest.fixture(scope="session")
def emulated() -> Library:
    """AMX's tiles in plain C++."""
    loaded = compiler.opened(EMULATED, lambda built: Library(built.path, built.digest))
    assert isinstance(loaded, Library), loaded
    return loaded
