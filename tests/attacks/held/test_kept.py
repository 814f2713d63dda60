"""What the server keeps of requests takes as much memory as its bounds say, and no more."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.attacks.conftest import attacked, head

from bedplate.serving.api import openai
from bedplate.serving.callers.caller_guard import Spending, SpendLedger
from bedplate.serving.durable import feedback_service
from bedplate.serving.durable.feedback_service import Feedback
from bedplate.serving.durable.responses_store import KeptResponse, ResponseStore
from bedplate.serving.schemas.turn_fields import ResponsesRequest
from bedplate.serving.settings.server_config import ResponsesConfig

CHAT = "/v1/chat/completions"


def test_kept_replies_take_what_they_are_counted_as():
    """Objects of many small parts take some twenty times as much as their JSON."""
    store, byte_limit = ResponseStore(ResponsesConfig(bytes_per_tenant=100_000, bytes_in_all=100_000)), 100_000
    text = json.dumps({"text": {"format": [[]] * 5_000}})
    store.add("them", KeptResponse.of({"id": "first"}, []))
    tracemalloc.start()
    try:
        for number in range(10):
            store.add("them", KeptResponse.of({"id": str(number), **json.loads(text)}, [{"role": "user"}]))
        assert store.get("them", "9")
        assert tracemalloc.get_traced_memory()[0] < 2 * byte_limit
    finally:
        tracemalloc.stop()


def test_a_kept_conversation_is_read_as_it_was_and_by_its_tenant_only(target):
    turns = [{"role": "user", "content": "hi \u00fc"}, {"role": "assistant", "content": "yes"}]
    body = {"model": "tiny", "input": [*turns, {"role": "user", "content": "so?"}], "max_output_tokens": 2}
    first = target.post("/v1/responses", json=body, headers=head("us")).json()
    place = f"/v1/responses/{first['id']}"
    assert target.request("GET", place, headers=head("us")).json() == first
    input_items = target.request("GET", f"{place}/input_items?order=asc", headers=head("us")).json()["data"]
    assert [message["content"][0]["text"] for message in input_items] == ["hi \u00fc", "yes", "so?"]
    followup = {"model": "tiny", "input": "and?", "max_output_tokens": 2, "previous_response_id": first["id"]}
    assert target.post("/v1/responses", json=followup, headers=head("us")).status_code == 200
    for theirs in (
        target.request("GET", place, headers=head("them")),
        target.request("GET", f"{place}/input_items", headers=head("them")),
        target.request("DELETE", place, headers=head("them")),
    ):
        assert theirs.status_code == 404
    refused = target.post("/v1/responses", json=followup, headers=head("them"))
    assert refused.json()["error"]["code"] == "previous_response_not_found"


def test_a_long_conversation_is_gone_on_with_beside_the_loop(target, monkeypatch):
    threads: list[str] = []
    for owner, name in ((ResponsesRequest, "chat"), (KeptResponse, "of")):
        original = getattr(owner, name)

        def recorded(*arguments: Any, original: Any = original) -> Any:
            threads.append(threading.current_thread().name)
            return original(*arguments)

        monkeypatch.setattr(owner, name, recorded if owner is ResponsesRequest else staticmethod(recorded))
    long_input = [{"role": "user", "content": "x" * 100}] * 400
    settings = {"model": "tiny", "truncation": "auto", "max_output_tokens": 1}
    first = target.post("/v1/responses", json={"input": long_input, **settings}, headers=head("us"))
    assert first.status_code == 200, first.text
    followup = {"input": "so?", "previous_response_id": first.json()["id"], **settings}
    streamed = target.post("/v1/responses", json={**followup, "stream": True}, headers=head("us"))
    assert "response.completed" in streamed.text or "response.incomplete" in streamed.text
    assert len(threads) == 4
    assert all(name.startswith("bedplate-preparing") for name in threads)


def test_replies_that_wait_to_be_written_are_so_many_bytes_at_most(target, monkeypatch):
    feedback_log = target.state.part(Feedback)
    feedback_log._writer.submit(lambda: None).result(20)  # what others asked before is written
    before, go = feedback_log.counts.copy(), threading.Event()
    monkeypatch.setattr(feedback_service, "PENDING_BYTES", 3000)
    feedback_log._writer.submit(go.wait, 20)

    def send_chat(tenant: str, size: int) -> None:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "a " * (size // 2)}], "max_tokens": 1}
        assert target.post(CHAT, json=body, headers=head(tenant)).status_code == 200

    for _ in range(4):
        send_chat("them", 800)  # three of them fit
    send_chat("us", 400)
    go.set()
    end = time.monotonic() + 5
    while feedback_log.counts["kept"] < before["kept"] + 4 and time.monotonic() < end:
        time.sleep(0.005)
    assert feedback_log.counts["kept"] - before["kept"] == 4
    assert feedback_log.counts["dropped"] - before["dropped"] == 1
    send_chat("them", 800)  # what was written takes nothing any more
    while feedback_log.counts["kept"] < before["kept"] + 5 and time.monotonic() < end:
        time.sleep(0.005)
    assert feedback_log.counts["kept"] - before["kept"] == 5
    assert feedback_log.counts["dropped"] - before["dropped"] == 1


@pytest.mark.parametrize("logprob_fields", [{"prompt_logprobs": 19}, {"logprobs": 19, "echo": True}])
def test_what_is_told_of_prompts_is_bounded_before_it_is_computed(target, monkeypatch, logprob_fields):
    """Two bytes of a request ask for as much as two thousand bytes of memory hold."""
    monkeypatch.setattr(openai, "MAX_PROMPT_LOGPROBS", 1000)
    computed: list[Any] = []
    submit = type(target.state.registry.engines[0]).submit
    monkeypatch.setattr(
        type(target.state.registry.engines[0]), "submit", lambda *args: computed.append(args) or submit(*args)
    )
    body = {"model": "tiny", "prompt": [[7] * 25] * 2, "max_tokens": 1, **logprob_fields}
    assert target.post("/v1/completions", json=body, headers=head("us")).status_code == 200
    assert len(computed) == 2
    refused = target.post("/v1/completions", json={**body, "prompt": [[7] * 25] * 3}, headers=head("us"))
    assert refused.status_code == 400
    assert "1,500 log-probabilities" in refused.json()["error"]["message"]
    assert len(computed) == 2


def test_computed_prompts_take_as_much_as_the_servers_file_says(files, tmp_path):
    cache_limit = 256 * 1024
    with attacked(files, tmp_path, cache_bytes=cache_limit) as target:
        [engine] = {id(candidate): candidate for candidate in target.state.registry.engines}.values()
        assert engine.stats().cache_capacity_bytes == cache_limit
        for number in range(8):
            body = {"model": "tiny", "prompt": f"{number} " * 100, "max_tokens": 1}
            assert target.post("/v1/completions", json=body, headers=head("us")).status_code == 200
        stats = engine.stats()
        assert 0 < stats.cache_bytes - stats.cache_pinned_bytes <= cache_limit


class Counting(sqlite3.Connection):
    """Counts the rows that are written at once."""

    rows: list[int]

    def executemany(self, sql: str, parameters: Any) -> sqlite3.Cursor:
        parameter_rows = list(parameters)
        self.rows.append(len(parameter_rows))
        return super().executemany(sql, parameter_rows)


def test_what_keys_spend_while_it_cannot_be_written_is_summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full, path = [True], tmp_path / "spending.sqlite"
    monkeypatch.setattr(Counting, "rows", [], raising=False)
    ledger = SpendLedger(path)

    def connect() -> sqlite3.Connection:
        if full[0]:
            raise sqlite3.OperationalError("database or disk is full")
        return sqlite3.connect(path, factory=Counting)

    monkeypatch.setattr(ledger, "_connect", connect)
    for _ in range(500):
        ledger.add("a", 2, 0.5)
    full[0] = False
    ledger.close()
    assert sum(Counting.rows) <= 2 * 2  # a day and a month, twice at the very most: at midnight
    reopened = SpendLedger(path)
    assert reopened.spent("a") == (Spending(1000, 250.0), Spending(1000, 250.0))
    reopened.close()


def test_days_that_are_over_are_forgotten(tmp_path: Path) -> None:
    clock = [datetime(2026, 11, 24, 12, tzinfo=UTC)]
    ledger = SpendLedger(tmp_path / "spending.sqlite", lambda: clock[0])
    for _ in range(70):
        ledger.add("a", 1, 0.0)
        ledger.add("b", 1, 0.0)
        clock[0] += timedelta(days=1)
    clock[0] -= timedelta(days=1)
    assert ledger.spent("a")[0] == Spending(1)
    assert ledger.spent("b")[1].tokens == clock[0].day
    assert len(ledger._totals) == 4
    ledger.close()


def test_what_is_said_of_one_reply_fills_no_disk(files, tmp_path):
    """It is said so often at most, also by the next server on the same files."""
    with attacked(files, tmp_path) as target:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        id_ = target.post(CHAT, json=body, headers=head("us")).json()["id"]

        def post_comment() -> int:
            comment = {"id": id_, "comment": "x" * 100}
            return target.post("/v1/feedback", json=comment, headers=head("us")).status_code

        limit = feedback_service.MAX_FEEDBACK_PER_REPLY
        assert [post_comment() for _ in range(limit + 2)] == [200] * limit + [409] * 2
        feedback_log = target.state.part(Feedback)
        lines = [row for _, row in feedback_log.store.rows() if row["kind"] == "feedback"]
        assert len(lines) == limit
        *_, comment_places = feedback_service._remembered(feedback_log.store)
        assert [len(places) for places in comment_places.values()] == [limit]
