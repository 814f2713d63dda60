"""The client of remote models, against a server that answers, refuses, stalls and breaks off."""

from __future__ import annotations

import email.utils
import itertools
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.inference.fake_server import ODD, SCORES, Fake, fake_server

from bedplate.core.errors import (
    BedplateError,
    BusyError,
    ContextLengthExceeded,
    DeadlineError,
    EndpointError,
    RequestError,
    UnknownModelError,
    UsageError,
)
from bedplate.inference.remote.endpoint import ChatAnswer, Endpoint, _retry_after, event_data

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fake_server() as server:
        yield server


@pytest.fixture
def endpoint(fake: Fake) -> Iterator[Endpoint]:
    with Endpoint(fake.url, key="bp_1") as opened:
        yield opened


def whole(endpoint: Endpoint, model: str, **settings: object) -> ChatAnswer:
    stream = endpoint.chat(model, HI, **settings)
    assert "".join(stream) == stream.text
    return stream.answer()


def test_an_answer_and_what_is_known_of_it(endpoint: Endpoint, fake: Fake) -> None:
    stream = endpoint.chat("ok", HI, temperature=0.5, seed=3)
    assert list(stream) == ["Hel", "lo"]
    answer = stream.answer()
    assert (answer.text, answer.finish_reason, answer.cost_usd) == ("Hello", "stop", 0.5)
    assert (answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens) == (7, 5, 3)
    assert answer.first_seconds is not None
    assert 0 < answer.first_seconds <= answer.seconds
    body = fake.requests[0]
    assert body["key"] == "Bearer bp_1"
    assert (body["temperature"], body["seed"], body["messages"], body["stream"]) == (0.5, 3, HI, True)


def test_labels_come_in_the_extension(endpoint: Endpoint) -> None:
    assert whole(endpoint, "label").extension == {"label": "positive", "scores": SCORES}


def test_texts_that_look_like_line_ends_stay_whole(endpoint: Endpoint) -> None:
    assert whole(endpoint, "odd").text == ODD


def test_the_models(endpoint: Endpoint, fake: Fake) -> None:
    assert [model["id"] for model in endpoint.models()] == fake.models


@pytest.mark.parametrize(
    ("model", "error_class", "part"),
    [
        ("refused", RequestError, "temperature: too hot"),
        ("full", ContextLengthExceeded, "do not fit"),
        ("none", UnknownModelError, "no model 'none'"),
        ("secret", EndpointError, "refuses the API key: no key"),
        ("failed", EndpointError, "answered 500: the engine tripped"),
        ("html", EndpointError, "answered 500: Internal Server Error"),
        ("garbage", EndpointError, "none of the API"),
        ("unfinished", EndpointError, "after 3 characters without saying why"),
        ("stumbles", EndpointError, "failed on the answer: the engine tripped"),
        ("broken", EndpointError, "broke off its answer after 3 characters"),
    ],
)
def test_failures_have_their_names(endpoint: Endpoint, model: str, error_class: type[BedplateError], part: str) -> None:
    with pytest.raises(BedplateError) as caught:
        whole(endpoint, model)
    assert type(caught.value) is error_class
    assert part in caught.value.message


def test_what_was_wrong_is_named(endpoint: Endpoint) -> None:
    with pytest.raises(RequestError) as caught:
        endpoint.chat("refused", HI)
    assert (caught.value.param, caught.value.code) == ("temperature", "invalid_value")


def test_what_came_before_a_break_is_kept(endpoint: Endpoint) -> None:
    stream = endpoint.chat("broken", HI)
    with pytest.raises(EndpointError):
        list(stream)
    assert stream.text == "Hel"
    assert whole(endpoint, "ok").text == "Hello"  # the endpoint goes on


def test_a_busy_server_is_asked_again_as_late_as_it_says(endpoint: Endpoint, fake: Fake) -> None:
    assert whole(endpoint, "busy-once").text == "Hello"
    assert len(fake.requests) == 2
    assert fake.times[1] - fake.times[0] >= 0.2


def test_a_server_that_stays_busy_is_given_up(fake: Fake) -> None:
    waits: list[float] = []
    with Endpoint(fake.url, retries=3, sleep=waits.append) as endpoint:
        with pytest.raises(BusyError, match="queue full"):
            endpoint.chat("busy", HI)
        assert waits == [0.2] * 3
        assert len(fake.requests) == 4
        with pytest.raises(BusyError, match="asks to wait 3600 s"):
            endpoint.chat("busy-long", HI)
        assert len(waits) == 3  # nobody waits an hour


def test_a_silent_server_is_given_up(fake: Fake) -> None:
    with Endpoint(fake.url, timeout=0.3) as endpoint, pytest.raises(DeadlineError, match="sent nothing"):
        endpoint.chat("silent", HI)


def test_closing_early_tells_the_server(endpoint: Endpoint, fake: Fake) -> None:
    stream = endpoint.chat("slow", HI)
    next(iter(stream))
    stream.close()
    answer = stream.answer()
    assert (answer.text, answer.finish_reason, answer.completion_tokens) == ("word0 ", "cancelled", None)
    assert fake.disconnected.wait(60)


def test_nobody_there() -> None:
    with Endpoint("http://127.0.0.1:9") as endpoint, pytest.raises(EndpointError, match="is the server running"):
        endpoint.models()


@pytest.mark.parametrize(
    "url", ["https://me:sesame@host/v1", "https://sesame@host", "https://:sesame@host:a", "http://host/?key=sesame"]
)
def test_addresses_with_a_password_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError, match=r"holds a user's name or password|not a server's address") as caught:
        Endpoint(url)
    assert "sesame" not in caught.value.message


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://a", "http://", "http://a:b", "http://a/?q", "", "http://[x"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="address"):
        Endpoint(url)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://a:1", "http://a:1/v1"),
        ("http://a:1/", "http://a:1/v1"),
        ("https://a/v1/", "https://a/v1"),
        ("http://[::1]:8/api/v2", "http://[::1]:8/api/v2"),
    ],
)
def test_addresses(url: str, base: str) -> None:
    with Endpoint(url) as endpoint:
        assert endpoint.url == base


def test_retry_after_is_seconds_or_a_date() -> None:
    assert _retry_after("1.5") == 1.5
    assert _retry_after("-1") is None
    assert _retry_after("soon") is None
    assert _retry_after(None) is None
    date = _retry_after(email.utils.formatdate(time.time() + 20, usegmt=True))
    assert date is not None
    assert 15 < date <= 20
    assert _retry_after(email.utils.formatdate(0, usegmt=True)) == 0


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), max_size=5),
    st.lists(st.integers(0, 400), max_size=8),
    st.sampled_from(["\n", "\r\n"]),
)
def test_events_are_the_same_however_they_are_cut(texts: list[str], cuts: list[int], end: str) -> None:
    content = "".join(f"event: x{end}data: {text}{end}{end}: comment{end}" for text in texts).encode()
    places = sorted({0, *(min(cut, len(content)) for cut in cuts), len(content)})
    parts = [content[a:b] for a, b in itertools.pairwise(places)]
    assert list(event_data(parts)) == texts
