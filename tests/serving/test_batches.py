"""Files and batches on a live server, through the openai client, and what each refuses."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core.errors import UsageError
from bedplate.inference.engine.steps import Steps
from bedplate.serving.api import batches, file_reply
from bedplate.serving.api.batches import clean_name
from bedplate.serving.callers.caller_guard import Caller, CallerGuard
from bedplate.serving.durable import batch_lines, batch_store, batch_worker
from bedplate.serving.durable.batch_lines import MAX_ERRORS, check_lines
from bedplate.serving.durable.batch_store import BatchStore, DoneRow
from bedplate.serving.durable.state_directory import StateDirectory
from bedplate.serving.request.server_state import SelfReply
from bedplate.serving.schemas.strict_json import dump_json
from bedplate.serving.server.app import loaded_server, server_config
from bedplate.serving.settings.server_config import BatchesConfig

from .conftest import Files, Server, running

CHAT = "/v1/chat/completions"


def line(custom_id: str, url: str = CHAT, **body: Any) -> str:
    defaults = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": defaults | body})


@contextmanager
def serving(files: Files, directory: Path, guard: CallerGuard | None = None, **batches: int) -> Iterator[Server]:
    config = server_config(files.base, state=directory, batches=BatchesConfig(**batches))
    with loaded_server(config, files.skins) as state:
        if guard is not None:
            state.guard = guard
        with running(state) as url:
            yield Server(url, state, {})


@pytest.fixture(scope="module")
def place(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(
        files, tmp_path_factory.mktemp("state"), rows=300, file_bytes=200_000, tenant_bytes=1_000_000
    ) as server:
        yield server


def upload(client: openai.OpenAI, *lines: str, name: str = "rows.jsonl") -> Any:
    return client.files.create(file=(name, BytesIO("\n".join(lines).encode())), purpose="batch")


def run(client: openai.OpenAI, *lines: str, endpoint: Any = CHAT, **fields: Any) -> Any:
    file = upload(client, *lines)
    batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **fields)
    assert batch.status == "validating"
    return ended(client, batch.id)


def ended(client: openai.OpenAI, id_: str, seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while True:
        batch = client.batches.retrieve(id_)
        if batch.status in ("completed", "failed", "cancelled", "expired"):
            return batch
        assert time.monotonic() < end, batch
        time.sleep(0.02)


def rows(client: openai.OpenAI, id_: str | None) -> list[dict[str, Any]]:
    assert id_ is not None
    return [json.loads(text) for text in client.files.content(id_).text.splitlines()]


def approx_equal(a: Any, b: Any) -> bool:
    """Equal, but for the last bits of numbers: sums in batches of different sizes."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(approx_equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(approx_equal, a, b))
    return a == (pytest.approx(b, rel=1e-3, abs=1e-5) if isinstance(b, float) else b)


# --- files


def test_a_file_comes_back_as_it_was_sent_and_is_gone_when_deleted(place):
    client = place.client
    content = line("a") + "\n" + line("ü 😀 \u2028")
    file = client.files.create(file=("../../etc/passwd\\evil\u2028.jsonl", BytesIO(content.encode())), purpose="batch")
    assert (file.filename, file.bytes, file.purpose) == ("evil.jsonl", len(content.encode()), "batch")
    assert client.files.content(file.id).content == content.encode()
    assert client.files.retrieve(file.id) == file
    assert client.files.delete(file.id).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match="there is no file"):
            call(file.id)
    assert not (place.state.part(StateDirectory).path / "files" / file.id).exists()


