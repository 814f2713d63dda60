"""One tenant's many batches do not keep another's one waiting: tenants take turns, whatever each of them has begun."""

from __future__ import annotations

import threading
import time
from typing import Any

from tests.attacks.conftest import attacked
from tests.attacks.test_poison import begin, client, ended, line

from bedplate.serving.durable import batch_worker
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
