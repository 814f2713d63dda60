"""What one tenant sends that cannot be kept or answered is refused or fails by itself; everybody else goes on."""

from __future__ import annotations

import errno
import json
import sqlite3
import time
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import openai
import pytest
from tests.serving.conftest import Server

from bedplate.serving.durable import batch_worker
from bedplate.serving.durable.batch_store import BatchStore
from bedplate.serving.durable.feedback_service import Feedback
from bedplate.serving.durable.feedback_store import FeedbackStore
from bedplate.serving.schemas.http_errors import DiskOutage

from .conftest import at_once, attacked, head

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
HALF = "\ud800"


def client(server: Server, tenant: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=tenant, max_retries=0, timeout=30)


def line(custom_id: str, **fields: Any) -> str:
    body = {"model": "tiny", "messages": HI, "max_tokens": 2} | fields
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body})


def begin(server: Server, tenant: str, *lines: str) -> str:
    ours = client(server, tenant)
    file = ours.files.create(file=("rows.jsonl", BytesIO("\n".join(lines).encode())), purpose="batch")
    return ours.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h").id


def ended(server: Server, tenant: str, id_: str) -> Any:
    end = time.monotonic() + 20
    while True:
        batch = client(server, tenant).batches.retrieve(id_)
        if batch.status in ("completed", "failed"):
            return batch
        assert time.monotonic() < end, batch
        time.sleep(0.02)


def test_a_row_whose_id_is_no_text_fails_its_batch_alone(target):
    poisoned = begin(target, "them", line(HALF))
    honest = begin(target, "us", line("a"), line("b"))
    assert ended(target, "us", honest).request_counts.completed == 2
    refused = ended(target, "them", poisoned)
    assert refused.status == "failed"
    assert "surrogate" in refused.errors.data[0].message


def test_a_batch_that_cannot_be_begun_or_ended_keeps_no_other_waiting(files, tmp_path, monkeypatch):
    enter, finish, fail = BatchStore.enter, BatchStore.finish, BatchStore.fail
    broken: set[str] = set()
    refusals = [sqlite3.OperationalError("database or disk is full")] * 3

    def breaking_fail(store: BatchStore, *args: Any) -> None:
        if refusals:
            raise refusals.pop()
        fail(store, *args)

    def breaking_enter(store: BatchStore, batch: Any, rows: Any) -> bool:
        if rows[0][1] == "unreadable":
            raise UnicodeEncodeError("utf-8", HALF, 0, 1, "surrogates not allowed")
        if rows[0][1] == "unwritable":
            broken.add(batch.id)
        return enter(store, batch, rows)

    def breaking_finish(store: BatchStore, batch: Any, *args: Any) -> Iterator[None]:
        if batch.id in broken:
            raise ValueError("no line can be made of this")
        yield from finish(store, batch, *args)

    monkeypatch.setattr(batch_worker, "_TROUBLE_SECONDS", 0.05)
    monkeypatch.setattr(BatchStore, "fail", breaking_fail)
    monkeypatch.setattr(BatchStore, "enter", breaking_enter)
    monkeypatch.setattr(BatchStore, "finish", breaking_finish)
    with attacked(files, tmp_path) as server:
        bad = [begin(server, "them", line(name)) for name in ("unreadable", "unwritable")]
        honest = begin(server, "us", line("a"))
        assert ended(server, "us", honest).status == "completed"
        for id_ in bad:
            failed = ended(server, "them", id_)
            assert (failed.status, failed.errors.data[0].code) == ("failed", "server_error")