def test_files_are_listed_in_pages(place):
    client = place.client
    file_ids = [upload(client, line("a"), name=f"page{i}.jsonl").id for i in range(5)]
    listed = [file.id for file in client.files.list(limit=2)]  # the client fetches page after page
    assert listed[:5] == file_ids[::-1]
    first = client.files.list(limit=2, order="asc", after=file_ids[0])
    assert ([file.id for file in first.data], first.has_more) == (file_ids[1:3], True)
    last = client.files.list(limit=2, order="asc", after=file_ids[2])
    assert ([file.id for file in last.data], last.has_more) == (file_ids[3:5], False)
    assert client.files.list(purpose="batch_output", after=file_ids[0]).data == []


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=10001", "order=up", "colour=red", "after=file-none"])
def test_a_list_says_what_is_wrong_with_its_query(place, query):
    with httpx.Client(trust_env=False) as client:
        answer = client.get(f"{place.url}/v1/files?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == query.split("=")[0]


@pytest.mark.parametrize(
    ("form", "status", "param"),
    [
        ({"files": {"file": ("a", b"{}")}}, 400, "purpose"),
        ({"data": {"purpose": "fine-tune"}, "files": {"file": ("a", b"{}")}}, 400, "purpose"),
        ({"data": {"purpose": "batch"}, "files": {"other": ("a", b"{}")}}, 400, "file"),
        ({"data": {"purpose": "batch", "colour": "red"}, "files": {"file": ("a", b"{}")}}, 400, "colour"),
        ({"data": {"purpose": "batch"}, "files": {"file": ("a", b"x" * 300_000)}}, 413, "file"),
        ({"data": {"purpose": "batch"}, "files": {"file": ("a", b"x" * 200_001)}}, 413, "file"),
        ({"json": {"purpose": "batch"}}, 415, None),
        ({"content": b"--x\r\nbroken", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "purpose"),
        ({"content": b"", "headers": {"content-type": "multipart/form-data"}}, 400, None),
        ({"data": {"purpose": "b" * 100_000}, "files": {"file": ("a", b"{}")}}, 400, None),
    ],
)
def test_an_upload_says_what_is_wrong_with_it(place, form, status, param):
    answer = place.post("/v1/files", **form)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param
    assert place.chat().status_code == 200


def test_a_tenant_keeps_no_more_than_its_share(files, tmp_path):
    with serving(files, tmp_path, tenant_bytes=1000) as server:
        first = upload(server.client, "x" * 600)
        with pytest.raises(openai.APIStatusError, match="more than 1,000 bytes") as refused:
            upload(server.client, "x" * 600)
        assert refused.value.status_code == 413
        assert len(list((tmp_path / "files").iterdir())) == 1
        server.client.files.delete(first.id)
        upload(server.client, "x" * 600)


def test_a_full_disk_is_said_and_nothing_half_written_stays(files, tmp_path, monkeypatch):
    with serving(files, tmp_path) as server:
        contents = {path.name for path in tmp_path.rglob("file-*")}

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", "/secret/place")

        with monkeypatch.context() as patch:
            patch.setattr(batch_store.os, "fsync", full)
            with pytest.raises(openai.APIStatusError) as caught:
                upload(server.client, line("a"))
        assert caught.value.status_code == 507
        assert caught.value.body["code"] == "insufficient_storage"
        assert "secret" not in caught.value.message
        assert {path.name for path in tmp_path.rglob("file-*")} == contents
        assert upload(server.client, line("a")).status == "processed"


def test_a_batch_stands_still_while_the_disk_is_full_and_goes_on_after(files, tmp_path, monkeypatch):
    """Outputs that cannot be kept are not piled up: no further rows are begun for them."""
    called: list[bytes] = []
    room = threading.Event()

    async def counted(app: Any, endpoint: str, body: bytes, *args: Any) -> Any:
        called.append(body)
        return await batch_worker_call(app, endpoint, body, *args)

    def record(store: BatchStore, records: Any) -> None:
        if not room.is_set():
            raise sqlite3.OperationalError("database or disk is full")
        store_record(store, records)

    batch_worker_call, store_record = batch_worker.self_call, BatchStore.record
    monkeypatch.setattr(batch_worker, "self_call", counted)
    monkeypatch.setattr(BatchStore, "record", record)
    monkeypatch.setattr(batch_worker, "_UNKEPT", 5)
    with serving(files, tmp_path) as server:
        file = upload(server.client, *(line(f"r{i}", max_tokens=1) for i in range(60)))
        batch = server.client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        wait_for(lambda: called)
        time.sleep(1.0)
        assert len(called) < 30
        assert server.client.batches.retrieve(batch.id).request_counts.completed == 0
        room.set()
        finished_batch = ended(server.client, batch.id)
        assert (finished_batch.status, finished_batch.request_counts.completed) == ("completed", 60)
        assert [row["custom_id"] for row in rows(server.client, finished_batch.output_file_id)] == [
            f"r{i}" for i in range(60)
        ]
        assert len(called) == 60


@given(st.text())
def test_a_clean_name_is_one_printable_part(name):
    cleaned = clean_name(name)
    assert cleaned.isprintable()
    assert 1 <= len(cleaned) <= 255
    assert not set("/\\") & set(cleaned)
    assert cleaned.strip(".")


def test_a_file_is_deleted_on_a_full_disk(tmp_path):
    """Of a real file system without a byte left, and then of many small files, which make little room each."""
    unshare, place = shutil.which("unshare"), tmp_path / "small"
    place.mkdir()
    mount = f"mount -t tmpfs -o size=8m none '{place}' && exec \"$@\""
    prefix = [str(unshare), "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if unshare is None or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("FULL DISK NOT TESTED: this process may not mount a file system")
    ended = subprocess.run([*prefix, sys.executable, "-c", FILLED, str(place)], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout.decode()) == (0, "40 deleted\n"), ended.stderr.decode()


FILLED = """
import io, os, sqlite3, sys
from pathlib import Path
from bedplate.serving.durable.batch_store import BatchStore
place = Path(sys.argv[1])
store = BatchStore(place)
files = [store.add_file("t", "f", "batch", io.BytesIO(b"x" * 2000)) for _ in range(40)]
def fill():
    with (place / "filler").open("ab", buffering=0) as filler:
        for size in (65536, 512):
            try:
                while True:
                    filler.write(bytes(size))
            except OSError:
                pass
fill()
try:
    store.add_file("t", "f", "batch", io.BytesIO(b"x"))
    sys.exit("the disk has room")
except OSError:
    pass
for file in files:
    fill()
    store.delete_file(file.id, "t")
assert store.files("t", None, None, 100, "desc") == ([], False)
print(len(files), "deleted")
"""


@pytest.mark.parametrize("charset", ["undefined", "idna", "punycode", "no-such", "zlib_codec"])
def test_a_form_in_an_encoding_that_decodes_nothing_is_refused(place, charset):
    body = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\xff\r\n--x--\r\n'
    content_type = f"multipart/form-data; boundary=x; charset={charset}"
    reply = place.post("/v1/files", content=body, headers={"content-type": content_type})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["message"]


def test_a_file_that_is_deleted_while_it_is_sent_is_sent_whole(place, monkeypatch):
    """Its bytes were opened before it was deleted."""
    client, sizes = place.client, list[int]()
    opened = file_reply.OpenFileResponse.__init__

    def deleted(self: Any, file: Any, name: str | None = None) -> None:
        opened(self, file, name)
        Path(file.name).unlink()

    monkeypatch.setattr(file_reply.OpenFileResponse, "__init__", deleted)
    content = line("a" * 100) * 500
    file = upload(client, content)
    sizes.append(len(client.files.content(file.id).content))
    assert sizes == [len(content)]
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)


@pytest.mark.parametrize(
    ("value", "status"), [("bytes=9999999-", 416), ("bytes=5-2", 400), ("lines=1-2", 400), ("bytes=x", 400)]
)
def test_a_range_that_is_none_is_the_error_object(place, value, status):
    file = upload(place.client, line("a"))
    reply = place.request("GET", f"/v1/files/{file.id}/content", headers={"range": value})
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, "invalid_range")
    assert reply.headers.get("content-range") == (f"bytes */{len(line('a'))}" if status == 416 else None)
    part = place.request("GET", f"/v1/files/{file.id}/content", headers={"range": "bytes=1-3"})
    assert (part.status_code, part.text) == (206, line("a")[1:4])


class ByHeader(CallerGuard):
    """The bearer token is the tenant."""

    def identify(self, headers):
        return Caller("", headers["authorization"].removeprefix("Bearer "), admin=False, models=None)


def test_other_tenants_learn_nothing(files, tmp_path):
    with serving(files, tmp_path, ByHeader()) as server:
        ours, theirs = (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key=name, max_retries=0) for name in ("ours", "theirs")
        )
        batch = run(ours, line("a"))
        assert batch.status == "completed"
        for id_ in (batch.input_file_id, batch.output_file_id):
            assert ours.files.retrieve(id_).id == id_
            for call in (theirs.files.retrieve, theirs.files.content, theirs.files.delete):
                with pytest.raises(openai.NotFoundError):
                    call(id_)
        for call in (theirs.batches.retrieve, theirs.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                call(batch.id)
        with pytest.raises(openai.NotFoundError):
            theirs.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h")
        with pytest.raises(openai.BadRequestError):
            theirs.batches.list(after=batch.id)
        assert theirs.files.list().data == theirs.batches.list().data == []


# --- batches


def test_a_batch_answers_every_row_as_the_server_does(place):
    client = place.client
    bodies = [{"messages": [{"role": "user", "content": f"row {i}"}], "max_tokens": 6} for i in range(30)]
    bodies[7]["model"] = "prompted"
    batch = run(client, *(line(f"r{i}", **body) for i, body in enumerate(bodies)), metadata={"run": "7"})
    assert (batch.status, batch.error_file_id, batch.metadata) == ("completed", None, {"run": "7"})
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (30, 30, 0)
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at < batch.expires_at
    output_rows = rows(client, batch.output_file_id)
    assert [row["custom_id"] for row in output_rows] == [f"r{i}" for i in range(30)]
    for row, body in zip(output_rows, bodies, strict=True):
        direct = place.chat(temperature=0, **body).json()
        assert row["response"]["status_code"] == 200
        assert approx_equal(row["response"]["body"]["choices"], direct["choices"])
        assert row["response"]["body"]["usage"]["total_tokens"] == direct["usage"]["total_tokens"]
    assert client.batches.list(limit=1).data[0].id == batch.id


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/completions", {"model": "tiny", "prompt": "this product", "max_tokens": 3, "temperature": 0}),
        ("/v1/embeddings", {"model": "tiny", "input": "this product"}),
        ("/v1/classify", {"model": "prompted", "input": "this product"}),
    ],
)
def test_other_endpoints_too(place, endpoint, body):
    text = json.dumps({"custom_id": "a", "method": "POST", "url": endpoint, "body": body})
    batch = run(place.client, text, endpoint=endpoint)
    direct = place.post(endpoint, json=body).json()
    assert batch.status == "completed", batch
    (row,) = rows(place.client, batch.output_file_id)
    for key in ("choices", "data"):
        assert approx_equal(row["response"]["body"].get(key), direct.get(key))


