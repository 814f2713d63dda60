"""Compiles untrusted grammars in a child process first: a grammar that exhausts time or memory ends that process, not
the server.

The limits of `grammar_rules` keep grammars cheap; this isolates the cases that they do not foresee. The process holds
no model and no secrets, and ends with its parent. An accepted grammar is compiled again in the server, since compiled
automata cannot be sent between processes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any
from weakref import WeakValueDictionary

from bedplate.core.closing import Closing
from bedplate.core.errors import RequestError
from bedplate.inference.engine.grammar_rules import TokenVocabulary, compiled, refused
from bedplate.inference.engine.sampling import Grammar
from bedplate.inference.forward.compute_lock import ComputeLock

log = logging.getLogger("bedplate.inference")

CPU_SECONDS = 2.0
"""CPU seconds allowed for one grammar, which may be compiled twice."""
MEMORY_BYTES = 512 * 1024 * 1024
"""Memory that a grammar may take beyond what the process uses with its vocabulary loaded."""
ANSWER_SECONDS = 120.0
"""Wall seconds without a reply after which the process is killed; on an overloaded machine it may wait for a CPU."""
COMMAND = (sys.executable, "-P", "-m", "bedplate.inference.engine.grammar_trial")
_PASSED_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")
TOO_MUCH = "the grammar takes too much time or memory to compile; make it smaller, or its counts and alternatives fewer"


class _Ended(Exception):
    """The process has ended, or does not answer."""


class GrammarTrial(Closing):
    """The child process and its queue; safe to share between threads and engines.

    One grammar is tried at a time. A tenant's grammars wait for each other, so that at most one grammar of each other
    tenant is ahead of any request. command: the command line of the process.
    """

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._lock, self._turns_lock = ComputeLock(), threading.Lock()
        self._turns: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        """Locks of the tenants that have a grammar here."""
        self._process: subprocess.Popen[bytes] | None = None
        self._vocabularies: list[TokenVocabulary] = []
        """Vocabularies that the process has read; their index names them in messages."""
        self._closed = False
        self.killed = 0
        """The number of grammars that exceeded a limit."""

    def check(self, vocabulary: TokenVocabulary, grammar: Grammar, tenant: str = "") -> bool:
        """RequestError where the grammar is invalid or takes too much. False where the process could not be started."""
        with self._turn(tenant), self._lock:
            try:
                number = self._number(vocabulary)
            except (_Ended, OSError) as error:
                self._end()
                if not self._closed:
                    log.error("grammars are compiled without a process of their own, which did not start: %s", error)
                return False
            try:
                answer = self._query(("grammar", number, grammar.syntax, grammar.source))["error"]
            except (_Ended, OSError):
                self._end()
                self.killed += 1
                log.warning("a grammar of %d characters took too much to compile; it is refused", len(grammar.source))
                answer = TOO_MUCH
        if answer is not None:
            raise refused(answer)
        return True

    def _turn(self, tenant: str) -> threading.Lock:
        with self._turns_lock:
            return self._turns.setdefault(tenant, threading.Lock())

    def _number(self, vocabulary: TokenVocabulary) -> int:
        if self._process is None:
            if self._closed:
                raise _Ended("it is closed")
            self._vocabularies = []
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # the parent handles Ctrl-C
                env=_environment(),
            )
        number = next((number for number, candidate in enumerate(self._vocabularies) if candidate is vocabulary), None)
        if number is None:
            self._query(("vocabulary", vocabulary))
            self._vocabularies.append(vocabulary)
            number = len(self._vocabularies) - 1
        return number

    def _query(self, message: tuple[Any, ...]) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None  # noqa: PT018
        pickle.dump(message, process.stdin)
        process.stdin.flush()
        waiting = select.poll()
        waiting.register(process.stdout, select.POLLIN | select.POLLHUP)
        if not waiting.poll(1000 * ANSWER_SECONDS):
            raise _Ended("it does not answer")
        line = process.stdout.readline()
        if not line.endswith(b"\n"):
            raise _Ended("it has ended")
        return json.loads(line)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            process.wait()

    def close(self) -> None:
        """Ends the process. Later grammars are compiled in the calling process."""
        self._closed = True
        with self._lock:
            self._end()


def _environment() -> dict[str, str]:
    """The environment variables with which the process finds Python's libraries and this package; no other variables
    of the parent are passed on."""
    variables = {name: os.environ[name] for name in _PASSED_VARIABLES if name in os.environ}
    paths = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**variables, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


# --- in the child process


def answer(requests: IO[bytes], replies: IO[bytes]) -> None:
    """The loop of the child process: compiles the grammars that it is sent, until its input ends."""
    vocabularies: list[tuple[TokenVocabulary, Any]] = []
    while True:
        try:
            message = pickle.load(requests)  # written by the parent; the grammars in it are texts
        except EOFError:
            return
        error = None
        if message[0] == "vocabulary":
            _limit_memory(None)
            vocabularies.append((message[1], message[1].opened()))
            _limit_memory(MEMORY_BYTES)
        else:
            _, number, syntax, source = message
            vocabulary, opened = vocabularies[int(number)]
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # the signal ends the process
            try:
                compiled(vocabulary, opened, Grammar(syntax, source))
            except RequestError as refusal:
                error = refusal.message
            signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(json.dumps({"error": error}).encode() + b"\n")
        replies.flush()


def _limit_memory(extra_bytes: int | None) -> None:
    """Limits the process to this many bytes more than it uses now; None: no limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        used = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (hard if extra_bytes is None else used + extra_bytes, hard))
    except (OSError, ValueError):
        return  # the system does not report a process's memory, or does not allow a limit


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
