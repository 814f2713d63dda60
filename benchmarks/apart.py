"""Peers in processes of their own: one that crashes, or changes what a process shares (tiles, threads, allocators), is
reported and stops nothing.

    peer = PeerProcess("peers:LlamaCpp", path, 1024)
    peer.prefill(tokens)        # runs in the other process; raises PeerError where that process dies or the call fails

A process waits for its next call without computing, so that peers and ours can take turns. It ends with this one.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any


class PeerError(Exception):
    """A peer's process died, or its call raised: the text says which."""


class PeerProcess:
    """An object that `target` ("module:callable") makes in a new process, its methods called there. What is passed and
    returned must pickle. After a failure to build or a crash, every call raises the same PeerError."""

    def __init__(self, target: str, *arguments: object) -> None:
        self.name = target.partition(":")[2]
        self._failure: PeerError | None = None
        self._connection, theirs = Pipe()
        command = [sys.executable, __file__, str(theirs.fileno())]
        # The last line of our standard output is the result: theirs goes to standard error.
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=2)
        theirs.close()
        try:
            self._exchange((target, arguments))
        except PeerError as error:
            self._failure = error

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return partial(self._call, method)

    def _call(self, method: str, *arguments: object) -> Any:
        if self._failure is not None:
            raise self._failure
        return self._exchange((method, arguments))

    def _exchange(self, message: object) -> Any:
        try:
            self._connection.send(message)
            value, failure = self._connection.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            reason = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            self._failure = PeerError(f"{self.name} {reason}")
            raise self._failure from None
        if failure is not None:
            raise PeerError(f"{self.name}: {failure}")
        return value

    def close(self) -> None:
        """Ends the process, and with it what it holds in memory."""
        self._connection.close()
        self._process.wait()


def call_in_process(target: str, *arguments: object) -> Any:
    """What `target` ("module:callable") returns, computed in a process that ends with it."""
    peer = PeerProcess("apart:Call", target, arguments)
    try:
        return peer.result()
    finally:
        peer.close()


class Call:
    """A function with its arguments, for a process to compute."""

    def __init__(self, target: str, arguments: tuple[object, ...]) -> None:
        self._target, self._arguments = target, arguments

    def result(self) -> Any:
        return _resolved(self._target)(*self._arguments)


def _resolved(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def serve(connection: Connection) -> None:
    """Builds the object that the first message names, then answers calls of its methods until the other end closes."""
    built: Any = None
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        value, failure = None, None
        try:
            name, arguments = message
            if built is None:
                built = _resolved(name)(*arguments)
            else:
                value = getattr(built, name)(*arguments)
        except Exception as error:
            traceback.print_exc()
            failure = f"{type(error).__name__}: {error}"
        connection.send((value, failure))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