def test_a_row_that_cannot_be_answered_is_in_the_error_file(place):
    lines = [line("good"), line("unloaded", model="gone"), line("wrong", temperature=9)]
    batch = run(place.client, *lines)
    assert batch.status == "completed"
    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 2)
    assert [row["custom_id"] for row in rows(place.client, batch.output_file_id)] == ["good"]
    unloaded, wrong = rows(place.client, batch.error_file_id)
    assert (unloaded["response"]["status_code"], wrong["response"]["status_code"]) == (404, 400)
    assert unloaded["response"]["body"]["error"]["code"] == "model_not_found"
    assert wrong["response"]["body"]["error"]["param"] == "temperature"


def test_every_line_is_checked_before_the_first_is_answered(place):
    lines = [
        line("a"),
        "{broken",
        line("a"),
        line("b", url="/v1/completions"),
        json.dumps({"custom_id": "c", "method": "POST", "url": CHAT}),
        line("d", stream=True),
        "",
        line(""),
        line("e").replace("POST", "GET"),
        line("f").replace('"tiny"', "7"),
        "[1]",
        line("g")[:-1] + ', "colour": 1}',
    ]
    batch = run(place.client, *lines)
    assert batch.status == "failed"
    assert batch.output_file_id is batch.error_file_id is None
    assert [(error.line, error.code) for error in batch.errors.data] == [
        (2, "invalid_json"),
        (3, "duplicate_custom_id"),
        (4, "mismatched_endpoint"),
        (5, "missing_required_parameter"),
        (6, "invalid_request"),
        (8, "invalid_request"),
        (9, "invalid_request"),
        (10, "missing_required_parameter"),
        (11, "invalid_json"),
        (12, "unknown_parameter"),
    ]
    assert batch.errors.data[1].message == "the custom_id 'a' is that of line 1 too"


