"""Commands in processes of its own that are there at once: forked off one that has imported what the verbs load.

They are killed, interrupted and waited for like any process; only the seconds of imports are spared. That a command
also starts from nothing is the matter of the tests of the command line.
"""

from __future__ import annotations

import atexit
import faulthandler
import importlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = [
    "bedplate.cli.adapt",
    "bedplate.adaptation.ladder",
    "bedplate.training.loop",
    "bedplate.serving.server.app",
    "sklearn.linear_model",
    "scipy.stats",
    "torch._dynamo",  # an optimizer's first step loads it
    "uvicorn",
    "matplotlib.figure",
]
CONTEXT.set_forkserver_preload(PRELOADED)


def start() -> None:
    """Fork the server that forks the commands off this process, which has imported most of what they load: to start it
    anew takes ten seconds of imports. To be called while nothing runs here yet: before the first test."""
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    if server._forkserver_pid is not None:
        return
    resource_tracker.ensure_running()
    address = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
    alive_read, alive_write = os.pipe()  # closed at the other end: whoever asks for processes has ended
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(alive_write)
                _leave_pytest()
                forkserver.main(listener.detach(), alive_read, PRELOADED)
            finally:
                os._exit(0)
    os.close(alive_read)
    server._forkserver_address, server._forkserver_alive_fd, server._forkserver_pid = address, alive_write, pid
    # From Python 3.13 on the interpreter waits at its end for the resource tracker, which lives as long as the server.
    atexit.register(server._stop)


def _leave_pytest() -> None:
    """What pytest puts in the place of the interpreter's own is no matter of a command."""
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.unraisablehook, threading.excepthook = sys.__unraisablehook__, threading.__excepthook__
    faulthandler.disable()
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)


def _main(arguments: list[str], environment: Mapping[str, str], out: str, errors: str, main: str) -> None:
    for name, descriptor in ((out, 1), (errors, 2)):
        opened = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOCTTY)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [main, *arguments]
    module, _, name = main.partition(":")
    getattr(importlib.import_module(module), name or "main")()


class Command:
    """A running `bedplate ...`, or another module's main() or function (`module:function`); what it prints goes to
    `directory`, made if need be, or to stderr to a terminal of this name."""

    def __init__(
        self,
        directory: Path,
        *arguments: str | Path,
        main: str = "bedplate.cli.main",
        terminal: str | None = None,
        **environment: str,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        number = sum(1 for _ in directory.glob("*.out"))
        self._out, self._errors = (directory / f"{number}.{name}" for name in ("out", "errors"))
        whole = {**os.environ, **environment}
        redirects = (str(self._out), terminal or str(self._errors), main)
        self._process = CONTEXT.Process(target=_main, args=([*map(str, arguments)], whole, *redirects))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float = 120) -> int:
        self._process.join(seconds)
        code = self.poll()
        assert code is not None, f"still running after {seconds} s; it said: {self.errors}"
        return code

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        self.wait()
        self._process.close()

    @property
    def output(self) -> str:
        return self._out.read_text() if self._out.exists() else ""

    @property
    def errors(self) -> str:
        return self._errors.read_text() if self._errors.exists() else ""

    def first_line(self, seconds: float = 120) -> str:
        end = time.monotonic() + seconds
        while "\n" not in (output := self.output):
            assert self.poll() is None, f"ended with {self.poll()}: {self.errors}"
            assert time.monotonic() < end, f"nothing was said in {seconds} s: {self.errors}"
            time.sleep(0.01)
        return output.partition("\n")[0]