def test_a_row_whose_answering_raises_is_not_tried_for_ever(files, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_worker, "_RETRY_SECONDS", (0.01, 0.01))
    call, tried = batch_worker.self_call, []

    async def raising(app: Any, endpoint: str, body: bytes, *args: Any) -> Any:
        if b"poison" in body:
            tried.append(body)
            raise ValueError("this row cannot be answered")
        return await call(app, endpoint, body, *args)

    monkeypatch.setattr(batch_worker, "self_call", raising)
    with attacked(files, tmp_path) as server:
        id_ = begin(server, "us", line("a"), line("b", messages=[{"role": "user", "content": "poison"}]), line("c"))
        batch = ended(server, "us", id_)
        assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 2, 1)
        [failed] = client(server, "us").files.content(batch.error_file_id).text.splitlines()
        assert (json.loads(failed)["custom_id"], json.loads(failed)["error"]["code"]) == ("b", "server_error")
    assert len(tried) == batch_worker.MAX_FAILURES


def test_replies_are_kept_whatever_another_tenant_sends(target):
    counts = target.state.part(Feedback).counts
    saved, dropped = counts["kept"], counts["dropped"]

    def send_chat(i: int) -> Any:
        text = f"x{HALF}" if i % 3 == 0 else "x"
        body = {"model": "prompted", "messages": [{"role": "user", "content": text}], "user": text}
        return target.post(CHAT, content=json.dumps(body), headers=head("them" if i % 3 == 0 else "us"))

    statuses = [reply.status_code for reply in at_once(12, send_chat)]
    assert statuses == [400 if i % 3 == 0 else 200 for i in range(12)]
    end = time.monotonic() + 5
    while counts["kept"] < saved + 8 and time.monotonic() < end:
        time.sleep(0.01)
    assert (counts["kept"] - saved, counts["dropped"] - dropped) == (8, 0)


def test_a_reply_that_cannot_be_written_is_counted_and_keeps_no_other_from_being_kept(target, monkeypatch):
    feedback = target.state.part(Feedback)
    saved, dropped, row = feedback.counts["kept"], feedback.counts["dropped"], Feedback._row

    def poisoned(self: Feedback, call: Any, rule: Any) -> dict[str, Any]:
        feedback_row = row(self, call, rule)
        return {**feedback_row, "request": HALF} if call.caller.tenant == "them" else feedback_row

    monkeypatch.setattr(Feedback, "_row", poisoned)
    target.state.part(Feedback)._writer.submit(time.sleep, 0.3)  # all wait for one writing
    body = {"model": "prompted", "messages": HI}
    at_once(6, lambda i: target.post(CHAT, json=body, headers=head("us" if i % 2 else "them")))
    end = time.monotonic() + 5
    while feedback.counts["kept"] + feedback.counts["dropped"] < saved + dropped + 6 and time.monotonic() < end:
        time.sleep(0.01)
    assert (feedback.counts["kept"] - saved, feedback.counts["dropped"] - dropped) == (3, 3)


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_replies_that_a_full_disk_does_not_take_are_counted(target, monkeypatch, caplog):
    monkeypatch.setattr(target.state.part(Feedback), "_outage", DiskOutage())
    counts = target.state.part(Feedback).counts
    saved, dropped = counts["kept"], counts["dropped"]
    monkeypatch.setattr(FeedbackStore, "append", full)
    body = {"model": "prompted", "messages": HI}
    replies = at_once(5, lambda _: target.post(CHAT, json=body, headers=head("us")))
    assert {reply.status_code for reply in replies} == {200}
    end = time.monotonic() + 5
    while counts["dropped"] < dropped + 5 and time.monotonic() < end:
        time.sleep(0.01)
    assert (counts["kept"] - saved, counts["dropped"] - dropped) == (0, 5)
    assert "No space left on device" in caplog.text


