"""Skins that a remote model answers for, against a server that labels, hesitates, refuses and talks nonsense."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.inference.fake_labeller import Labeller, of_json
from tests.inference.fake_server import fake_server

import bedplate
from bedplate.adapters.soft_prompt import SoftPrompt
from bedplate.core.errors import BusyError, DataError, DeadlineError, EndpointError, SkinError, UsageError
from bedplate.core.files import read_jsonl
from bedplate.inference.predict.hosted_predictor import HostedPredictor, label_scores, read_label
from bedplate.inference.remote.account import Account, TokenPrices
from bedplate.inference.remote.endpoint import ChatAnswer, Endpoint
from bedplate.skins.files import read_skin, skin_id, write_skin
from bedplate.skins.output import Abstain, JsonOutput, LabelOutput, Output, TextOutput
from bedplate.skins.prompt import Demonstration, Prompt
from bedplate.skins.skin import EndpointReference, InputField, Skin

LABELS = LabelOutput(labels=("negative", "positive"))
ROWS = [{"review": text} for text in ("great stuff", "terrible stuff", "works so well", "it broke")]
EXPECTED = ["positive", "negative", "positive", "negative"]
PRICE = TokenPrices(input=1000.0, cached_input=100.0, output=2000.0)
SCHEMA = {
    "type": "object",
    "properties": {"good": {"type": "boolean"}},
    "required": ["good"],
    "additionalProperties": False,
}


@pytest.fixture
def server() -> Iterator[Labeller]:
    labeller = Labeller()
    with fake_server(labeller):
        yield labeller


def hosted(server: Labeller, model: str = "ok", output: Output = LABELS, **settings: Any) -> Skin:
    reference = EndpointReference(url=server.url, model=model, **settings)
    return Skin(
        name="reviews-hosted",
        bases={"main": reference},
        inputs={"review": InputField()},
        output=output,
        prompt=Prompt("Answer with one of: negative, positive.\n\nReview: {{ review }}", "chat"),
    )


def outputs(predictor: HostedPredictor) -> list[str]:
    return [p.output for p in predictor.predict(ROWS)]


def test_labels_with_scores_tokens_and_price(server: Labeller) -> None:
    with HostedPredictor(hosted(server), account=Account(price=PRICE)) as predictor:
        predictions = predictor.predict(ROWS)
        assert [p.output for p in predictions] == EXPECTED
        first = predictions[0]
        assert first.scores["positive"] == pytest.approx(math.log(0.8 / 0.9))
        assert first.scores["negative"] == pytest.approx(math.log(0.1 / 0.9))
        assert (first.cached_tokens * 2, first.completion_tokens) == (first.prompt_tokens, 1)
        assert first.usd == pytest.approx((first.cached_tokens * 1100 + 2000) / 1e6)
        assert predictor.account.spent == pytest.approx(sum(p.usd or 0.0 for p in predictions))
        assert first.seconds > 0
        assert predictor("great stuff") == "positive"
    assert len(server.requests) == len(ROWS)  # the last one was known
    assert {body["temperature"] for body in server.requests} == {0.0}


def test_what_was_paid_for_is_not_asked_again(server: Labeller, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with HostedPredictor(hosted(server), account=Account(path, price=PRICE)) as predictor:
        before = predictor.predict(ROWS)
    with path.open("a") as file:
        file.write('{"key": "torn')  # killed while writing
    with HostedPredictor(hosted(server), account=Account(path, price=PRICE)) as predictor:
        assert predictor.predict([*ROWS, {"review": "well"}])[:-1] == before
        assert predictor.account.spent == pytest.approx(sum(row["usd"] for row in read_jsonl(path)))
    assert len(server.requests) == len(ROWS) + 1
    path.write_text('{"key": "x", "usd": "much"}\n')
    with pytest.raises(DataError, match="line 1: no answer of a remote model"):
        Account(path)


@pytest.mark.parametrize("model", ["flaky", "limited"])
def test_failures_that_pass_are_waited_for(server: Labeller, model: str) -> None:
    waits: list[float] = []
    with HostedPredictor(hosted(server, model, concurrency=1), sleep=waits.append) as predictor:
        assert outputs(predictor) == EXPECTED
    assert len(waits) == 2
    if model == "limited":  # as long as it says, and somewhat later
        assert all(0.05 <= wait <= 0.1 for wait in waits)
    else:
        assert all(low <= wait <= 2 * low for low, wait in zip((0.5, 1.0), waits, strict=True))


def test_a_server_that_dies_keeps_what_it_said(server: Labeller, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    account = Account(path, price=PRICE)
    dying = hosted(server, "dies", concurrency=1, retries=0)
    with HostedPredictor(dying, account=account) as predictor, pytest.raises(EndpointError, match="gone for good"):
        predictor.predict(ROWS)
    assert account.lost == 1
    rows = read_jsonl(path)
    assert ["answer" in row for row in rows] == [True, True, False]
    server.failing = 99
    with HostedPredictor(dying, account=Account(path, price=PRICE)) as predictor:
        assert outputs(predictor) == EXPECTED
    assert len(server.requests) == 3 + 2


def test_the_cap_stops_before_it_is_passed(server: Labeller, tmp_path: Path) -> None:
    account = Account(tmp_path / "a.jsonl", price=PRICE, max_usd=0.18)
    with HostedPredictor(hosted(server, concurrency=1), account=account) as predictor:
        with pytest.raises(EndpointError, match=r"past max_usd of \$0.18; raise max_usd") as caught:
            predictor.predict(ROWS)
        assert caught.value.status == 402
    request_count = len(server.requests)
    assert 0 < request_count < len(ROWS)
    assert 0 < account.spent <= 0.18
    larger = Account(tmp_path / "a.jsonl", price=PRICE, max_usd=10)
    assert larger.spent == pytest.approx(account.spent)
    with HostedPredictor(hosted(server), account=larger) as predictor:
        assert outputs(predictor) == EXPECTED
    assert len(server.requests) == len(ROWS)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 400), st.booleans()), max_size=30), st.floats(0.1, 3))
def test_spending_never_passes_the_cap(calls: list[tuple[float, int, bool]], cap: float) -> None:
    """Whatever order reservations, answers and losses come in, as long as a call costs no more than was put aside."""
    account = Account(price=TokenPrices(1e3, 1e3, 1e3), max_usd=cap)
    for number, (ceiling, tokens, lost) in enumerate(calls):
        try:
            reserved = account.reserve(ceiling, "x")
        except EndpointError:
            assert account.spent + ceiling > cap
            continue
        if lost:
            account.lose(str(number), reserved, "why")
        else:
            used = min(tokens, int(reserved * 1e3))
            account.settle(str(number), ChatAnswer("", "stop", used, 0, 0), reserved)
        assert account.spent <= cap + 1e-9


@pytest.mark.parametrize(
    ("model", "error_class", "message"),
    [
        ("unauthorised", EndpointError, "refuses the API key: no such key"),
        ("page", EndpointError, "an answer that is none of the API"),
    ],
)
def test_what_will_not_pass_fails_at_once(server: Labeller, model: str, error_class: type, message: str) -> None:
    with HostedPredictor(hosted(server, model, concurrency=1)) as predictor, pytest.raises(error_class, match=message):
        predictor.predict(ROWS)
    assert len(server.requests) == 1


def test_a_server_that_falls_silent(server: Labeller) -> None:
    skin = hosted(server, "hangs", timeout_s=0.2, retries=1, concurrency=1)
    account = Account(price=PRICE)
    with HostedPredictor(skin, account=account, sleep=lambda _: None) as predictor, pytest.raises(DeadlineError):
        predictor.predict(ROWS[:1])
    assert len(server.requests) == 2
    assert account.spent > 0  # nobody knows whether it is charged


def test_each_attempt_that_may_be_charged_counts(server: Labeller) -> None:
    """A silent server is asked four times, one that fails twice three times: each the most that it can have cost."""
    max_cost = PRICE.max_cost([{"content": hosted(server).prompt.text(ROWS[0], ())[0]["content"], "role": "user"}], 16)  # type: ignore[index]
    silent = hosted(server, "hangs", timeout_s=0.1, retries=3, concurrency=1)
    account = Account(price=PRICE)
    with HostedPredictor(silent, account=account, sleep=lambda _: None) as predictor, pytest.raises(DeadlineError):
        predictor.predict(ROWS[:1])
    assert len(server.requests) == account.lost == 4
    attempt_cost = account.spent / 4
    assert attempt_cost == pytest.approx(max_cost, rel=0.05)
    server.requests.clear()
    account = Account(price=PRICE, max_usd=2.5 * attempt_cost)
    with HostedPredictor(silent, account=account, sleep=lambda _: None) as predictor:
        with pytest.raises(EndpointError, match="past max_usd") as caught:
            predictor.predict(ROWS[:1])
        assert caught.value.status == 402
    assert len(server.requests) == account.lost == 2
    assert account.spent == pytest.approx(2 * attempt_cost)
    account = Account(price=PRICE)
    with HostedPredictor(hosted(server, "flaky"), account=account, sleep=lambda _: None) as predictor:
        predictions = predictor.predict(ROWS[:1])
    assert account.lost == 2
    assert account.spent == pytest.approx(2 * attempt_cost + (predictions[0].usd or 0.0))


def test_as_many_are_asked_at_once_as_the_skin_says(server: Labeller) -> None:
    server.failing = 120
    skin = hosted(server, "crowd", concurrency=120, timeout_s=5.0, retries=0)
    with HostedPredictor(skin) as predictor:
        assert len(predictor.predict([{"review": f"great {i}"} for i in range(120)])) == 120


def test_without_a_price_an_answer_costs_what_its_server_says(server: Labeller, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with HostedPredictor(hosted(server), account=Account(path)) as predictor:
        assert [p.usd for p in predictor.predict(ROWS[:2])] == [None, None]
        assert predictor.account.spent == 0.0
    priced = Account(path, price=PRICE)
    with HostedPredictor(hosted(server), account=priced) as predictor:
        costs = [p.usd or 0.0 for p in predictor.predict(ROWS[:2])]
    assert all(costs)
    assert priced.spent == pytest.approx(sum(costs))
    assert len(server.requests) == 2
    server_priced = Account()
    server_priced.settle(
        "x",
        ChatAnswer("yes", "stop", 3, 0, 1, cost_usd=0.25),
        server_priced.reserve(server_priced.max_cost([], 9), "x"),
    )
    assert server_priced.cost("x") == server_priced.spent == 0.25
    free = Account(price=TokenPrices())
    free.settle("x", ChatAnswer("yes", "stop", 3, 0, 1), 0.0)
    assert free.cost("x") == 0.0
    with pytest.raises(UsageError, match="no price is given"):
        Account(max_usd=1.0)


def test_a_busy_server_costs_nothing(server: Labeller) -> None:
    server.failing = 99
    account = Account(price=PRICE)
    skin = hosted(server, "limited", retries=1, concurrency=1)
    with HostedPredictor(skin, account=account, sleep=lambda _: None) as predictor, pytest.raises(BusyError):
        predictor.predict(ROWS)
    assert (account.spent, account.lost) == (0.0, 0)


def test_nonsense_is_shown_as_it_is(server: Labeller) -> None:
    with HostedPredictor(hosted(server, "nonsense")) as predictor:
        predictions = predictor.predict(ROWS)
    assert {p.output for p in predictions} == {"I would rather talk about the weather."}
    assert all(p.scores == {} for p in predictions)


def test_it_abstains_where_its_label_is_not_likely_enough(server: Labeller) -> None:
    server.sure = lambda prompt: 0.8 if "great" in prompt else 0.3
    output = LabelOutput(labels=LABELS.labels, abstain=Abstain(below=0.8, answer="unsure"))
    with HostedPredictor(hosted(server, output=output)) as predictor:
        predictions = predictor.predict(ROWS)
    assert [p.output for p in predictions] == ["positive", "unsure", "unsure", "unsure"]
    assert [p.text for p in predictions] == EXPECTED
    server.answer = lambda prompt: "The review is negative"  # its first token says nothing of how likely that is
    with HostedPredictor(hosted(server, output=output)) as predictor:
        predictions = predictor.predict(ROWS)
    assert {(p.output, len(p.scores)) for p in predictions} == {("negative", 0)}


def test_a_text_says_why_it_ended(server: Labeller) -> None:
    server.ended = "length"
    with HostedPredictor(hosted(server, output=TextOutput(max_tokens=7))) as predictor:
        assert predictor.predict(ROWS[:1])[0].finish_reason == "length"


def test_a_row_that_is_not_spoken_about_is_no_right_answer(server: Labeller) -> None:
    with HostedPredictor(hosted(server, "prudish")) as predictor:
        assert outputs(predictor) == ["positive", "", "positive", "negative"]


@pytest.mark.parametrize(
    ("model", "unknown_fields"), [("plain", {"logprobs", "top_logprobs"}), ("modern", {"max_tokens"})]
)
def test_fields_that_a_server_does_not_know_are_left_out(
    server: Labeller, model: str, unknown_fields: set[str]
) -> None:
    with HostedPredictor(hosted(server, model, concurrency=1)) as predictor:
        predictions = predictor.predict(ROWS)
        assert [p.output for p in predictions] == EXPECTED
        assert predictor.left_out == unknown_fields
    assert len(server.requests) == len(ROWS) + 1  # learned once
    assert not unknown_fields & set(server.requests[-1])
    assert (predictions[0].scores == {}) == (model == "plain")


def test_json_is_asked_for_by_its_schema(server: Labeller) -> None:
    server.answer = of_json
    with HostedPredictor(hosted(server, output=JsonOutput(json_schema=SCHEMA))) as predictor:
        assert outputs(predictor) == ['{"good":true}', '{"good":false}'] * 2
    response_format = server.requests[0]["response_format"]
    assert response_format["json_schema"]["schema"] == SCHEMA
    assert response_format["json_schema"]["strict"] is True


def test_texts_are_stripped_and_stopped(server: Labeller) -> None:
    server.answer = lambda prompt: f" {prompt.rpartition(' ')[2]} \n"
    output = TextOutput(max_tokens=7, stop=("\n\n",))
    with HostedPredictor(hosted(server, output=output)) as predictor:
        assert outputs(predictor) == ["stuff", "stuff", "well", "broke"]
    assert (server.requests[0]["max_tokens"], server.requests[0]["stop"]) == (7, ["\n\n"])


def test_demonstrations_are_earlier_turns(server: Labeller) -> None:
    import dataclasses

    skin = dataclasses.replace(hosted(server), demonstrations=(Demonstration({"review": "awful"}, "negative"),))
    with HostedPredictor(skin) as predictor:
        predictor.predict(ROWS[:1])
    assert [m["role"] for m in server.requests[0]["messages"]] == ["user", "assistant", "user"]


def test_the_skin_is_a_directory_that_loads_and_holds_no_key(
    server: Labeller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skin = hosted(server, api_key_env="REVIEWS_KEY", timeout_s=9)
    write_skin(skin, tmp_path / "skin")
    assert skin_id(read_skin(tmp_path / "skin")) == skin_id(skin)
    with pytest.raises(UsageError, match="REVIEWS_KEY, which is not set"):
        bedplate.load(tmp_path / "skin")
    monkeypatch.setenv("REVIEWS_KEY", "sk-very-secret")
    with bedplate.load(tmp_path / "skin") as loaded:
        assert isinstance(loaded, HostedPredictor)
        assert loaded("great stuff") == "positive"
        assert loaded.predict(["it broke"])[0].output == "negative"
    assert server.requests[0]["key"] == "Bearer sk-very-secret"
    for path in (tmp_path / "skin").iterdir():
        assert b"sk-very-secret" not in path.read_bytes()
    assert json.loads((tmp_path / "skin" / "skin.json").read_text())["bases"]["main"]["api_key_env"] == "REVIEWS_KEY"


@pytest.mark.parametrize("key", ["sk-secret\r", "sk-secret\n", "sk secret", "sk-sécret", "sk-secret\x7f"])
def test_what_no_header_carries_is_no_key_and_is_not_repeated(
    server: Labeller, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("REVIEWS_KEY", key)
    with pytest.raises(UsageError, match=r"the environment variable REVIEWS_KEY, for .*, holds no key") as caught:
        HostedPredictor(hosted(server, api_key_env="REVIEWS_KEY"))
    with pytest.raises(UsageError, match="the API key has white space") as direct:
        Endpoint(server.url, key=key)
    for error in (caught.value, direct.value):
        assert "cret" not in error.message
    assert server.requests == []


def test_a_password_in_the_address_is_stored_nowhere(server: Labeller, tmp_path: Path) -> None:
    for url, message in (("http://me:sesame@host", "user's name or password"), ("nowhere", "not a server's address")):
        with pytest.raises(UsageError, match=message):
            EndpointReference(url=url, model="ok")
        write_skin(hosted(server), tmp_path / "skin", replace=True)
        manifest = tmp_path / "skin" / "skin.json"
        manifest.write_text(manifest.read_text().replace(server.url, url))
        with pytest.raises(SkinError, match=message) as caught:
            read_skin(tmp_path / "skin")
        assert "sesame" not in caught.value.message


def test_parts_that_do_not_go_together(server: Labeller) -> None:
    import dataclasses

    with pytest.raises(SkinError, match="an endpoint"):
        dataclasses.replace(hosted(server), soft_prompt=SoftPrompt(torch.zeros(2, 4)))
    with pytest.raises(SkinError, match="is answered by"):
        _ = hosted(server).base


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("positive", "positive"),
        (" Positive.\n", "positive"),
        ('"very positive"', "very positive"),
        ("The review is very positive overall", "very positive"),
        ("**negative**", "negative"),
        ("Label: negative", "negative"),
        ("positive or negative", None),
        ("positively", None),
        ("", None),
        ("...", None),
        ("POSITIVE; I am sure: positive", "positive"),
    ],
)
def test_labels_are_read(text: str, label: str | None) -> None:
    assert read_label(("negative", "positive", "very positive"), text) == label


label_sets = st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=6), min_size=2, unique=True)


@given(label_sets, st.sampled_from(["{}", " {}\n", "'{}'", "({}).", "**{}**"]), st.data())
def test_every_label_is_read_as_itself(labels: list[str], around: str, data: st.DataObject) -> None:
    label = data.draw(st.sampled_from(labels))
    assert read_label(labels, around.format(label)) == label


def test_labels_that_differ_in_case_only_are_read_exactly() -> None:
    assert read_label(("us", "US"), "US") == "US"
    assert read_label(("us", "US"), "it is us.") == "us"
    assert read_label(("us", "US"), "Us") is None


def test_scores_come_from_tokens_that_begin_one_label_only() -> None:
    output = LabelOutput(labels=("negative", "neutral", "positive"))

    def scores(*alternatives: tuple[str, float], text: str = " Positive.", **extension: Any) -> dict[str, float]:
        return label_scores(
            output, "positive", ChatAnswer(text, "stop", alternatives=alternatives, extension=extension)
        )

    likeliest = (" pos", math.log(0.5)), ("ne", math.log(0.3)), ("Neg", math.log(0.1)), ("x", math.log(0.01))
    assert {k: math.exp(v) for k, v in scores(*likeliest).items()} == pytest.approx(
        {"negative": 0.1 / 0.61, "neutral": 0.01 / 0.61, "positive": 0.5 / 0.61}
    )
    assert scores(*likeliest, text="Not negative: it is positive") == {}  # "N…" is what the first token is about
    assert scores(("ne", -0.1)) == {}
    assert scores() == {}
    log_scores = {"negative": -1.0, "neutral": -2.0, "positive": -3.0}
    assert scores(scores=log_scores)["negative"] == pytest.approx(
        -1 - math.log(sum(math.exp(v) for v in log_scores.values()))
    )
    assert scores(scores=log_scores, text="It is positive") == scores(scores=log_scores)
    assert scores(scores={"yes": 0.0}) == {}