def checked(lines: list[bytes], max_rows: int = 1000, max_bytes: int = 1000) -> tuple[list[Any], list[dict[str, Any]]]:
    errors: list[dict[str, Any]] = []
    pieces = list(check_lines(lines, CHAT, max_rows, max_bytes, errors))
    return [row for piece in pieces for row in piece], errors


def test_errors_beyond_the_list_are_counted_and_rows_have_a_limit():
    _, errors = checked([b"x\n"] * (MAX_ERRORS + 23))
    assert len(errors) == MAX_ERRORS + 1
    assert errors[-1]["message"] == "23 more lines have errors"
    lines = [line(str(i)).encode() for i in range(5)]
    assert [(e["line"], e["code"]) for e in checked(lines, 4)[1]] == [(5, "too_many_rows")]
    assert checked(lines, 5)[1] == []
    assert checked([b"\n", b" "])[1][0]["code"] == "empty_file"
    assert {e["code"] for e in checked(lines, max_bytes=50)[1]} == {"line_too_large"}
    assert checked([b"\xef\xbb\xbf" + lines[0]])[1] == []


def test_errors_of_lines_are_short_whatever_they_quote(files, tmp_path):
    """They count in the tenant's part, and a list of batches ends where it has enough of them."""
    key = "k" * 50_000
    line_of_key = f'{{"{key}": 1, "{key}": 2}}'
    errors = checked([line_of_key.encode()] * 150, max_bytes=200_000)[1]
    assert len(json.dumps(errors)) < 60_000
    assert {error["code"] for error in errors} == {"invalid_json", "more_errors"}
    assert "is given twice" in errors[0]["message"]
    store = BatchStore(tmp_path, BatchesConfig(tenant_bytes=1_000_000))
    for _ in range(30):
        store.fail(store.add_batch(Caller("k", "t"), CHAT, "file", 60, None), errors)
    remembered, has_more = store.batches("t", None, 100)
    used = store._stored_bytes("t")
    assert (len(remembered), has_more) == (1_000_000 // 16 // len(json.dumps(errors)), False)
    assert used == len(remembered) * len(json.dumps(errors))
    store.close()


def test_a_page_of_batches_has_so_many_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_store, "PAGE_BYTES", 5_000)
    store = BatchStore(tmp_path)
    for _ in range(20):
        store.fail(store.add_batch(Caller("k", "t"), CHAT, "file", 60, None), [{"message": "m" * 1000}])
    pages, after, has_more = list[Any](), None, True
    while has_more:
        page, has_more = store.batches("t", after, 100)
        assert 0 < len(page) < 8
        pages += page
        after = page[-1].id
    assert len({batch.id for batch in pages}) == len(pages) == 20
    store.close()


