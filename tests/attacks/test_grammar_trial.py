"""A grammar that takes more time or memory than any should, or ends the library, is refused; all else goes on."""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from bedplate.core.errors import RequestError
from bedplate.inference.engine import grammar_rules, grammar_trial
from bedplate.inference.engine.grammar import CACHED, Grammars
from bedplate.inference.engine.grammar_rules import TRIAL_SECONDS, TokenVocabulary
from bedplate.inference.engine.grammar_trial import COMMAND, GrammarTrial
from bedplate.inference.engine.sampling import Grammar

from .conftest import head
from .test_poison import CHAT, HI

VOCABULARY = TokenVocabulary([b"<end>", *(bytes([index]) for index in range(256))], [0], [0], False)

# The process as it is, with a library that does not keep within any bound on some grammars.
UNBOUND = """
import os, signal, threading
from bedplate.inference.engine import grammar_rules, grammar_trial
original, grammar_trial.CPU_SECONDS, grammar_trial.MEMORY_BYTES = grammar_trial.compiled, 0.2, 200 * 2**20

def compiled(vocabulary, opened, grammar):
    if grammar.source == "time":
        while True: pass
    if grammar.source == "memory":
        held = bytearray(400 * 2**20)
    if grammar.source == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if grammar.source == "sleep":
        threading.Event().wait()
    return original(vocabulary, opened, grammar)

grammar_trial.compiled = compiled
grammar_trial.main()
"""


@pytest.fixture(scope="module")
def trial() -> Iterator[GrammarTrial]:
    with GrammarTrial([sys.executable, "-P", "-c", UNBOUND]) as trial:
        yield trial


@pytest.mark.parametrize("source", ["time", "memory", "crash", "sleep"])
def test_a_grammar_beyond_all_bounds_is_refused_and_the_next_is_not(trial, monkeypatch, source):
    trial.check(VOCABULARY, Grammar("regex", "[a-z]*"))
    if source == "sleep":
        monkeypatch.setattr(grammar_trial, "ANSWER_SECONDS", 0.1)
    killed = trial.killed
    with pytest.raises(RequestError, match="too much time or memory"):
        trial.check(VOCABULARY, Grammar("regex", source))
    assert trial.killed == killed + 1
    monkeypatch.undo()
    trial.check(VOCABULARY, Grammar("regex", "[a-z]+"))


@pytest.mark.parametrize(("seconds", "usable"), [((0.9, 0.1), True), ((0.9, 0.9), False)])
def test_a_grammar_that_took_long_once_is_measured_again(monkeypatch, seconds, usable):
    """On a busy machine the same work takes longer."""
    readings = itertools.cycle((0.0, seconds[0], 1.0, 1.0 + seconds[1]))
    monkeypatch.setattr(grammar_rules, "time", SimpleNamespace(thread_time=lambda: next(readings)))
    opened, grammar = VOCABULARY.opened(), Grammar("regex", "[a-z]*")
    if usable:
        assert not grammar_rules.compiled(VOCABULARY, opened, grammar).is_error()
        return
    with pytest.raises(RequestError, match="too long"):
        grammar_rules.compiled(VOCABULARY, opened, grammar)
    assert not grammar_rules.compiled(VOCABULARY, opened, grammar, timed=False).is_error()


REFUSED = [
    Grammar("regex", "(["),
    Grammar("json_schema", "false"),
    Grammar("ebnf", "begin: 1"),
    Grammar("choice", "[]"),
]


@pytest.mark.parametrize("grammar", REFUSED)
def test_what_is_refused_is_refused_in_the_same_words(trial, grammar):
    class Bytes:
        vocab_size, exact_bytes, drops_space, special_ids = 257, True, False, frozenset({0})

        def token_bytes(self, index: int) -> bytes:
            return VOCABULARY.tokens[index]

        def spelled(self, text: str) -> list[int]:
            return [1 + byte for byte in text.encode()]

    local, isolated = Grammars(Bytes(), 257, [0]), Grammars(Bytes(), 257, [0])  # type: ignore[arg-type]
    isolated.trial = trial
    with pytest.raises(RequestError) as ours:
        local.compile(grammar)
    with pytest.raises(RequestError) as theirs:
        isolated.compile(grammar)
    assert (theirs.value.message, theirs.value.code) == (ours.value.message, ours.value.code)
    assert isolated.compile(Grammar("regex", "ab"))().matches([1 + ord("a"), 1 + ord("b")])


def test_a_process_that_cannot_be_started_keeps_no_grammar_from_being_used(caplog):
    with GrammarTrial(["/no/such/program"]) as trial:
        assert not trial.check(VOCABULARY, Grammar("regex", "time"))
    assert "did not start" in caplog.text


def test_the_process_is_given_nothing_of_its_parents_secrets(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    assert "SECRET_TOKEN" not in grammar_trial._environment()
    assert COMMAND[0] == sys.executable
    assert grammar_trial.CPU_SECONDS > TRIAL_SECONDS


def test_a_tenant_with_many_grammars_is_before_another_with_one_of_them_at_most(monkeypatch):
    begun, go, submitted = threading.Event(), threading.Event(), list[str]()

    def fake_ask(_: GrammarTrial, message: tuple[str, ...]) -> dict[str, None]:
        submitted.append(message[-1])
        begun.set()
        assert go.wait(20)
        return {"error": None}

    monkeypatch.setattr(GrammarTrial, "_number", lambda *_: 0)
    monkeypatch.setattr(GrammarTrial, "_query", fake_ask)
    with GrammarTrial() as trial:

        def check(tenant: str, source: str) -> threading.Thread:
            thread = threading.Thread(target=trial.check, args=(VOCABULARY, Grammar("regex", source), tenant))
            thread.start()
            return thread

        threads = [check("them", f"theirs {number}") for number in range(8)]
        assert begun.wait(20)
        threads.append(check("us", "ours"))
        end = time.monotonic() + 20
        while len(trial._lock._waiting) < 1 and time.monotonic() < end:  # one of theirs and ours
            time.sleep(0.002)
        go.set()
        for thread in threads:
            thread.join()
    assert len(submitted) == 9
    assert submitted.index("ours") == 1
    assert not trial._turns


def test_a_live_server_tries_grammars_there(target):
    trials = {engine.grammars.trial for engine in target.state.registry.engines}
    [trial] = trials
    body = {"model": "tiny", "messages": HI, "max_tokens": 4, "guided_regex": "[0-9]{1,3}"}
    reply = target.post(CHAT, json=body, headers=head("us"))
    assert reply.status_code == 200, json.dumps(reply.json())
    assert trial._process.poll() is None
    assert len(trial._vocabularies) == 1


def test_a_skins_own_grammar_is_not_compiled_again_on_the_loop_after_many_others(target, monkeypatch):
    [engine] = target.state.registry.engines
    for i in range(CACHED + 1):
        engine.compile(Grammar("regex", f"a{i}"))
    tried: list[Grammar] = []
    monkeypatch.setattr(GrammarTrial, "check", lambda self, vocabulary, grammar, *_: tried.append(grammar) or True)
    reply = target.post(CHAT, json={"model": "several", "messages": HI}, headers=head("us"))
    assert reply.status_code == 200, json.dumps(reply.json())
    assert not tried
    engine.compile(Grammar("regex", "a0"))
    assert tried == [Grammar("regex", "a0")]  # nobody held that one
