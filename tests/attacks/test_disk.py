"""What a tenant's files, uploads and batches take of the disk is within its part, however it asks."""

from __future__ import annotations

import json
import threading
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import openai
import pytest

from bedplate.serving.callers.caller_guard import Caller
from bedplate.serving.durable import batch_store
from bedplate.serving.durable.batch_store import ROW_BYTES, BatchStore, DoneRow, StoredBatch
from bedplate.serving.schemas.http_errors import LimitError, StatusError
from bedplate.serving.settings.server_config import BatchesConfig

from .test_poison import begin, client, ended, line

CHAT = "/v1/chat/completions"
QUOTA = 10_000
ROW = "b" * 1000


@pytest.fixture
def store(tmp_path: Path):
    store = BatchStore(tmp_path, BatchesConfig(tenant_bytes=QUOTA, files=5, pending=3))
    yield store
    store.close()


def batch(store: BatchStore, tenant: str = "t") -> StoredBatch:
    return store.add_batch(Caller("k", tenant), CHAT, "file", 60, None)


def started(store: BatchStore, validated: StoredBatch, rows: list[tuple[int, str, str]]) -> StoredBatch:
    assert store.enter(validated, rows)
    assert store.start(validated)
    return store.batch(validated.id, validated.tenant)


def stored_bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in (directory / "files").iterdir())


class Waiting(BytesIO):
    """A file that is read once all uploads have looked at what is kept."""

    def __init__(self, content: bytes, together: threading.Barrier) -> None:
        super().__init__(content)
        self._together: threading.Barrier | None = together

    def read(self, *size: Any) -> bytes:
        together, self._together = self._together, None
        if together is not None:
            together.wait(10)
        return super().read(*size)


def test_uploads_side_by_side_pass_no_quota(store, tmp_path):
    together, refused = threading.Barrier(4), []

    def upload() -> None:
        try:
            store.add_file("t", "f", "batch", cast("BinaryIO", Waiting(b"x" * 4000, together)))
        except StatusError as error:
            refused.append(error.code)

    threads = [threading.Thread(target=upload) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == ["storage_full"] * 2
    assert stored_bytes(tmp_path) == 8000


def test_what_arrives_counts_before_it_is_entered(store):
    with store.arriving("t") as first_upload, store.arriving("t") as two:
        first_upload.add(6000)
        with pytest.raises(StatusError):
            two.add(6000)
        store.arriving("other").add(6000)
    with store.arriving("t") as retried:
        retried.add(QUOTA)


def test_rows_and_outputs_count_until_the_batch_has_ended(store):
    first = batch(store)
    first = started(store, first, [(number, f"r{number}", ROW) for number in range(7)])
    with pytest.raises(StatusError, match="more than 10,000 bytes"):
        store.enter(batch(store), [(number, f"r{number}", ROW) for number in range(7)])
    assert store.enter(batch(store, "other"), [(1, "a", ROW)])
    assert not store.is_full("t")
    store.record([DoneRow(first.seq, number, True, "o" * 3000) for number in range(4)])
    assert store.is_full("t")
    with pytest.raises(StatusError):
        store.add_file("t", "f", "batch", BytesIO(b"x"))
    for number in range(4, 7):
        store.record([DoneRow(first.seq, number, False, "no")])
    list(store.finish(first, "completed", str))
    output = store.file(cast("str", store.batch(first.id, "t").output_file), "t")
    error = store.file(cast("str", store.batch(first.id, "t").error_file), "t")
    assert (output.bytes, error.bytes) == (4 * 3001, 3 * 3)
    store.delete_file(output.id, "t")
    with store.arriving("t") as remaining:
        remaining.add(QUOTA - error.bytes)


def test_a_batch_that_fails_gives_its_part_back(store):
    first = batch(store)
    started(store, first, [(1, "a", "b" * (QUOTA - ROW_BYTES - 1))])
    assert store.is_full("t")
    store.fail(first, [{}], ("in_progress",))
    assert not store.is_full("t")


def test_batches_that_have_not_ended_are_so_many_at_most(store):
    batches = [batch(store) for _ in range(3)]
    with pytest.raises(LimitError):
        batch(store)
    batch(store, "other")
    store.fail(batches[0], [{}])
    batch(store)


def test_batches_that_have_ended_are_not_remembered_for_ever(store, monkeypatch):
    monkeypatch.setattr(batch_store, "MAX_ENDED_BATCHES", 5)
    open_batches = [batch(store) for _ in range(2)]
    for _ in range(20):
        store.fail(batch(store), [{"message": "m" * 1000}])
    remembered_ids = [remembered.id for remembered in store.batches("t", None, 100)[0]]
    assert len(remembered_ids) <= 2 + 5 + 1
    assert {open_batch.id for open_batch in open_batches} <= set(remembered_ids)


def test_files_are_so_many_at_most(store, tmp_path):
    for _ in range(5):
        store.add_file("t", "f", "batch", BytesIO(b""))
    with pytest.raises(StatusError, match="5 files"):
        store.add_file("t", "f", "batch", BytesIO(b""))
    assert len(list((tmp_path / "files").iterdir())) == 5


def test_a_file_that_is_deleted_while_it_is_fetched_is_not_there(target, monkeypatch):
    file = client(target, "us").files.create(file=("rows.jsonl", BytesIO(line("a").encode())), purpose="batch")
    content_path = BatchStore.content

    def deleted(store: BatchStore, stored: Any) -> Path:
        content_path(store, stored).unlink()
        return content_path(store, stored)

    monkeypatch.setattr(BatchStore, "content", deleted)
    with pytest.raises(openai.NotFoundError):
        client(target, "us").files.content(file.id)


def test_rows_whose_outputs_have_no_room_are_not_computed(target, monkeypatch):
    """Of a live server: the batch ends, and says of its rows why they were not done."""
    monkeypatch.setattr(BatchStore, "is_full", lambda self, tenant: tenant == "them")
    full, honest = (begin(target, tenant, line("a"), line("b")) for tenant in ("them", "us"))
    assert ended(target, "us", honest).request_counts.completed == 2
    refused = ended(target, "them", full)
    assert (refused.request_counts.completed, refused.request_counts.failed) == (0, 2)
    lines = client(target, "them").files.content(refused.error_file_id).text.splitlines()
    assert {json.loads(failure)["error"]["code"] for failure in lines} == {"storage_full"}