def test_lists_are_written_beside_the_loop(files, tmp_path, monkeypatch):
    """A list of long errors keeps no other request waiting."""
    real, threads = batches.describe_batch, set[str]()

    def recorded(batch: Any) -> Any:
        threads.add(threading.current_thread().name)
        return real(batch)

    with serving(files, tmp_path) as server:
        batch = run(server.client, "{broken")
        monkeypatch.setattr(batches, "describe_batch", recorded)
        server.client.batches.list()
        server.client.batches.retrieve(batch.id)
    assert threads
    assert all(name.startswith("asyncio_") for name in threads)  # the default executor's


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON, st.text(min_size=1), st.sampled_from([1, 3, 1 << 20]))
def test_a_reply_stands_in_its_line_as_it_is(value, custom_id, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_lines, "PIECE_BYTES", piece)
        text = batch_lines.answered_line(custom_id, SelfReply(200, dump_json(value)))
    assert text.isascii()
    assert "\n" not in text
    row = json.loads(text)
    assert (row["custom_id"], row["error"], row["response"]["status_code"]) == (custom_id, None, 200)
    assert row["response"]["body"] == value
    assert json.loads(batch_lines.answered_line(custom_id, SelfReply(502, b"")))["response"]["body"] is None


def test_the_line_of_a_reply_is_written_beside_the_loop(files, tmp_path, monkeypatch):
    real, threads = batch_worker.answered_line, list[str]()

    def recorded(custom_id: str, reply: SelfReply) -> str:
        threads.append(threading.current_thread().name)
        return real(custom_id, reply)

    monkeypatch.setattr(batch_worker, "answered_line", recorded)
    with serving(files, tmp_path) as server:
        assert run(server.client, line("a")).status == "completed"
    assert len(threads) == 1
    assert threads[0].startswith("asyncio_")


@given(st.lists(st.binary(max_size=40)))
def test_any_bytes_are_errors_or_rows(lines):
    rows, errors = checked(lines)
    assert rows == []
    assert errors


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/images"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": 7}, "input_file_id"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_batch_says_what_is_wrong_with_its_request(place, change, param):
    request = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"} | change
    answer = place.post("/v1/batches", json=request)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_batch_of_no_file_is_not_found(place):
    with pytest.raises(openai.NotFoundError, match="there is no file 'file-x'"):
        place.client.batches.create(input_file_id="file-x", endpoint=CHAT, completion_window="24h")


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    step = Steps.step

    def slowly(self: Steps, *arguments: Any) -> Any:
        time.sleep(seconds)
        return step(self, *arguments)

    monkeypatch.setattr(Steps, "step", slowly)


