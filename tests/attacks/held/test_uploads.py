"""Uploads that are begun and left open take what has arrived of them, and keep nobody from being answered."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.attacks.conftest import head

from bedplate.serving.api import batches

UPLOADS = 40
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
FORM = b'--b\r\ncontent-disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n'


@pytest.mark.parametrize("arrived", [0, 200_000])
def test_uploads_that_are_left_open_keep_no_chat_out(target, monkeypatch, arrived):
    """Of each at most a piece is in memory; what is larger is in a file already."""
    begun: list[object] = []
    read_form = batches._form

    async def counted(*arguments: Any) -> Any:
        begun.append(arguments)
        return await read_form(*arguments)

    monkeypatch.setattr(batches, "_form", counted)
    assert target.request("GET", "/v1/files", headers=head("them")).status_code == 200
    address, store = urlsplit(target.url), target.state.part(batches.Batches).store
    with contextlib.ExitStack() as stack:
        for _ in range(UPLOADS):
            connection = stack.enter_context(socket.create_connection((address.hostname, address.port)))
            connection.sendall(
                b"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer them\r\ncontent-length: 10000000\r\n"
                b"content-type: multipart/form-data; boundary=b\r\n\r\n" + FORM + b"a" * arrived
            )
        end = time.monotonic() + 10
        expected = UPLOADS * max(0, arrived + len(FORM) - batches._FORM_BYTES)
        while (len(begun) < UPLOADS or store._arriving["them"] < expected) and time.monotonic() < end:
            time.sleep(0.01)
        statuses = [
            target.post("/v1/chat/completions", json=CHAT, headers=head(tenant)).status_code
            for tenant in ("them", "us")
        ]
    assert statuses == [200, 200]
    assert len(begun) == UPLOADS
