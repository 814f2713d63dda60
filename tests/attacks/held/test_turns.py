"""One tenant's many batches do not keep another's one waiting: tenants take turns, whatever each of them has begun."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import openai
import pytest
from tests.attacks.conftest import attacked
from tests.attacks.test_poison import CHAT, begin, client, ended, line

from bedplate.serving.durable import batch_lines, batch_store, batch_worker
from bedplate.serving.request.server_state import ServerState

ROWS, BATCHES = 4, 6


def test_a_tenant_with_one_batch_has_every_second_row(files, tmp_path, monkeypatch):
    call, free, turns = batch_worker.self_call, threading.Event(), list[str]()

    async def noted(app: Any, endpoint: str, body: bytes, caller: Any, *args: Any) -> Any:
        turns.append(caller.tenant)
        return await call(app, endpoint, body, caller, *args)

    monkeypatch.setattr(batch_worker, "self_call", noted)
    monkeypatch.setattr(ServerState, "has_free_rows", property(lambda _: free.is_set()))
    with attacked(files, tmp_path) as server:
        names = [str(number) for number in range(ROWS)]
        theirs = [begin(server, "them", *map(line, names)) for _ in range(BATCHES)]
        ours = begin(server, "us", *map(line, names))
        end = time.monotonic() + 20
        while client(server, "us").batches.retrieve(ours).status != "in_progress":
            assert time.monotonic() < end
            time.sleep(0.01)
        free.set()
        assert ended(server, "us", ours).request_counts.completed == ROWS
        for id_ in theirs:
            assert ended(server, "them", id_).request_counts.completed == ROWS
    assert len(turns) == ROWS * (BATCHES + 1)
    last = len(turns) - turns[::-1].index("us")
    assert last <= 2 * ROWS + 4  # some of theirs were begun before ours was there to be looked at


def test_checking_a_tenants_batches_keeps_no_others_rows_waiting(files, tmp_path, monkeypatch):
    """Neither those of a batch that has begun nor those of one that comes later; cancelled batches are not checked."""
    check, checked_lines = batch_lines._row, [0]

    def slowly(content: bytes, *args: Any) -> Any:
        if b"theirs" in content:
            checked_lines[0] += 1
            time.sleep(0.002)
        return check(content, *args)

    monkeypatch.setattr(batch_lines, "_row", slowly)
    monkeypatch.setattr(batch_lines, "PIECE_SECONDS", 0.02)
    with attacked(files, tmp_path) as server:
        them = client(server, "them")
        lines = b'{"theirs": 1}\n' * 500
        file = them.files.create(file=("rows.jsonl", lines), purpose="batch").id
        create = them.batches.create
        theirs = [create(input_file_id=file, endpoint=CHAT, completion_window="24h").id for _ in range(10)]
        assert ended(server, "us", begin(server, "us", line("a"), line("b"))).request_counts.completed == 2
        assert checked_lines[0] < 2500  # of 5,000
        for id_ in theirs:
            with contextlib.suppress(openai.ConflictError):
                them.batches.cancel(id_)
        end = time.monotonic() + 10
        while any(them.batches.retrieve(id_).status not in ("cancelled", "failed") for id_ in theirs):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert checked_lines[0] < 3500
        cancelled = [batch for batch in map(them.batches.retrieve, theirs) if batch.status == "cancelled"]
        assert len(cancelled) > 3
        assert {(batch.request_counts.total, batch.error_file_id) for batch in cancelled} == {(0, None)}


@pytest.mark.slow
def test_writing_a_tenants_batches_keeps_no_others_rows_waiting(files, tmp_path, monkeypatch):
    """Many rows that are not done are many lines of an error file."""
    monkeypatch.setattr(batch_store, "_READ_AT_ONCE", 10)
    unfinished_line, written = batch_worker.unfinished_line, [0]

    def slowly(*args: Any, **kwargs: Any) -> str:
        written[0] += 1
        time.sleep(0.002)
        return unfinished_line(*args, **kwargs)

    monkeypatch.setattr(batch_worker, "unfinished_line", slowly)
    monkeypatch.setattr(batch_worker, "_unfinished_line", slowly, raising=False)
    free = threading.Event()
    monkeypatch.setattr(ServerState, "has_free_rows", property(lambda _: free.is_set()))
    with attacked(files, tmp_path) as server:
        them = client(server, "them")
        theirs = [begin(server, "them", *(line(str(number)) for number in range(150))) for _ in range(6)]
        end = time.monotonic() + 20
        while any(them.batches.retrieve(id_).status != "in_progress" for id_ in theirs):
            assert time.monotonic() < end
            time.sleep(0.01)
        for id_ in theirs:
            them.batches.cancel(id_)
        free.set()
        assert ended(server, "us", begin(server, "us", line("a"), line("b"))).request_counts.completed == 2
        assert written[0] < 600  # of 900
        while any(them.batches.retrieve(id_).status != "cancelled" for id_ in theirs):
            assert time.monotonic() < end + 20
            time.sleep(0.02)
        assert written[0] == 900
        assert {them.batches.retrieve(id_).request_counts.failed for id_ in theirs} == {150}
