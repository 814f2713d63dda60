"""Every parity test runs on several random models; of those that differ in nothing else, the suite takes one."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def seed(request: pytest.FixtureRequest) -> int:
    return request.param
