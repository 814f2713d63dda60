"""What generation_config.json says of texts: followed, or said by name."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import write_tiny_base

from bedplate.core.errors import CheckpointError
from bedplate.models.checkpoints.base import load_base
from bedplate.models.checkpoints.text_files import never_written, unfollowed

FOLLOWED: dict[str, Any] = {
    "num_beams": 1,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "repetition_penalty": 1,
    "sequence_bias": None,
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.8,
    "eos_token_id": [2, 3],
    "bad_words_ids": [[5], [6]],
}
UNFOLLOWED: dict[str, Any] = {
    "num_beams": 4,
    "min_length": 56,
    "no_repeat_ngram_size": 3,
    "repetition_penalty": 1.1,
    "begin_suppress_tokens": [7],
    "guidance_scale": 1.5,
}


def test_settings_that_change_which_text_is_likeliest_are_named() -> None:
    assert unfollowed(FOLLOWED) == {}
    assert unfollowed(FOLLOWED | UNFOLLOWED) == UNFOLLOWED
    assert unfollowed({"bad_words_ids": [[5], [6, 7]]}) == {"bad_words_ids": [[6, 7]]}


@pytest.mark.parametrize("place", ["generation_config.json", "config.json"])
def test_loading_says_so_once(place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """distilbart-cnn-12-6 has them in both files."""
    path = write_tiny_base(tmp_path / "a") / place
    fields = {} if place == "generation_config.json" else json.loads(path.read_text())
    with caplog.at_level(logging.WARNING, "bedplate.models"):
        path.write_text(json.dumps(fields | FOLLOWED))
        load_base(path.parent)
        assert not caplog.records
        path.write_text(json.dumps(fields | FOLLOWED | {"min_length": 56, "num_beams": 4}))
        load_base(path.parent)
    [record] = caplog.records
    assert "num_beams = 4, min_length = 56" in record.getMessage()


def test_tokens_that_never_come(tmp_path: Path) -> None:
    settings = {"bad_words_ids": [[5], [6, 7]], "suppress_tokens": [8, 9, -1, 10_000]}
    assert never_written(settings) == {5, 8, 9, -1, 10_000}
    path = write_tiny_base(tmp_path / "a")
    (path / "generation_config.json").write_text(json.dumps(settings))
    assert load_base(path).never_written == {5, 8, 9}  # those that there are
    (path / "generation_config.json").write_text('{"bad_words_ids": 5}')
    with pytest.raises(CheckpointError, match="a generation setting has a value of the wrong kind"):
        load_base(path)


def test_without_the_file_config_json_says_what_ends_a_text(tmp_path: Path) -> None:
    path = write_tiny_base(tmp_path / "a")
    config, text_ends = json.loads((path / "config.json").read_text()), load_base(path).text_ends
    fields: dict[str, Any] = {"eos_token_id": [7, 9], "bos_token_id": 4, "force_bos_token_to_be_generated": True}
    (path / "config.json").write_text(json.dumps(config | fields))
    base = load_base(path)
    assert base.text_ends == text_ends | {7, 9}
    assert base.generation_defaults["forced_bos_token_id"] == 4
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 8}))
    base = load_base(path)
    assert base.text_ends == {8}
    assert "forced_bos_token_id" not in base.generation_defaults
