"""Conversations: with a base and skins on this machine and with a server's models; commands; what is kept."""

from __future__ import annotations

import contextlib
import json
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.inference.fake_server import SCORES, Fake, fake_server
from tests.serving.conftest import make_skins
from tests.tiny import write_tiny_base

from bedplate.core.errors import BedplateError, ConfigError, ContextLengthExceeded, RequestError, UsageError
from bedplate.inference.chat.commands import COMMANDS, run_command
from bedplate.inference.chat.conversation import Conversation, read_settings
from bedplate.inference.chat.history import history_file, line_editing
from bedplate.inference.chat.partners import LocalBase, RemoteModel, Turn, open_local
from bedplate.inference.predict.classical import ClassicalPredictor
from bedplate.inference.predict.loaded import LoadedSkin, load
from bedplate.inference.remote.endpoint import Endpoint
from bedplate.models.checkpoints.base import load_base
from bedplate.skins.files import write_skin


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fake_server() as server:
        yield server


@pytest.fixture
def remote(fake: Fake) -> Iterator[Conversation]:
    with Endpoint(fake.url) as endpoint:
        opener = partial(RemoteModel, endpoint)
        yield Conversation(opener("echo"), opener)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("chat")
    base = write_tiny_base(root / "tiny")
    skins = {skin.name: str(write_skin(skin, root / skin.name)) for skin in make_skins(load_base(base))}
    return {"tiny": str(base), **skins}


@contextlib.contextmanager
def local(files: dict[str, str], name: str, **settings: Any) -> Iterator[Conversation]:
    opener = partial(open_local, base=files["tiny"]) if name != "tiny" else open_local
    conversation = Conversation(opener(files[name]), opener, settings=settings)
    yield conversation
    conversation.close()


def take_turn(conversation: Conversation, content: str) -> Turn:
    reply = conversation.begin(content)
    shown = "".join(reply)
    turn = conversation.finish(reply)
    assert shown in {turn.text, ""}
    return turn


def heard(conversation: Conversation, content: str) -> list[dict[str, str]]:
    """What the echo got."""
    return json.loads(take_turn(conversation, content).text)


def test_each_turn_carries_what_was_said(remote: Conversation) -> None:
    remote.set_system("be kind")
    first = take_turn(remote, "one").text
    assert heard(remote, "two") == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "two"},
    ]
    assert remote.undo() == "two"
    assert [message["content"] for message in heard(remote, "three")] == ["be kind", "one", first, "three"]
    assert remote.retry() == "three"
    assert len(remote.messages) == 2
    remote.reset()
    assert heard(remote, "four") == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "four"}]


def test_a_turn_that_failed_leaves_no_trace_but_can_be_tried_again(remote: Conversation) -> None:
    remote.change_partner("full")
    with pytest.raises(ContextLengthExceeded):
        remote.begin("much")
    assert remote.messages == []
    remote.change_partner("broken")
    reply = remote.begin("more")
    with pytest.raises(BedplateError):
        list(reply)
    assert remote.messages == []
    assert remote.retry() == "more"
    with pytest.raises(UsageError, match="nothing has been said"):
        remote.undo()


def test_a_stopped_answer_is_kept_as_far_as_it_came(remote: Conversation) -> None:
    remote.change_partner("slow")
    reply = remote.begin("go")
    next(iter(reply))
    reply.stop()
    turn = remote.finish(reply)
    assert (turn.text, turn.finish_reason) == ("word0 ", "cancelled")
    assert remote.messages[-1]["content"] == "word0 "