def test_a_full_disk_is_507_and_one_line_of_the_log(files, tmp_path, monkeypatch, caplog):
    """Whatever fails on it: replies that are kept, feedback, uploads, batches. Nothing is half counted."""
    with attacked(files, tmp_path) as server:
        reply = server.post(CHAT, json={"model": "prompted", "messages": HI}, headers=head("us")).json()
        server.state.part(Feedback)._writer.submit(lambda: None).result(20)
        caplog.clear()
        with monkeypatch.context() as patch:
            patch.setattr("bedplate.core.files.os.fsync", full)
            for _ in range(20):
                said = server.post("/v1/feedback", json={"id": reply["id"], "rating": "good"}, headers=head("us"))
                assert (said.status_code, said.json()["error"]["code"]) == (507, "insufficient_storage")
                assert server.post(CHAT, json={"model": "prompted", "messages": HI}, headers=head("us")).is_success
                form: Any = {"files": {"file": ("rows.jsonl", b"{}")}, "data": {"purpose": "batch"}}
                assert server.post("/v1/files", headers=head("us"), **form).status_code == 507
            server.state.part(Feedback)._writer.submit(lambda: None).result(20)
        said = server.post("/v1/feedback", json={"id": reply["id"], "rating": "good"}, headers=head("us"))
        assert said.status_code == 200
    errors = [record.getMessage() for record in caplog.records if record.name == "bedplate.serving"]
    assert [message[:16] for message in errors] == ["the disk is full"]


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "half a pair in a regular expression": (CHAT, {"guided_regex": HALF}),
    "half a pair in a choice": (CHAT, {"guided_choice": ["a", HALF]}),
    "half a pair in a grammar": (CHAT, {"guided_grammar": f'start: "{HALF}"'}),
    "half a pair in a schema": (CHAT, {"guided_json": {"enum": [HALF]}}),
    "half a pair in a schema's text": (CHAT, {"guided_json": json.dumps({"enum": [HALF]})}),
    "half a pair in a property's name": (CHAT, {"guided_json": json.dumps({"properties": {HALF: {}}})}),
    "half a pair in a tool": (CHAT, {"tools": [{"type": "function", "function": {"name": "a", "description": HALF}}]}),
    "a type that is null": (CHAT, {"guided_json": {"type": None}}),
    "types that are null": (CHAT, {"guided_json": {"type": [None]}}),
    "a type that is a list of lists": (CHAT, {"guided_json": {"type": [["string"]]}}),
    "a number beyond all floats": (CHAT, {"guided_json": {"minimum": 10**400}}),
    "a multiple beyond all floats": (CHAT, {"guided_json": {"multipleOf": 10**400}}),
    "a count beyond all": (CHAT, {"guided_json": {"type": "string", "minLength": 10**400}}),
    "half a pair in a file's id": (
        "/v1/batches",
        {"input_file_id": HALF, "endpoint": CHAT, "completion_window": "24h"},
    ),
    "a long source": ("/admin/skins", {"source": "a" * 20_000}),
    "a deep source": ("/admin/skins", {"source": "a/" * 10_000}),
    "half a pair in a source": ("/admin/skins", {"source": HALF}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_the_callers_mistake(target, name):
    path, fields = REFUSED[name]
    body = fields if path != CHAT else {"model": "tiny", "messages": HI, "max_tokens": 3} | fields
    reply = target.post(path, content=json.dumps(body), headers=head("admin"))
    assert 400 <= reply.status_code < 500, reply.text
    assert len(reply.json()["error"]["message"]) < 1000


@pytest.mark.parametrize("fields", [{"host": "["}, {"origin": "http://["}, {"host": "[::1", "origin": "http://[::1"}])
def test_a_name_that_is_none_is_nobodys(target, fields):
    """On a server without keys, where the names of hosts and origins are looked at."""
    reply = target.post(CHAT, json={"model": "tiny", "messages": HI, "max_tokens": 1}, headers=head("us") | fields)
    assert reply.status_code == 403, reply.text


def test_a_text_of_every_private_use_character_is_answered(target):
    private_use = "".join(map(chr, [*range(0xE000, 0xF900), *range(0xF0000, 0x10FFFE)]))
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": private_use}]}, ensure_ascii=False)
    reply = target.post(CHAT, content=body.encode(), headers={"x-request-timeout-seconds": "5"})
    assert reply.status_code == 400
    assert "private-use" in reply.json()["error"]["message"]
