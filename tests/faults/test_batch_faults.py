"""A server that is really killed in the middle of a batch, again and again: every row once, and as asked directly."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.forked import Command
from tests.homes import new_home
from tests.tiny import write_tiny_base

CHAT = "/v1/chat/completions"
ROWS = 60


def body(number: int) -> dict[str, Any]:
    text = f"row {number}: this product is great and works well"[: 12 + number % 30]
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 16, "temperature": 0}


@contextmanager
def served(base: Path, home: Path) -> Iterator[tuple[Command, openai.OpenAI]]:
    """`bedplate serve` in a process of its own; killed at the end."""
    arguments = ("serve", base, "--port", "0", "--dtype", "float32", "--json")
    process = Command(home.parent / "said", *arguments, BEDPLATE_HOME=str(home))
    try:
        url = json.loads(process.first_line())["url"]
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30) as client:
            yield process, client
    finally:
        process.kill()


def completed_rows(client: openai.OpenAI, id_: str) -> int:
    counts = client.batches.retrieve(id_).request_counts
    assert counts is not None
    assert counts.failed == 0
    return counts.completed


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)  # each look is a call, whose work is as much as a row's


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_no_row_is_lost_or_done_twice_by_kills(tmp_path: Path, kills: int) -> None:
    base, home = write_tiny_base(tmp_path / "tiny"), new_home(tmp_path / "home")
    draw = random.Random(int.from_bytes(os.urandom(4)))
    lines = [json.dumps({"custom_id": f"r{i}", "method": "POST", "url": CHAT, "body": body(i)}) for i in range(ROWS)]
    id_, progress = "", 0
    for kill in range(kills):
        with served(base, home) as (process, client):
            if not id_:
                file = client.files.create(file=("rows.jsonl", BytesIO("\n".join(lines).encode())), purpose="batch")
                id_ = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h").id
            else:
                assert completed_rows(client, id_) >= progress  # nothing that was seen done is lost
            goal = progress + draw.randint(3, 10)
            wait_for(lambda id_=id_, goal=goal, client=client: completed_rows(client, id_) >= goal)
            progress = completed_rows(client, id_)
            assert progress < ROWS, f"the batch was over before kill {kill}"
            time.sleep(draw.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
            process.wait()
    with served(base, home) as (process, client):
        wait_for(lambda: client.batches.retrieve(id_).status not in ("validating", "in_progress", "finalizing"))
        batch = client.batches.retrieve(id_)
        assert (batch.status, batch.error_file_id) == ("completed", None)
        assert batch.request_counts is not None
        assert (batch.request_counts.total, batch.request_counts.completed) == (ROWS, ROWS)
        assert batch.output_file_id is not None
        output_rows = [json.loads(text) for text in client.files.content(batch.output_file_id).text.splitlines()]
        assert [row["custom_id"] for row in output_rows] == [f"r{i}" for i in range(ROWS)]
        for number, row in enumerate(output_rows):
            direct = client.chat.completions.create(**body(number))
            (choice,) = row["response"]["body"]["choices"]
            assert choice["message"]["content"] == direct.choices[0].message.content
            assert row["response"]["body"]["usage"]["completion_tokens"] == direct.usage.completion_tokens
        # killed once more right after: what is finished stays as it is
        process.send_signal(signal.SIGKILL)
        process.wait()
    with served(base, home) as (_, client):
        assert client.batches.retrieve(id_) == batch
        rows_after_kill = [json.loads(text) for text in client.files.content(batch.output_file_id).text.splitlines()]
        assert rows_after_kill == output_rows
    (database,) = home.rglob("batches.sqlite")
    connection = sqlite3.connect(database)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("SELECT count(*) FROM rows").fetchone() == (0,)
    connection.close()


@pytest.mark.slow
def test_sigterm_ends_within_the_grace_and_the_next_server_goes_on(tmp_path: Path) -> None:
    base, home = write_tiny_base(tmp_path / "tiny"), new_home(tmp_path / "home")
    lines = [json.dumps({"custom_id": f"r{i}", "method": "POST", "url": CHAT, "body": body(i)}) for i in range(ROWS)]
    with served(base, home) as (process, client):
        file = client.files.create(file=("rows.jsonl", BytesIO("\n".join(lines).encode())), purpose="batch")
        id_ = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h").id
        wait_for(lambda: completed_rows(client, id_) > 10)
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert time.monotonic() - start < 10
    with served(base, home) as (_, client):
        wait_for(lambda: client.batches.retrieve(id_).status == "completed")
        assert completed_rows(client, id_) == ROWS
