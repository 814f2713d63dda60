"""`bedplate chat` as it is used: typed at on a terminal, piped through, stopped and left."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pytest
from tests.inference.fake_server import ODD, Fake, fake_server

from bedplate.cli.main import main
from bedplate.core.errors import EndpointError
from bedplate.inference.remote.endpoint import Endpoint

COMMAND = [sys.executable, "-m", "bedplate.cli.main", "chat"]
CTRL_C, CTRL_D = "\x03", "\x04"


@pytest.fixture(scope="module")
def fake() -> Iterator[Fake]:
    with fake_server() as server:
        yield server


class Terminal:
    """A chat on a terminal of its own."""

    def __init__(self, arguments: list[str], **environment: str) -> None:
        self._main, terminal_fd = pty.openpty()
        plain = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        self._child = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=terminal_fd,
            stdout=terminal_fd,
            stderr=terminal_fd,
            env={**plain, "TERM": "xterm", **environment},
            start_new_session=True,
            preexec_fn=_own_terminal,  # noqa: PLW1509 (it only makes system calls)
        )
        os.close(terminal_fd)
        self.unread = ""

    def type(self, text: str) -> None:
        os.write(self._main, text.encode())

    def until(self, text: str, seconds: float = 20.0) -> str:
        """What is shown until `text` is; later calls see what comes after."""
        end = time.monotonic() + seconds
        while text not in self.unread:
            assert time.monotonic() < end, f"{text!r} is not in {self.unread!r}"
            if select.select([self._main], [], [], 0.1)[0]:
                self.unread += self._read()
        shown, _, self.unread = self.unread.partition(text)
        return shown + text

    def _read(self) -> str:
        try:
            return os.read(self._main, 65536).decode("utf-8", "replace")
        except OSError as error:  # its other end is closed
            raise AssertionError(f"the chat has ended: {self.unread!r}") from error

    def interrupt(self) -> None:
        """Ctrl-C while a line is typed: a signal that comes before the line editor waits is seen with the next key."""
        time.sleep(0.5)
        self.type(CTRL_C)

    def leave(self) -> None:
        """Ctrl-D at the prompt."""
        self.until("> ")
        time.sleep(0.3)
        self.type(CTRL_D)
        self.ends()

    def ends(self, code: int = 0) -> str:
        with contextlib.suppress(AssertionError):
            while True:
                self.unread += self._read()
        assert self._child.wait(timeout=10) == code, self.unread
        return self.unread

    def close(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()
        os.close(self._main)


def _own_terminal() -> None:
    """The terminal's Ctrl-C goes to the child."""
    import fcntl
    import signal
    import termios

    signal.signal(signal.SIGINT, signal.default_int_handler)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def terminal(*arguments: str, **environment: str) -> Iterator[Terminal]:
    chat = Terminal(list(arguments), **environment)
    try:
        yield chat
    finally:
        chat.close()


