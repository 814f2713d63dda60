"""Licences that must be accepted before an item is used: asked once, remembered beside the cache, never assumed."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from bedplate.core.errors import LicenceError
from bedplate.core.files import atomic_write, bedplate_home, file_lock
from bedplate.core.progress import console
from bedplate.hub.catalog import Item

VARIABLE = "BEDPLATE_ACCEPT_LICENCE"
"""Names of items, with commas between: their licences are accepted as by `bedplate pull --accept-licence`."""


def acceptances_file() -> Path:
    """$BEDPLATE_HOME/hub/licences.json: item → the licence, its address and the day."""
    return bedplate_home() / "hub" / "licences.json"


def is_accepted(item: Item) -> bool:
    """Whether the item's licence needs no acceptance, or has it: this licence at this address, not an earlier one."""
    terms = item.terms
    if terms is None:
        return True
    held = _read().get(item.name)
    return isinstance(held, dict) and (held.get("licence"), held.get("terms")) == (item.licence, terms.address)


def accept(item: Item) -> None:
    """Remember that the item's licence is accepted, and say so on stderr. Nothing where it needs no acceptance."""
    if item.terms is None or is_accepted(item):
        return
    path = acceptances_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.with_name(".licences.lock")):
        day = datetime.now(UTC).date().isoformat()
        row = {"licence": item.licence, "terms": item.terms.address, "accepted": day}
        atomic_write(path, json.dumps(_read() | {item.name: row}, indent=2) + "\n")
    console(stderr=True).print(f"{_shown(item)} Accepted, and remembered in {path}.", highlight=False)


def require(item: Item) -> None:
    """Raises LicenceError, which shows the licence and how to accept it, until it was accepted."""
    if is_accepted(item):
        return None
    if item.name in {name.strip() for name in os.environ.get(VARIABLE, "").split(",")}:
        return accept(item)
    raise LicenceError(
        f"{item.name}: its licence was not accepted on this machine. {_shown(item)} To accept, run "
        f"`bedplate pull {item.name} --accept-licence` once, or set {VARIABLE}={item.name}"
    )


def _shown(item: Item) -> str:
    assert item.terms is not None
    return f"Licence of {item.name}: {item.licence}, {item.terms.address}. {item.terms.notice}"


def _read() -> dict[str, Any]:
    """What was accepted; nothing where the file is missing or not what was written: then it is asked again."""
    try:
        held = json.loads(acceptances_file().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", held) if isinstance(held, dict) else {}
