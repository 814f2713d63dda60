"""How replies write tokens."""

from __future__ import annotations

from pathlib import Path

from tests.tiny import write_tiny_base

from bedplate.inference.engine.requests import Step
from bedplate.serving.api.openai import token_entries
from bedplate.text.tokenizer import Tokenizer


def test_a_row_of_the_model_without_an_id_of_the_tokenizer_is_written_by_its_number(tmp_path: Path) -> None:
    """Many models have rows for more tokens than there are; random or badly tuned ones choose them."""
    tokenizer = Tokenizer.from_directory(write_tiny_base(tmp_path / "a"))
    beyond = tokenizer.vocab_size
    [logprob_row] = token_entries(
        tokenizer, [Step(beyond + 7, "", -1.0, ((beyond + 7, -1.0), (beyond, -2.0), (5, -3.0)))]
    )
    assert (logprob_row["token"], logprob_row["bytes"]) == (f"token_id:{beyond + 7}", [])
    assert [candidate["token"] for candidate in logprob_row["top_logprobs"][:2]] == [
        f"token_id:{beyond + 7}",
        f"token_id:{beyond}",
    ]
    assert logprob_row["top_logprobs"][2]["bytes"] == list(tokenizer.token_bytes(5))
