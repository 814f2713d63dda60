"""One measure of nearness and one wording for names that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from bedplate.core.suggestions import did_you_mean, nearest, path_hint


def test_the_nearest_names_come_first_and_far_ones_not_at_all() -> None:
    names = ("accuracy", "macro_f1", "micro_f1", "exact_match")
    assert nearest("acuracy", names) == ["accuracy"]
    assert nearest("maicro_f1", names, 3)[:2] in (["macro_f1", "micro_f1"], ["micro_f1", "macro_f1"])
    assert nearest("zzz", names) == []


def test_the_case_of_a_name_and_spaces_around_it_make_it_no_other() -> None:
    assert nearest("BILLING", ("billing", "delivery")) == ["billing"]
    assert nearest(" positve ", ("POSITIVE", "NEGATIVE")) == ["POSITIVE"]


def test_a_hint_is_a_question_with_what_else_is_said() -> None:
    assert did_you_mean(["a", "b"]) == "did you mean 'a' or 'b'?"
    assert did_you_mean(["a"], "there are a, c") == "did you mean 'a'? there are a, c"
    assert did_you_mean([], "there are a, c") == "there are a, c"
    assert did_you_mean(["reset"], show="/{}".format) == "did you mean /reset?"
    assert did_you_mean([]) == ""


def test_a_path_is_suggested_from_what_its_folders_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/stdlib.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert path_hint(Path("recipes/stdlibb.yml")) == "did you mean 'recipes/stdlib.yaml'?"
    assert path_hint(Path("recipe/stdlib.yaml"), "or else") == "did you mean 'recipes/stdlib.yaml'? or else"
    assert path_hint(Path("recipe/other")) == "did you mean 'recipes'?"
    assert path_hint(Path("a/b/c"), "or else") == "or else"
    assert path_hint(tmp_path / "recipez") == f"did you mean '{tmp_path}/recipes'?"


def test_a_missing_file_is_none_of_another_format_nor_a_hidden_one(tmp_path: Path) -> None:
    for name in (".pre-commit-config.yaml", ".missing.yaml", "missing.json", "mixture.yaml", "reviews.yaml"):
        (tmp_path / name).touch()
    assert path_hint(tmp_path / "missing.yaml", "or else") == "or else"
    assert path_hint(tmp_path / "reveiws.yaml") == f"did you mean '{tmp_path}/reviews.yaml'?"
    assert path_hint(tmp_path / "reviews.jsonl") == ""
    assert path_hint(tmp_path / ".pre-comit-config.yaml") == f"did you mean '{tmp_path}/.pre-commit-config.yaml'?"
    assert path_hint(tmp_path / "reviews.yaml/task.yaml") == ""