def test_a_base_here_answers_as_the_engine_does(files: dict[str, str]) -> None:
    with local(files, "tiny", temperature=0, max_tokens=12) as conversation:
        turn = take_turn(conversation, "hi")
        second_turn = take_turn(conversation, "and?")
        messages = list(conversation.messages)
        assert isinstance(conversation.partner, LocalBase)
    with load(files["tiny"]) as model:
        assert not isinstance(model, LoadedSkin)
        assert turn.text == model.generate(messages[:1], max_tokens=12).text
        assert second_turn.text == model.generate(messages[:3], max_tokens=12).text
    assert turn.completion_tokens == 12
    assert turn.finish_reason == "length"
    assert not turn.context_full
    assert second_turn.cached_tokens is not None


def test_the_context_s_end_is_said(files: dict[str, str]) -> None:
    with local(files, "tiny", temperature=0, repetition_penalty=1.3) as conversation:
        room = conversation.partner.context_length
        assert room == 512
        turn = take_turn(conversation, "works well " * 60)
        if turn.finish_reason == "length":
            assert turn.context_full
        with pytest.raises(ContextLengthExceeded):
            conversation.begin("works well " * 600)


@pytest.mark.parametrize("name", ["prompted", "probed"])
def test_labels_here(files: dict[str, str], name: str) -> None:
    with local(files, name) as conversation, load(files[name], base=files["tiny"]) as skin:
        assert isinstance(skin, LoadedSkin)
        turn = take_turn(conversation, "it broke")
        expected = skin.predict(["it broke"])[0]
        assert (turn.text, turn.scores) == (expected.output, pytest.approx(dict(expected.scores)))
        assert take_turn(conversation, "it broke").text == turn.text  # earlier turns are no input
        for change in ({"temperature": 1.0},):
            with pytest.raises(RequestError, match="no sampling settings"):
                conversation.set(change)
        with pytest.raises(UsageError, match="a prompt of its own"):
            conversation.set_system("be kind")


def test_a_model_of_words(files: dict[str, str]) -> None:
    conversation = Conversation(open_local(files["worded"]), open_local)
    with contextlib.closing(conversation), load(files["worded"]) as alone:
        assert isinstance(alone, ClassicalPredictor)
        turn, expected = take_turn(conversation, "It broke!"), alone.predict(["It broke!"])[0]
        assert (turn.text, turn.scores, turn.prompt_tokens) == (expected.output, expected.scores, 3)
        with pytest.raises(RequestError, match="no sampling settings"):
            conversation.set({"temperature": 1.0})


def test_a_text_skin_and_one_of_two_inputs(files: dict[str, str]) -> None:
    with local(files, "writer", max_tokens=5) as conversation:
        assert take_turn(conversation, "hi").completion_tokens == 5
    with local(files, "pair") as conversation:
        assert conversation.partner.inputs == ("question", "answer")
        assert take_turn(conversation, '{"question": "a", "answer": "b"}').text in {"negative", "positive"}
        for wrong in ("a", "[1]", '{"question": "a"}'):
            with pytest.raises(RequestError):
                conversation.begin(wrong)


def test_labels_of_a_server(remote: Conversation, fake: Fake) -> None:
    remote.change_partner("label")
    take_turn(remote, "one")
    assert take_turn(remote, "two").scores == SCORES
    assert fake.requests[-1]["messages"] == [{"role": "user", "content": "two"}]


def test_settings_reach_the_server_and_are_checked_here(
    remote: Conversation, files: dict[str, str], fake: Fake
) -> None:
    run_command(remote, "/set temperature=0.25 max_tokens=9 stop=\\n\\n")
    take_turn(remote, "hi")
    body = fake.requests[-1]
    assert (body["temperature"], body["max_tokens"], body["stop"]) == (0.25, 9, ["\n\n"])
    run_command(remote, "/set temperature=")
    take_turn(remote, "hi")
    assert "temperature" not in fake.requests[-1]
    with local(files, "tiny") as conversation:
        with pytest.raises(RequestError, match="temperature"):
            conversation.set({"temperature": -1.0})
        assert conversation.settings == {}
        conversation.set(read_settings("stop=a max_tokens=4"))
        take_turn(conversation, "hi")


