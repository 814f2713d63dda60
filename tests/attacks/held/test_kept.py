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
from bedplate.serving.callers.quotas import SpendLedger, Spent
from bedplate.serving.durable import feedback
from bedplate.serving.durable.feedback import Feedback
from bedplate.serving.durable.responses_store import KeptResponse, ResponseStore
from bedplate.serving.settings.config import ResponsesConfig
from bedplate.serving.wire.responses_fields import ResponsesRequest

CHAT = "/v1/chat/completions"


def test_kept_replies_take_what_they_are_counted_as():
    """Objects of many small parts take some twenty times as much as their JSON."""
    store, most = ResponseStore(ResponsesConfig(bytes_per_tenant=100_000, bytes_in_all=100_000)), 100_000
    text = json.dumps({"text": {"format": [[]] * 5_000}})
    store.put("them", KeptResponse.of({"id": "first"}, []))
    tracemalloc.start()
    try:
        for number in range(10):
            store.put("them", KeptResponse.of({"id": str(number), **json.loads(text)}, [{"role": "user"}]))
        assert store.get("them", "9")
        assert tracemalloc.get_traced_memory()[0] < 2 * most
    finally:
        tracemalloc.stop()


def test_a_kept_conversation_is_read_as_it_was_and_by_its_tenant_only(target):
    said = [{"role": "user", "content": "hi \u00fc"}, {"role": "assistant", "content": "yes"}]
    body = {"model": "tiny", "input": [*said, {"role": "user", "content": "so?"}], "max_output_tokens": 2}
    first = target.post("/v1/responses", json=body, headers=head("us")).json()
    place = f"/v1/responses/{first['id']}"
    assert target.request("GET", place, headers=head("us")).json() == first
    items = target.request("GET", f"{place}/input_items?order=asc", headers=head("us")).json()["data"]
    assert [one["content"][0]["text"] for one in items] == ["hi \u00fc", "yes", "so?"]
    again = {"model": "tiny", "input": "and?", "max_output_tokens": 2, "previous_response_id": first["id"]}
    assert target.post("/v1/responses", json=again, headers=head("us")).status_code == 200
    for theirs in (
        target.request("GET", place, headers=head("them")),
        target.request("GET", f"{place}/input_items", headers=head("them")),
        target.request("DELETE", place, headers=head("them")),
    ):
        assert theirs.status_code == 404
    refused = target.post("/v1/responses", json=again, headers=head("them"))
    assert refused.json()["error"]["code"] == "previous_response_not_found"


def test_a_long_conversation_is_gone_on_with_beside_the_loop(target, monkeypatch):
    threads: list[str] = []
    for kind, name in ((ResponsesRequest, "chat"), (KeptResponse, "of")):
        original = getattr(kind, name)

        def seen(*arguments: Any, original: Any = original) -> Any:
            threads.append(threading.current_thread().name)
            return original(*arguments)

        monkeypatch.setattr(kind, name, seen if kind is ResponsesRequest else staticmethod(seen))
    many = [{"role": "user", "content": "x" * 100}] * 400
    settings = {"model": "tiny", "truncation": "auto", "max_output_tokens": 1}
    first = target.post("/v1/responses", json={"input": many, **settings}, headers=head("us"))
    assert first.status_code == 200, first.text
    more = {"input": "so?", "previous_response_id": first.json()["id"], **settings}
    streamed = target.post("/v1/responses", json={**more, "stream": True}, headers=head("us"))
    assert "response.completed" in streamed.text or "response.incomplete" in streamed.text
    assert len(threads) == 4
    assert all(name.startswith("bedplate-preparing") for name in threads)


