"""Replies that are JSON."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from bedplate.serving.schemas.strict_json import dump_in_pieces, dump_json


def large_json_response(content: Any, levels: int = 5) -> Response:
    """A JSON reply of any size, for a thread beside the loop. levels: as in `dump_in_pieces`."""
    return Response(b"".join(dump_in_pieces(content, levels)), media_type="application/json")


def json_response(content: Any, status: int = 200) -> Response:
    """A JSON reply."""
    return Response(dump_json(content), status, media_type="application/json")
