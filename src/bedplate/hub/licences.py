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
from bedplate.hub.catalog import Artifact

VARIABLE = "BEDPLATE_ACCEPT_LICENCE"
"""Names of items, with commas between: their licences are accepted as by `bedplate pull --accept-licence`."""


def acceptances_file() -> Path:
    """$BEDPLATE_HOME/hub/licences.json: item → the licence, its address and the day."""
    return bedplate_home() / "hub" / "licences.json"


def is_accepted(artifact: Artifact) -> bool:
    """Whether the item's licence needs no acceptance, or has it: this licence at this address, not an earlier one."""
    terms = artifact.terms
    if terms is None:
        return True
    acceptance = _read().get(artifact.name)
    return isinstance(acceptance, dict) and (acceptance.get("licence"), acceptance.get("terms")) == (
        artifact.licence,
        terms.address,
    )


def accept(artifact: Artifact) -> None:
    """Remember that the item's licence is accepted, and say so on stderr. Nothing where it needs no acceptance."""
    if artifact.terms is None or is_accepted(artifact):
        return
    path = acceptances_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.with_name(".licences.lock")):
        day = datetime.now(UTC).date().isoformat()
        row = {"licence": artifact.licence, "terms": artifact.terms.address, "accepted": day}
        atomic_write(path, json.dumps(_read() | {artifact.name: row}, indent=2) + "\n")
    console(stderr=True).print(f"{_shown(artifact)} Accepted, and remembered in {path}.", highlight=False)


def require(artifact: Artifact) -> None:
    """Raises LicenceError, which shows the licence and how to accept it, until it was accepted."""
    if is_accepted(artifact):
        return None
    if artifact.name in {name.strip() for name in os.environ.get(VARIABLE, "").split(",")}:
        return accept(artifact)
    raise LicenceError(
        f"{artifact.name}: its licence was not accepted on this machine. {_shown(artifact)} To accept, run "
        f"`bedplate pull {artifact.name} --accept-licence` once, or set {VARIABLE}={artifact.name}"
    )


def _shown(artifact: Artifact) -> str:
    assert artifact.terms is not None
    return f"Licence of {artifact.name}: {artifact.licence}, {artifact.terms.address}. {artifact.terms.notice}"


def _read() -> dict[str, Any]:
    """What was accepted; nothing where the file is missing or not what was written: then it is asked again."""
    try:
        acceptances = json.loads(acceptances_file().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", acceptances) if isinstance(acceptances, dict) else {}
