"""An adapter alone in a directory of its own, as peft saves one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bedplate.adapters.peft import peft_files


def write_peft(directory: Path, *adapter: Any, **options: Any) -> None:
    """Writes `peft_files(*adapter, **options)`."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in peft_files(*adapter, **options).items():
        (directory / name).write_bytes(content)
