"""One measure of nearness and one wording for names that are not there."""

from __future__ import annotations

from bedplate.core.suggestions import did_you_mean, nearest


def test_the_nearest_names_come_first_and_far_ones_not_at_all() -> None:
    names = ("accuracy", "macro_f1", "micro_f1", "exact_match")
    assert nearest("acuracy", names) == ["accuracy"]
    assert nearest("maicro_f1", names, 3)[:2] in (["macro_f1", "micro_f1"], ["micro_f1", "macro_f1"])
    assert nearest("zzz", names) == []


def test_a_hint_is_a_question_with_what_else_is_said() -> None:
    assert did_you_mean(["a", "b"]) == "did you mean 'a' or 'b'?"
    assert did_you_mean(["a"], "there are a, c") == "did you mean 'a'? there are a, c"
    assert did_you_mean([], "there are a, c") == "there are a, c"
    assert did_you_mean(["reset"], show="/{}".format) == "did you mean /reset?"
    assert did_you_mean([]) == ""
