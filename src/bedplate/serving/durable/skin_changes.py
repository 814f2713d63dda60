"""Saves which skins were added, replaced or deleted while the server ran, and makes these changes again at a start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from bedplate.core.config import Strict
from bedplate.core.errors import BedplateError, UsageError
from bedplate.core.files import atomic_write, read_text
from bedplate.serving.durable.state_directory import StateDirectory
from bedplate.serving.models.registry import Registry, locate_skin
from bedplate.serving.models.served_skin import ServedSkin
from bedplate.serving.schemas.http_errors import StatusError
from bedplate.skins.files import Card, read_card

log = logging.getLogger("bedplate.serving")

T = TypeVar("T")


class SkinRecord(Strict):
    """source: the skin's path below the skins directory, id: its content's hash. instead_of: the skin of the server's
    file (or of --skin) that had the name; where the file names another one by now, the file holds."""

    source: str
    id: str
    instead_of: str | None = None


class SavedChanges(Strict):
    """The changes in one skins directory, by model name."""

    added: dict[str, SkinRecord] = Field(default_factory=dict[str, SkinRecord])
    removed: dict[str, SkinRecord] = Field(default_factory=dict[str, SkinRecord])


_FILE = TypeAdapter(dict[str, SavedChanges])


class SkinChanges:
    """Changes the registry's skins and saves each change before it is made.

    root: the skins directory; without one nothing is saved, since nothing could be taken from it again. configured: the
    skins of the server's file, name → directory. Made before the skins directory is scanned. UsageError for a file that
    cannot be read. Whoever changes skins holds `lock`.
    """

    def __init__(
        self, directory: StateDirectory, registry: Registry, root: Path | None, configured: Mapping[str, Path | None]
    ) -> None:
        self.lock = asyncio.Lock()
        self._directory, self._registry, self._root = directory, registry, root
        self._file = directory.path / "skins.json"
        self._configured = configured
        self._changes = SavedChanges() if root is None else self._read().get(str(root.resolve()), SavedChanges())
        for name, record in list(self._changes.added.items()):
            replaced = configured.get(name)
            if record.instead_of != (None if replaced is None else str(replaced)):
                log.warning("the skin %s was edited in the server's file: what was set at run time is dropped", name)
                del self._changes.added[name]
        registry.removed = {name: record.id for name, record in self._changes.removed.items()}
        for name, record in {**self._changes.removed, **self._changes.added}.items():
            card = self._card(record)
            if isinstance(card, Card):
                registry.set_precedence(card, name)

    def keep_name(self, card: Card, name: str) -> bool:
        """Whether the saved changes leave the name to this skin."""
        added = self._changes.added.get(name)
        return name not in self._changes.removed and (added is None or added.id == card.id)

    def restore(self) -> tuple[list[str], list[str]]:
        """Adds the skins that were added at run time and are not served. Returns their names, and what kept others."""
        names, problems = list[str](), list[str]()
        for name, record in self._changes.added.items():
            served = self._registry.models.get(name)
            if served is not None and not (isinstance(served, ServedSkin) and self._is_configured(served)):
                continue
            card = self._card(record)
            try:
                if isinstance(card, BedplateError):
                    raise card
                if card.name == name and served is None:
                    continue  # the scan adds it
                if card.id != record.id:
                    log.warning("%s has other files than when it was added as %r", record.source, name)
                self._registry.replace(self._registry.skin(card, name))
                names.append(name)
            except BedplateError as error:
                problems.append(f"{name!r}, added at run time from {record.source}: {error.message}")
        return names, problems

    async def replace(self, served: ServedSkin) -> tuple[ServedSkin | None, bool]:
        """Serves it under its name. Returns the skin that had the name, and whether a restart will find the change."""
        name, configured = served.name, self._configured.get(served.name)
        record = self._record(served, None if configured is None else str(configured))
        changed = self._without(name)
        changed.added[name] = record
        replaced, durable = await self._saved(changed, lambda: self._registry.replace(served))
        self._registry.set_precedence(served.card, name)
        return replaced, durable

    async def remove(self, name: str) -> tuple[int, bool]:
        """Serves the skin no more. Returns how many calls still run on it, and whether it stays away after a restart: a
        skin that the server's file names comes back."""
        self._registry.pooled(name)
        served = self._registry.models[name]
        assert isinstance(served, ServedSkin)
        changed, returns = self._without(name), self._root is None or self._is_configured(served)
        if not returns:
            changed.removed[name] = self._record(served)
        calls, durable = await self._saved(changed, lambda: self._registry.remove(name))
        return calls, durable and not returns and name not in self._configured

    def _is_configured(self, served: ServedSkin) -> bool:
        return served.name in self._configured and served.card.directory == self._configured[served.name]

    def _record(self, served: ServedSkin, instead_of: str | None = None) -> SkinRecord:
        assert self._root is not None
        assert served.card.directory is not None
        source = served.card.directory.resolve().relative_to(self._root.resolve())
        return SkinRecord(source=str(source), id=served.card.id, instead_of=instead_of)

    def _card(self, record: SkinRecord) -> Card | BedplateError:
        assert self._root is not None
        try:
            return read_card(locate_skin(self._root, record.source))
        except BedplateError as error:
            return error

    def _without(self, name: str) -> SavedChanges:
        added, removed = dict(self._changes.added), dict(self._changes.removed)
        added.pop(name, None)
        removed.pop(name, None)
        return SavedChanges(added=added, removed=removed)

    async def _saved(self, changed: SavedChanges, change: Callable[[], T]) -> tuple[T, bool]:
        """What the change returns, once it is saved, and whether it is; a change that fails is not saved."""
        before, durable = self._changes, await asyncio.to_thread(self._save, changed)
        try:
            result = change()
        except BaseException:
            await asyncio.to_thread(self._save, before)
            raise
        self._changes = changed
        return result, durable

    def _save(self, changes: SavedChanges) -> bool:
        """False where another server has the default state directory: that is logged, and the change is made all the
        same, for as long as this server runs."""
        if self._root is None:
            return False
        try:
            self._directory.acquire()
        except StatusError as error:
            log.warning("a change of skins will not outlive this server: %s", error.message)
            return False
        everywhere = {**self._read(), str(self._root.resolve()): changes}
        atomic_write(self._file, _FILE.dump_json(everywhere, indent=1))
        return True

    def _read(self) -> Mapping[str, SavedChanges]:
        if not self._file.exists():
            return {}
        try:
            return _FILE.validate_json(read_text(self._file))
        except (ValidationError, BedplateError) as error:
            reason: Any = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            message = f"{self._file}: cannot be read ({reason}); delete it to start with the skins as they lie there"
            raise UsageError(message) from error
