"""Conversations as training examples: the ids of transformers, and loss on exactly what the assistant must write."""

from __future__ import annotations

import pytest

from bedplate.core.errors import DataError
from bedplate.training.batch import completion_example


def test_a_completion_is_learned_whole_and_nothing_else() -> None:
    example = completion_example([5, 6, 7], [8, 9], "x")
    assert (example.ids, example.loss) == ((5, 6, 7, 8, 9), (False, False, False, True, True))
    with pytest.raises(DataError, match="x"):
        completion_example([5, 6], [], "x")
