"""Replies with the bytes of an open file."""

from __future__ import annotations

import os
from typing import BinaryIO

from starlette.datastructures import Headers
from starlette.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from bedplate.serving.schemas.http_errors import StatusError
from bedplate.serving.schemas.strict_json import JsonLinesResponse


class OpenFileResponse(FileResponse):
    """Streams an open file of JSON lines, even if it is deleted meanwhile, and closes it. StatusError for an impossible
    Range header."""

    def __init__(self, file: BinaryIO, name: str | None = None) -> None:
        path, state = f"/dev/fd/{file.fileno()}", os.fstat(file.fileno())
        super().__init__(path, media_type=JsonLinesResponse.media_type, filename=name, stat_result=state)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def checked_send(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                length = Headers(raw=message["headers"]).get("content-range")
                problem = (
                    f"the Range header names no bytes of this file, which has {os.fstat(self._file.fileno()).st_size:,}"
                )
                headers = None if length is None else {"content-range": length}
                raise StatusError(message["status"], problem, "invalid_range", "range", headers)
            await send(message)

        with self._file:
            await super().__call__(scope, receive, checked_send)
