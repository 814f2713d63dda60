"""Conversations: with a base and skins on this machine and with a server's models; commands; what is kept."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.inference.fake_server import SCORES, Fake, fake_server
from tests.serving.conftest import make_skins
from tests.tiny import write_tiny_base

from bedplate.core.errors import BedplateError, ContextLengthExceeded, RequestError, UnknownModelError, UsageError
from bedplate.inference.chat import (
    COMMANDS,
    ChatEndpoint,
    Conversation,
    LocalBase,
    open_local,
    run_command,
)
from bedplate.inference.predict.classical import ClassicalPredictor
from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.skin_bases import LoadedSkin
from bedplate.inference.remote.endpoint import ChatAnswer, Endpoint
from bedplate.models.checkpoints.base import load_base
from bedplate.skins.files import write_skin


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fake_server() as server:
        yield server


@pytest.fixture
def remote(fake: Fake) -> Iterator[Callable[[str], Conversation]]:
    """Begins a conversation with a model of the server."""
    with Endpoint(fake.url) as endpoint:
        yield lambda name: Conversation(ChatEndpoint(endpoint, name))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("chat")
    base = write_tiny_base(root / "tiny")
    skins = {skin.name: str(write_skin(skin, root / skin.name)) for skin in make_skins(load_base(base))}
    return {"tiny": str(base), **skins}


@contextlib.contextmanager
def local(files: dict[str, str], name: str, **settings: Any) -> Iterator[Conversation]:
    options = {"base": files["tiny"]} if name != "tiny" else {}
    with contextlib.closing(open_local(files[name], **options)) as partner:
        yield Conversation(partner, settings=settings)


def take_turn(conversation: Conversation, content: str) -> ChatAnswer:
    reply = conversation.begin(content)
    shown = "".join(piece.text for piece in reply.pieces() if piece.section == "content")
    answer = conversation.finish(reply)
    assert shown == answer.text
    return answer


def heard(conversation: Conversation, content: str) -> list[dict[str, str]]:
    """What the echo got."""
    return json.loads(take_turn(conversation, content).text)


def test_each_turn_carries_what_was_said(remote: Callable[[str], Conversation]) -> None:
    conversation = remote("echo")
    conversation.set_system("be kind")
    first = take_turn(conversation, "one").text
    assert heard(conversation, "two") == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "two"},
    ]
    assert run_command(conversation, "/reset") == "a new conversation"
    assert heard(conversation, "four") == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "four"},
    ]


def test_a_turn_that_failed_leaves_no_trace(remote: Callable[[str], Conversation]) -> None:
    conversation = remote("full")
    with pytest.raises(ContextLengthExceeded):
        conversation.begin("much")
    assert conversation.messages == []
    conversation = remote("broken")
    reply = conversation.begin("more")
    with pytest.raises(BedplateError):
        list(reply.pieces())
    assert conversation.messages == []


def test_a_stopped_answer_is_kept_as_far_as_it_came(remote: Callable[[str], Conversation]) -> None:
    conversation = remote("slow")
    reply = conversation.begin("go")
    next(iter(reply.pieces()))
    reply.close()
    answer = conversation.finish(reply)
    assert (answer.text, answer.finish_reason) == ("word0 ", "cancelled")
    assert conversation.messages[-1]["content"] == "word0 "


def test_a_base_here_answers_as_the_engine_does(files: dict[str, str]) -> None:
    with local(files, "tiny", temperature=0, max_tokens=12) as conversation:
        first = take_turn(conversation, "hi")
        second = take_turn(conversation, "and?")
        messages = list(conversation.messages)
        assert isinstance(conversation.partner, LocalBase)
    with load(files["tiny"]) as model:
        assert not isinstance(model, LoadedSkin)
        assert first.text == model.generate(messages[:1], max_tokens=12).text
        assert second.text == model.generate(messages[:3], max_tokens=12).text
    assert (first.completion_tokens, first.finish_reason) == (12, "length")
    assert second.cached_tokens is not None


def test_the_context_s_end_is_said(files: dict[str, str]) -> None:
    with local(files, "tiny", temperature=0) as conversation, pytest.raises(ContextLengthExceeded):
        conversation.begin("works well " * 600)


@pytest.mark.parametrize("name", ["prompted", "probed"])
def test_labels_here(files: dict[str, str], name: str) -> None:
    with local(files, name) as conversation, load(files[name], base=files["tiny"]) as skin:
        assert isinstance(skin, LoadedSkin)
        answer = take_turn(conversation, "it broke")
        prediction = skin.predict(["it broke"])[0]
        assert (answer.text, answer.extension["scores"]) == (
            prediction.output,
            pytest.approx(dict(prediction.scores)),
        )
        assert take_turn(conversation, "it broke").text == answer.text  # earlier turns are no input
        with pytest.raises(RequestError, match="no sampling settings"):
            Conversation(conversation.partner, settings={"temperature": 1.0})
        with pytest.raises(UsageError, match="a prompt of its own"):
            conversation.set_system("be kind")


def test_a_model_of_words(files: dict[str, str]) -> None:
    with contextlib.closing(open_local(files["worded"])) as partner, load(files["worded"]) as alone:
        assert isinstance(alone, ClassicalPredictor)
        answer, prediction = take_turn(Conversation(partner), "It broke!"), alone.predict(["It broke!"])[0]
        assert (answer.text, answer.extension["scores"], answer.prompt_tokens) == (
            prediction.output,
            prediction.scores,
            3,
        )
        with pytest.raises(RequestError, match="no sampling settings"):
            Conversation(partner, settings={"temperature": 1.0})


def test_a_text_skin_and_one_of_two_inputs(files: dict[str, str]) -> None:
    with local(files, "writer", max_tokens=5) as conversation:
        assert take_turn(conversation, "hi").completion_tokens == 5
    with local(files, "pair") as conversation:
        assert conversation.partner.inputs == ("question", "answer")
        assert take_turn(conversation, '{"question": "a", "answer": "b"}').text in {"negative", "positive"}
        for wrong in ("a", "[1]", '{"question": "a"}'):
            with pytest.raises(RequestError):
                conversation.begin(wrong)


def test_labels_of_a_server(remote: Callable[[str], Conversation], fake: Fake) -> None:
    conversation = remote("label")
    take_turn(conversation, "one")
    assert take_turn(conversation, "two").extension["scores"] == SCORES
    assert fake.requests[-1]["messages"] == [{"role": "user", "content": "two"}]


def test_settings_reach_the_server_and_are_checked_here(fake: Fake, files: dict[str, str]) -> None:
    with Endpoint(fake.url) as endpoint:
        settings = {"temperature": 0.25, "max_tokens": 9, "seed": None}
        take_turn(Conversation(ChatEndpoint(endpoint, "echo"), settings=settings), "hi")
    body = fake.requests[-1]
    assert (body["temperature"], body["max_tokens"], "seed" in body) == (0.25, 9, False)
    with local(files, "tiny") as conversation, pytest.raises(RequestError, match="temperature"):
        Conversation(conversation.partner, settings={"temperature": -1.0})


def test_commands(remote: Callable[[str], Conversation]) -> None:
    conversation = remote("echo")
    assert all(f"/{name} " in run_command(conversation, "/help") for name in COMMANDS)
    assert run_command(conversation, "/system be kind") == "system message: be kind"
    assert run_command(conversation, "/system -") == "there is no system message"
    with pytest.raises(EOFError):
        run_command(conversation, "/quit")
    with pytest.raises(UnknownModelError, match="its models are: ok, echo"):
        remote("nope")
    for wrong, part in {"/rest": "did you mean /reset", "/xyzzy": "/help lists", "/": "no command"}.items():
        with pytest.raises(UsageError, match=part):
            run_command(conversation, wrong)