def piped(fake: Fake, lines: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In this process; `test_a_chat_with_a_server_loads_no_torch` pipes through one of its own."""
    words, output, errors = ["chat", *arguments, "--url", fake.url], io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        patch.setattr(sys, "stdin", io.StringIO(lines))
        with pytest.raises(SystemExit) as stop:
            main(words)
    return subprocess.CompletedProcess(words, int(stop.value.code or 0), output.getvalue(), errors.getvalue())


def test_a_chat_on_a_terminal(fake: Fake) -> None:
    with terminal("ok", "--url", fake.url) as chat:
        assert "ok. /help lists" in chat.until("leaves.")
        chat.until("> ")
        chat.type("hi\r")
        shown = chat.until("tokens in, 5 cached")
        assert "Hello" in shown
        assert "\x1b[2m[7" in shown  # dimly
        chat.until("> ")
        chat.type("/nope\r")
        chat.until("error: there is no command /nope")
        chat.until("> ")
        chat.type("/quit\r")
        chat.ends()


def test_ctrl_c_stops_the_answer_and_then_leaves(fake: Fake) -> None:
    with terminal("slow", "--url", fake.url) as chat:
        chat.until("> ")
        chat.type("go\r")
        chat.until("word3 ")
        chat.type(CTRL_C)
        shown = chat.until("(Ctrl-C again, or Ctrl-D, leaves)")
        assert "stopped" in shown
        assert "Traceback" not in shown
        assert fake.disconnected.wait(60)
        chat.until("> ")
        chat.type("/system be kind\r")  # it is still there
        chat.until("system message: be kind")
        chat.until("> ")
        chat.type("typed but not sent")
        chat.until("typed but not sent")
        chat.interrupt()
        chat.until("(Ctrl-C again, or Ctrl-D, leaves)")
        chat.until("> ")
        chat.type("and again")
        chat.until("and again")
        chat.interrupt()
        assert "Traceback" not in chat.ends()


def test_a_server_that_wants_a_key_is_told_with_the_variable_that_holds_it(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: Endpoint) -> Any:
        raise EndpointError("the server refuses the API key: none was sent", status=401)

    monkeypatch.setattr(Endpoint, "models", refused)
    monkeypatch.delenv("BEDPLATE_API_KEY", raising=False)
    assert "set the environment variable BEDPLATE_API_KEY" in piped(fake, "hello\n").stderr
    monkeypatch.setenv("BEDPLATE_API_KEY", "old")
    assert "refuses the API key" in piped(fake, "hello\n").stderr


def test_several_inputs_are_one_object(fake: Fake) -> None:
    with terminal("pair", "--url", fake.url) as chat:
        chat.until("> ")
        chat.type('{"question": "is it?", "answer": "yes"}\r')
        chat.until("cached")
        chat.leave()
    assert json.loads(fake.requests[-1]["messages"][-1]["content"]) == {"question": "is it?", "answer": "yes"}


def test_no_color_and_a_model_that_steers_terminals(fake: Fake) -> None:
    with terminal("odd", "--url", fake.url, NO_COLOR="1") as chat:
        chat.until("> ")
        chat.type("hi\r")
        shown = chat.until("cached")
        assert "\x1b[2m" not in shown
        assert "\x1b[31m" not in shown
        assert "␛[31mred␋" in shown
        chat.leave()


def test_the_full_context_is_said(fake: Fake) -> None:
    with terminal("full", "--url", fake.url) as chat:
        chat.until("> ")
        chat.type("much\r")
        chat.until("error: the context is full: 9 tokens do not fit 8; /reset begins anew")
        chat.until("> ")
        chat.type("/reset\r")
        chat.until("a new conversation")
        chat.leave()


def test_an_answer_that_is_cut_off_says_so(fake: Fake) -> None:
    with terminal("long", "--url", fake.url) as chat:
        chat.until("> ")
        chat.type("hi\r")
        chat.until("cut off at max_tokens")
        chat.leave()


def test_lines_that_are_typed_are_remembered(fake: Fake) -> None:
    pytest.importorskip("readline")
    with terminal("ok", "--url", fake.url) as chat:
        chat.until("> ")
        chat.type("first of all\r")
        chat.until("cached")
        chat.until("> ")
        chat.type("\x1b[A\r")  # up
        chat.until("Hello")
        chat.leave()
    assert fake.requests[-1]["messages"][-1]["content"] == "first of all"


def test_piped_lines_are_turns(fake: Fake) -> None:
    completed = piped(fake, "hi\n\n//slash\n/system be kind\nlast", "ok", "--temperature", "0.5")
    assert (completed.returncode, completed.stdout) == (0, "Hello\n" * 3)
    assert "system message: be kind" in completed.stderr
    contents = [message["content"] for message in fake.requests[-1]["messages"]]
    assert contents == ["be kind", "hi", "Hello", "/slash", "Hello", "last"]
    assert fake.requests[-1]["temperature"] == 0.5
    assert piped(fake, "hi\n", "odd").stdout == f"{ODD}\n"  # as it is
    assert "\x1b" not in completed.stderr


def test_piped_json(fake: Fake) -> None:
    completed = piped(fake, "hi\n/quit\nnever\n", "ok", "--json")
    rows = [json.loads(line) for line in completed.stdout.splitlines()]
    assert completed.returncode == 0
    assert rows[0]["text"] == "Hello"
    assert (rows[0]["prompt_tokens"], rows[0]["cached_tokens"], rows[0]["completion_tokens"]) == (7, 5, 3)
    assert rows[0]["cost_usd"] == 0.5
    assert len(rows) == 1
    row = json.loads(piped(fake, "good\n", "label", "--json").stdout)
    assert (row["label"], row["scores"]["negative"]) == ("positive", pytest.approx(-2.302585))
    completed = piped(fake, "bad\n", "broken", "--json")
    assert completed.returncode == 1
    assert "broke off" in json.loads(completed.stdout)["error"]["message"]


def test_a_chat_with_a_server_loads_no_torch(fake: Fake) -> None:
    code = (
        "import sys\nfrom bedplate.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    words = [sys.executable, "-c", code, "chat", "ok", "--url", fake.url]
    completed = subprocess.run(words, input="hi\n", capture_output=True, text=True, timeout=60, check=False)
    assert (completed.returncode, completed.stdout) == (0, "Hello\n[]\n"), completed.stderr


def test_piped_labels_say_their_scores_beside_the_answer(fake: Fake) -> None:
    completed = piped(fake, "good\n", "label")
    assert completed.stdout == "positive\n"
    assert [line.split()[:2] for line in completed.stderr.splitlines()] == [
        ["positive", "90.0%"],
        ["negative", "10.0%"],
    ]


def test_bad_calls_are_one_line(
    fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    for arguments, part in (
        ([], "name a skin or a base, or give --url"),
        (["--url", "nowhere"], "not a server's address"),
        (["--url", "http://127.0.0.1:9"], "is the server running"),
        (["nope", "--url", fake.url], "its models are: ok"),
        (["label", "--url", fake.url, "--system", "be kind"], "takes no system message"),
        (["no-such-base"], "no-such-base"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["chat", *arguments])
        captured = capsys.readouterr()
        assert stop.value.code in {1, 2}
        assert captured.out == ""
        assert part in captured.err
        assert captured.err.count("\n") == 1, captured.err
