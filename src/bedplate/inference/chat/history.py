"""The lines that were typed, kept between chats in BEDPLATE_HOME, for their owner alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path

from bedplate.core.files import bedplate_home

LINES = 1000


def history_file() -> Path:
    """Where they are kept."""
    return bedplate_home() / "chat_history"


@contextlib.contextmanager
def line_editing() -> Generator[None]:
    """Inside, `input` edits lines and knows earlier ones. What is typed is added to the file at the end."""
    try:
        import readline
    except ImportError:  # a Python without it: lines are plain
        yield
        return
    readline.clear_history()
    for line in _saved_lines():
        readline.add_history(line)
    before = readline.get_current_history_length()
    try:
        yield
    finally:
        after = readline.get_current_history_length()
        _add([readline.get_history_item(number) for number in range(before + 1, after + 1)])


def _saved_lines() -> list[str]:
    try:
        return history_file().read_text("utf-8", "replace").split("\n")[-LINES - 1 : -1]
    except FileNotFoundError:
        return []


def _add(lines: list[str]) -> None:
    """Readable by the owner alone, also where the file was there before. Chats at the same time only add."""
    path = history_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.fchmod(file, 0o600)
        os.write(file, "".join(f"{line}\n" for line in lines if line).encode("utf-8", "replace"))
    finally:
        os.close(file)
