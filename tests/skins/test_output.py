"""Reading answers."""

import math

import pytest
import scipy.special
from pydantic import ValidationError

from bedplate.core.errors import RequestError
from bedplate.skins.output import JsonOutput, LabelOutput, TextOutput


def test_label_probabilities_are_a_softmax_of_biased_scores():
    output = LabelOutput(labels=("a", "b", "c"), continuations=(" a", " b", " c"), bias=(0.0, 1.0, 0.0))
    label, log_probabilities = output.read_scores([-2.0, -2.5, -4.0], [1, 2, 1])
    assert label == "b"
    expected = scipy.special.log_softmax([-2.0, -1.5, -4.0])
    assert list(log_probabilities.values()) == pytest.approx(list(expected))


def test_normalising_by_tokens_can_change_the_label():
    by_total = LabelOutput(labels=("a", "b"))
    by_token = LabelOutput(labels=("a", "b"), normalise="tokens")
    assert by_total.bias == (0.0, 0.0)
    assert by_total.read_scores([-2.0, -3.0], [1, 2])[0] == "a"
    assert by_token.read_scores([-2.0, -3.0], [1, 2])[0] == "b"
    assert by_token.read_scores([-2.0, -3.0])[0] == "a"  # a head's logits have no tokens


def test_ties_and_impossible_scores():
    output = LabelOutput(labels=("a", "b"))
    assert output.read_scores([0.0, 0.0])[0] == "a"
    assert output.read_scores([-math.inf, 0.0]) == ("b", {"a": -math.inf, "b": 0.0})
    for scores in ([math.nan, 0.0], [-math.inf, -math.inf], [0.0]):
        with pytest.raises(RequestError):
            output.read_scores(scores)


@pytest.mark.parametrize(
    "fields",
    [
        {"labels": ["a"]},
        {"labels": ["a", "a"]},
        {"labels": ["a", ""]},
        {"labels": ["a", "b"], "continuations": ["x"]},
        {"labels": ["a", "b"], "continuations": ["x", "x"]},
        {"labels": ["a", "b"], "bias": [1.0]},
        {"labels": ["a", "b"], "bias": [1.0, math.nan]},
        {"labels": ["a", "b"], "normalise": "bytes"},
    ],
)
def test_bad_label_outputs(fields):
    with pytest.raises(ValidationError):
        LabelOutput(**fields)


def test_text():
    assert TextOutput().read_text("  hello\n") == "hello"
    with pytest.raises(ValidationError):
        TextOutput(stop=("",))


SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"enum": ["ü", "y"]}}, "required": ["a"]}


def test_json_is_read_as_one_text_per_value():
    output = JsonOutput(json_schema=SCHEMA)
    assert output.comparable('{"b": 1,\n "a": "\\u00fc"}') == output.comparable('{"a":"ü","b":1}') == '{"a":"ü","b":1}'
    for wrong in ('{"a": "x"}', '{"a": "y"', "", '{"b": 1}', "[]", '{"a": "y", "b": NaN}'):
        with pytest.raises(RequestError):
            output.comparable(wrong)


def test_equal_numbers_are_one_text_and_what_no_float_holds_is_none():
    output = JsonOutput(json_schema={"type": "number"})
    assert output.comparable("4") == output.comparable("4.0") == output.comparable("40e-1") == "4"
    assert output.comparable("-0.0") == "0"
    assert output.comparable("0.10") == "0.1"
    assert output.comparable("1e300") == "1e+300"
    assert output.comparable(str(10**30)) == str(10**30)
    for wrong in ("1e999", "-1e999", "Infinity"):
        with pytest.raises(RequestError):
            output.comparable(wrong)


def test_schemas_that_cannot_be_enforced_and_choices_that_cannot_be_told_apart():
    with pytest.raises(ValidationError, match="uniqueItems"):
        JsonOutput(json_schema={"type": "array", "uniqueItems": True})
    with pytest.raises(ValidationError, match="nothing is fetched"):
        JsonOutput(json_schema={"$ref": "https://127.0.0.1/x"})
    with pytest.raises(ValidationError):
        TextOutput(choices=("a", "a"))
    with pytest.raises(ValidationError):
        TextOutput(choices=(" a",))
