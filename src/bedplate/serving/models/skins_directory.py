"""The directory from which a running server takes skins; nothing outside of it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bedplate.core.errors import SkinError, UsageError
from bedplate.skins.card import Card, parts_of, read_card, skin_directories

SOURCE_CHARACTERS = 1024


@dataclass(frozen=True)
class Scanned:
    """What a scan came upon: cards, and what could not be read, each with the reason."""

    cards: Sequence[Card]
    problems: Sequence[str]


class SkinsDirectory:
    """A directory of skins. UsageError where there is none."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UsageError(f"skins_directory {root} is not a directory; make it, or leave it out")
        self.root = root.resolve()

    def locate(self, source: str) -> Path:
        """The directory that `source` (a path below the root, or relative to it) names. SkinError where it leads out,
        through a link, or to nothing."""
        if "\0" in source or not source:
            raise SkinError("source is not a path")
        if len(source) > SOURCE_CHARACTERS:
            raise SkinError(f"source is longer than {SOURCE_CHARACTERS:,} characters; give the skin's path")
        path = Path(source)
        if ".." in path.parts:
            raise SkinError("source must not contain '..'; give the skin's path below the skins directory")
        try:
            below = path.relative_to(self.root) if path.is_absolute() else path
        except ValueError:
            raise SkinError("source lies outside of the server's skins directory; put the skin there first") from None
        place = self.root
        for part in below.parts:
            place /= part
            try:
                linked = place.is_symlink()
            except OSError as error:  # a name that no file system has room for
                raise SkinError(f"{part[:80]!r} in source cannot be looked at: {error.strerror}") from None
            if linked:
                raise SkinError(f"{part!r} in source is a symbolic link; put the skin itself into the skins directory")
        if not place.is_dir():
            raise SkinError(f"there is no directory {source[:200]!r} in the server's skins directory")
        return place

    def scan(self) -> Scanned:
        """Every skin below the root, by `skin.json` alone (a cascade's: and those of its two skins)."""
        cards: list[Card] = []
        problems: list[str] = []
        for directory in skin_directories(self.root):
            try:
                card = read_card(directory)
                parts_of(card)
                cards.append(card)
            except (SkinError, OSError) as error:
                problems.append(f"{directory}: {error}")
        return Scanned(cards, problems)