def wait_for(condition: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_cancelled_batch_keeps_what_was_done_and_lists_the_rest(place, monkeypatch):
    slow(monkeypatch, 0.01)
    client = place.client
    file = upload(client, *(line(f"r{i}", max_tokens=8) for i in range(60)))
    batch = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 3)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(client, batch.id)
    assert batch.status == "cancelled"
    outputs, errors = rows(client, batch.output_file_id), rows(client, batch.error_file_id)
    assert 3 <= len(outputs) < 60
    assert {row["custom_id"] for row in outputs} | {row["custom_id"] for row in errors} == {f"r{i}" for i in range(60)}
    assert len(outputs) + len(errors) == 60
    assert {row["error"]["code"] for row in errors} == {"batch_cancelled"}
    assert client.batches.cancel(batch.id).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(run(client, line("a")).id)


def test_a_batch_that_takes_too_long_expires(files, tmp_path, monkeypatch):
    monkeypatch.setattr("bedplate.serving.api.batches.WINDOW_SECONDS", 1)
    slow(monkeypatch, 0.02)
    with serving(files, tmp_path, in_flight=1) as server:
        batch = run(server.client, *(line(f"r{i}", max_tokens=20) for i in range(50)))
        assert batch.status == "expired"
        errors = rows(server.client, batch.error_file_id)
        assert {row["error"]["code"] for row in errors} == {"batch_expired"}
        assert batch.request_counts.completed + len(errors) == batch.request_counts.total == 50


def test_clients_go_first(files, tmp_path, monkeypatch):
    """A batch has at most so many rows under way, and begins none while clients wait or fill the rows."""
    slow(monkeypatch, 0.005)
    config = server_config(files.base, state=tmp_path, max_rows=3, batches=BatchesConfig(in_flight=2))
    with loaded_server(config) as state, running(state) as url:
        server = Server(url, state, {})
        engine, row_counts = state.registry.engines[0], []
        file = upload(server.client, *(line(f"r{i}", max_tokens=10) for i in range(25)))
        id_ = server.client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h").id
        wait_for(lambda: engine.running > 0)
        for _ in range(50):
            row_counts.append(engine.running + engine.waiting)
            time.sleep(0.005)
        assert max(row_counts) <= 2
        clients = [
            threading.Thread(target=server.chat, kwargs={"max_tokens": 100, "temperature": 1.9, "n": 3})
            for _ in range(2)
        ]
        for thread in clients:
            thread.start()
        wait_for(lambda: engine.waiting > 0)
        wait_for(lambda: server.client.batches.retrieve(id_).request_counts.completed > 0)
        time.sleep(0.2)  # rows that were under way are done by now
        before = server.client.batches.retrieve(id_).request_counts.completed
        if any(thread.is_alive() for thread in clients) and engine.waiting > 0:
            time.sleep(0.1)
            assert server.client.batches.retrieve(id_).request_counts.completed - before <= 2
        for thread in clients:
            thread.join()
        assert ended(server.client, id_).request_counts.completed == 25


def test_full_queues_and_revoked_keys(files, tmp_path, monkeypatch):
    """A full queue is waited for; a caller that may no longer ask has its rows refused one by one."""
    from bedplate.core.errors import BusyError
    from bedplate.serving.request import events

    real, refusals = events.submit_all, [True] * 5

    def full(engine: Any, requests: Any) -> Any:
        if refusals:
            refusals.pop()
            raise BusyError("the server's queue is full; try again in a moment")
        return real(engine, requests)

    monkeypatch.setattr("bedplate.serving.request.lifecycle.submit_all", full)
    with serving(files, tmp_path) as server:
        batch = run(server.client, *(line(f"r{i}") for i in range(10)))
        assert (batch.status, batch.request_counts.completed, refusals) == ("completed", 10, [])

        def admit(*_: Any, **__: Any) -> Any:
            raise openai_error

        from bedplate.serving.schemas.http_errors import StatusError

        openai_error = StatusError(401, "the API key is no longer one of this server's", "invalid_api_key")
        file = upload(server.client, line("a"))
        real_admit = server.state.guard.admit
        monkeypatch.setattr(
            server.state.guard,
            "admit",
            lambda caller, counted=True: real_admit(caller, counted) if counted else admit(),
        )
        id_ = server.client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h").id
        (row,) = rows(server.client, ended(server.client, id_).error_file_id)
        assert row["response"]["status_code"] == 401


