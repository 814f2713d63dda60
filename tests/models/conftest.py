"""Every parity test runs on several random models."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[0, 1, 2])
def seed(request: pytest.FixtureRequest) -> int:
    return request.param
