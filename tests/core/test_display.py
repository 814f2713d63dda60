"""Numbers and names as people read them."""

from __future__ import annotations

import pytest

from bedplate.core.display import confidence_text


@pytest.mark.parametrize(
    ("level", "text"),
    [(0.95, "95.0%"), (0.985, "98.5%"), (0.999, "99.9%"), (0.9995, "99.95%"), (0.99999, "99.999%"), (1.0, "100.0%")],
)
def test_a_confidence_has_the_digits_that_tell_it_from_certainty(level: float, text: str) -> None:
    assert confidence_text(level) == f"{text} confidence"