def test_replies_that_wait_to_be_written_are_so_many_bytes_at_most(target, monkeypatch):
    kept = target.state.part(Feedback)
    kept._writer.submit(lambda: None).result(20)  # what others asked before is written
    before, go = kept.counts.copy(), threading.Event()
    monkeypatch.setattr(feedback, "PENDING_BYTES", 3000)
    kept._writer.submit(go.wait, 20)

    def ask(tenant: str, size: int) -> None:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "a " * (size // 2)}], "max_tokens": 1}
        assert target.post(CHAT, json=body, headers=head(tenant)).status_code == 200

    for _ in range(4):
        ask("them", 800)  # three of them fit
    ask("us", 400)
    go.set()
    end = time.monotonic() + 5
    while kept.counts["kept"] < before["kept"] + 4 and time.monotonic() < end:
        time.sleep(0.005)
    assert kept.counts["kept"] - before["kept"] == 4
    assert kept.counts["dropped"] - before["dropped"] == 1
    ask("them", 800)  # what was written takes nothing any more
    while kept.counts["kept"] < before["kept"] + 5 and time.monotonic() < end:
        time.sleep(0.005)
    assert kept.counts["kept"] - before["kept"] == 5
    assert kept.counts["dropped"] - before["dropped"] == 1


@pytest.mark.parametrize("more", [{"prompt_logprobs": 19}, {"logprobs": 19, "echo": True}])
def test_what_is_told_of_prompts_is_bounded_before_it_is_computed(target, monkeypatch, more):
    """Two bytes of a request ask for as much as two thousand bytes of memory hold."""
    monkeypatch.setattr(openai, "MOST_PROMPT_LOGPROBS", 1000)
    computed: list[Any] = []
    submit = type(target.state.registry.engine).submit
    monkeypatch.setattr(
        type(target.state.registry.engine), "submit", lambda *asked: computed.append(asked) or submit(*asked)
    )
    body = {"model": "tiny", "prompt": [[7] * 25] * 2, "max_tokens": 1, **more}
    assert target.post("/v1/completions", json=body, headers=head("us")).status_code == 200
    assert len(computed) == 2
    refused = target.post("/v1/completions", json={**body, "prompt": [[7] * 25] * 3}, headers=head("us"))
    assert refused.status_code == 400
    assert "1,500 log-probabilities" in refused.json()["error"]["message"]
    assert len(computed) == 2


def test_computed_prompts_take_as_much_as_the_servers_file_says(files, tmp_path):
    most = 256 * 1024
    with attacked(files, tmp_path, cache_bytes=most) as target:
        [engine] = {id(one): one for one in target.state.registry.engines}.values()
        assert engine.stats().cache_capacity_bytes == most
        for number in range(8):
            body = {"model": "tiny", "prompt": f"{number} " * 100, "max_tokens": 1}
            assert target.post("/v1/completions", json=body, headers=head("us")).status_code == 200
        stats = engine.stats()
        assert 0 < stats.cache_bytes - stats.cache_pinned_bytes <= most


class Counting(sqlite3.Connection):
    """Counts the rows that are written at once."""

    rows: list[int]

    def executemany(self, sql: str, parameters: Any) -> sqlite3.Cursor:
        given = list(parameters)
        self.rows.append(len(given))
        return super().executemany(sql, given)


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
    again = SpendLedger(path)
    assert again.spent("a") == (Spent(1000, 250.0), Spent(1000, 250.0))
    again.close()


def test_days_that_are_over_are_forgotten(tmp_path: Path) -> None:
    now = [datetime(2026, 11, 24, 12, tzinfo=UTC)]
    ledger = SpendLedger(tmp_path / "spending.sqlite", lambda: now[0])
    for _ in range(70):
        ledger.add("a", 1, 0.0)
        ledger.add("b", 1, 0.0)
        now[0] += timedelta(days=1)
    now[0] -= timedelta(days=1)
    assert ledger.spent("a")[0] == Spent(1)
    assert ledger.spent("b")[1].tokens == now[0].day
    assert len(ledger._totals) == 4
    ledger.close()


def test_what_is_said_of_one_reply_fills_no_disk(files, tmp_path):
    """It is said so often at most, also by the next server on the same files."""
    with attacked(files, tmp_path) as target:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        id_ = target.post(CHAT, json=body, headers=head("us")).json()["id"]

        def say() -> int:
            said = {"id": id_, "comment": "x" * 100}
            return target.post("/v1/feedback", json=said, headers=head("us")).status_code

        assert [say() for _ in range(feedback.MOST_SAID + 2)] == [200] * feedback.MOST_SAID + [409] * 2
        kept = target.state.part(Feedback)
        lines = [row for _, row in kept.store.rows() if row["kind"] == "feedback"]
        assert len(lines) == feedback.MOST_SAID
        _, _, said = feedback._remembered(kept.store)
        assert list(said.values()) == [feedback.MOST_SAID]
