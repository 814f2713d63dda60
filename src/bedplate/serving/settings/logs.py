"""Logging of a server process: standard error, as text or as one JSON object a line."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from bedplate.serving.settings.server_config import LogsConfig

FIELDS = "bedplate_fields"
"""The attribute under which a log record carries fields of its own."""


class JsonLines(logging.Formatter):
    """Every record as one JSON object: its fields, or its message."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = record.__dict__.get(FIELDS) or {"message": record.getMessage()}
        head = {"time": self.formatTime(record), "level": record.levelname.lower(), "logger": record.name}
        tail = {"exception": self.formatException(record.exc_info)} if record.exc_info else {}
        return json.dumps({**head, **fields, **tail}, default=str)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def write_logs(logs: LogsConfig) -> None:
    """Sets this process's logging up: bedplate's own from INFO on, of others what warns."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonLines() if logs.format == "json" else text)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("bedplate").setLevel(logging.INFO)