# --- what is kept


def test_a_server_that_stops_leaves_the_rest_to_the_next(files, tmp_path, monkeypatch):
    slow(monkeypatch, 0.01)
    with serving(files, tmp_path) as server:
        file = upload(server.client, *(line(f"r{i}", max_tokens=8) for i in range(40)))
        id_ = server.client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h").id
        wait_for(lambda: server.client.batches.retrieve(id_).request_counts.completed >= 4)
        server.state.stopping = True  # what SIGTERM sets
        with httpx.Client(trust_env=False) as client:
            assert client.get(f"{server.url}/v1/batches/{id_}").status_code == 503
    with serving(files, tmp_path) as server:
        batch = ended(server.client, id_)
        assert (batch.status, batch.request_counts.completed) == ("completed", 40)
        custom_ids = [row["custom_id"] for row in rows(server.client, batch.output_file_id)]
        assert custom_ids == [f"r{i}" for i in range(40)]


def test_a_state_directory_belongs_to_one_server(files, tmp_path):
    config = server_config(files.base, state=tmp_path)
    with (
        serving(files, tmp_path),
        loaded_server(config) as state,
        pytest.raises(UsageError, match="another server holds"),
    ):
        state.part(StateDirectory).begin()
    with loaded_server(server_config(files.base, state=tmp_path)) as state:
        assert state.part(StateDirectory).begin()
        state.part(StateDirectory).release()


def test_servers_without_a_state_of_their_own_share_the_default_until_one_needs_it(files, isolated_home):
    with loaded_server(files.base) as state, running(state) as url:
        assert (
            not state.part(StateDirectory).path.exists()
            or not (state.part(StateDirectory).path / "batches.sqlite").exists()
        )
        Server(url, state, {}).client.files.list()
        with loaded_server(files.base) as second, running(second) as second_url:
            server = Server(second_url, second, {})
            assert server.chat().status_code == 200
            with pytest.raises(openai.InternalServerError, match="another server holds"):
                server.client.files.list()


def test_the_store_commits_a_row_once_and_forgets_what_was_not_entered(tmp_path):
    store = BatchStore(tmp_path)
    file = store.add_file("t", "rows", "batch", BytesIO(b"x"))
    batch = store.add_batch(Caller("k", "t", False, frozenset({"a"})), CHAT, file.id, 60, None)
    assert batch.caller == Caller("k", "t", False, frozenset({"a"}))
    assert store.enter(batch, [(1, "a", "{}"), (2, "b", "{}")])
    assert store.start(batch)
    store.record([DoneRow(batch.seq, 1, True, "first")])
    store.record([DoneRow(batch.seq, 1, True, "again"), DoneRow(batch.seq, 2, False, "bad")])
    batch = store.batch(batch.id, "t")
    assert (batch.completed, batch.failed, store.waiting(batch)) == (1, 1, [])
    list(store.finish(batch, "completed", str))
    batch = store.batch(batch.id, "t")
    assert batch.output_file is not None
    assert store.content(store.file(batch.output_file, "t")).read_text() == "first\n"
    store.close()
    orphan = tmp_path / "files" / "file-orphan"
    orphan.write_text("half")
    store = BatchStore(tmp_path)
    assert not orphan.exists()
    assert store.content(file).exists()
    assert all((tmp_path / name).stat().st_mode & 0o077 == 0 for name in ("files", "batches.sqlite"))
    store.close()


def test_a_call_from_inside_ends_when_it_is_given_up(place, monkeypatch):
    from bedplate.serving.request.server_state import self_call
    from bedplate.serving.server.app import create_app

    slow(monkeypatch, 0.02)

    async def give_up() -> int:
        disconnected = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, disconnected.set)
        body = json.dumps(json.loads(line("a", max_tokens=400, temperature=1.9))["body"])
        reply = await self_call(create_app(place.state), CHAT, body.encode(), Caller(), "test", disconnected)
        return reply.status

    assert asyncio.run(give_up()) == 0
    assert place.idle()
