"""Suggests known names for one that does not exist, by one measure of nearness and in one wording."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path

PATH_CUTOFF = 0.6
"""The least likeness of a path that is suggested, without its suffix."""


def nearest(name: str, candidates: Iterable[str], limit: int = 1, cutoff: float = 0.5) -> list[str]:
    """At most so many of the known names that look like this one in any case, the likest first. cutoff: likeness."""
    by_folded = {candidate.strip().casefold(): candidate for candidate in candidates}
    return [by_folded[near] for near in difflib.get_close_matches(name.strip().casefold(), by_folded, limit, cutoff)]


def did_you_mean(names: Iterable[str], remark: str = "", *, show: Callable[[str], str] = repr) -> str:
    """ "did you mean 'a' or 'b'?", and what is also said; "" where there is neither. show: how a name is written."""
    shown = " or ".join(map(show, names))
    return " ".join(filter(None, (f"did you mean {shown}?" if shown else "", remark)))


def path_hint(path: Path, remark: str = "") -> str:
    """As `did_you_mean`, for a path that does not exist: with a file of its folder that has its suffix and nearly its
    name, or a folder with nearly its name. Hidden ones are meant only by a name that begins with a dot."""
    child = path = path.expanduser()
    while not child.parent.is_dir():
        child = child.parent
    candidates = {
        place.name if place.is_dir() else place.stem: place
        for place in child.parent.glob("*")
        if place.name.startswith(".") == child.name.startswith(".")
        and (place.is_dir() or (child == path and _format(place) == _format(path)))
    }
    closest = [candidates[name] for name in nearest(child.stem, candidates, cutoff=PATH_CUTOFF)]
    meant = [place for near in closest for place in (near / path.relative_to(child), near)]
    return did_you_mean([str(place) for place in meant if place.exists()][:1], remark)


def _format(path: Path) -> str:
    return path.suffix.lower().replace(".yml", ".yaml")