@pytest.mark.parametrize("text", ["temperature", "warmth=1", "seed=x", "max_tokens=1.5", "=1"])
def test_settings_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        read_settings(text)


def test_conversations_are_saved_and_loaded(remote: Conversation, tmp_path: Path) -> None:
    remote.set_system("sö")
    remote.set({"seed": 3})
    take_turn(remote, "one\ntwo")
    path = tmp_path / "a.json"
    assert run_command(remote, f"/save {path}").message == f"saved to {path}"
    messages = list(remote.messages)
    with pytest.raises(UsageError, match="exists already"):
        run_command(remote, f"/save {path}")
    remote.reset()
    remote.set_system("")
    remote.set({"seed": None})
    assert run_command(remote, f"/load {path}").message == "1 turns loaded"
    assert (remote.messages, remote.system, remote.settings) == (messages, "sö", {"seed": 3})


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[]",
        '{"bedplate_chat": 2}',
        '{"bedplate_chat": 1, "system": 3, "settings": {}, "messages": []}',
        '{"bedplate_chat": 1, "system": null, "settings": {"warmth": 1}, "messages": []}',
        '{"bedplate_chat": 1, "system": null, "settings": {}, "messages": [{"role": "user", "content": "a"}]}',
        '{"bedplate_chat": 1, "system": null, "settings": {}, "messages": [{"role": "user", "content": "a"}, 1]}',
    ],
)
def test_files_that_are_no_conversation(remote: Conversation, tmp_path: Path, content: str) -> None:
    take_turn(remote, "one")
    before = list(remote.messages)
    (tmp_path / "a.json").write_text(content, "utf-8")
    with pytest.raises(ConfigError, match=r"a\.json"):
        run_command(remote, f"/load {tmp_path / 'a.json'}")
    assert remote.messages == before
    with pytest.raises(UsageError, match="cannot be read"):
        run_command(remote, f"/load {tmp_path / 'none.json'}")


def test_commands(remote: Conversation) -> None:
    helped = run_command(remote, "/help").message
    assert all(command.usage in helped for command in COMMANDS.values())
    assert run_command(remote, "/quit").leave
    assert run_command(remote, "/tokens").message == "no tokens yet"
    take_turn(remote, "one")
    assert (
        "1 turns: 7 prompt tokens, 5 of them cached; 3 answered\ncost: $0.5" in run_command(remote, "/tokens").message
    )
    assert run_command(remote, "/retry").question == "one"
    assert "echo: reads the whole conversation" in run_command(remote, "/model").message
    assert "pair: reads question, answer" in run_command(remote, "/model pair").message
    with pytest.raises(BedplateError, match="its models are: ok, echo"):
        run_command(remote, "/model nope")
    assert remote.partner.name == "pair"
    for wrong, part in {
        "/rest": "did you mean /reset",
        "/xyzzy": "/help lists",
        "/save": "needs a file",
        "/undo 3": "nothing after it",
        "/": "no command",
    }.items():
        with pytest.raises(UsageError, match=part):
            run_command(remote, wrong)


def test_a_partner_that_does_not_fit_is_not_taken(remote: Conversation) -> None:
    run_command(remote, "/system be kind")
    with pytest.raises(UsageError, match="takes no system message"):
        run_command(remote, "/model label")
    assert remote.partner.name == "echo"
    run_command(remote, "/system -")
    run_command(remote, "/model label")


def test_the_history_is_the_owner_s_alone() -> None:
    readline = pytest.importorskip("readline")
    history_file().parent.mkdir(parents=True, exist_ok=True)
    history_file().write_text("before\n")
    history_file().chmod(0o644)
    with line_editing():
        assert readline.get_history_item(1) == "before"
        readline.add_history("typed ü")
    assert history_file().read_text("utf-8") == "before\ntyped ü\n"
    assert stat.S_IMODE(history_file().stat().st_mode) == 0o600
