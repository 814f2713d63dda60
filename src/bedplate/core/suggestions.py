"""Suggests known names for one that does not exist, by one measure of nearness and in one wording."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path


def nearest(name: str, candidates: Iterable[str], limit: int = 1, cutoff: float = 0.5) -> list[str]:
    """At most so many of the known names that look like this one, the likest first. cutoff: the least likeness."""
    return difflib.get_close_matches(name, list(candidates), n=limit, cutoff=cutoff)


def did_you_mean(names: Iterable[str], remark: str = "", *, show: Callable[[str], str] = repr) -> str:
    """ "did you mean 'a' or 'b'?", and what is also said; "" where there is neither. show: how a name is written."""
    shown = " or ".join(map(show, names))
    return " ".join(filter(None, (f"did you mean {shown}?" if shown else "", remark)))


def path_hint(path: Path, remark: str = "") -> str:
    """As `did_you_mean`, of a path that does not exist: with what its folder holds, or a folder like its."""
    child = path = path.expanduser()
    while not child.parent.is_dir():
        child = child.parent
    names = nearest(child.name, (place.name for place in child.parent.glob("*")))
    meant = [place for name in names for place in (child.parent / name / path.relative_to(child), child.parent / name)]
    return did_you_mean([str(place) for place in meant if place.exists()][:1], remark)
