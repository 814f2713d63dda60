"""Checks arguments that name a file, a directory, a base or a skin while the command line is read, before anything
heavy is imported.

What was there then may be gone later, and more may be wrong with what is there: whoever reads or writes it says that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bedplate.core.display import join_names
from bedplate.core.errors import SkinError, UsageError
from bedplate.core.files import check_writable
from bedplate.core.suggestions import path_hint


def existing(path: Path | None) -> Path | None:
    """A file that is read."""
    if path is not None and str(path) != "-" and not path.is_file():
        raise UsageError(f"{path} {'is a directory, not a file' if path.is_dir() else _missing(path)}")
    return path


def _missing(path: Path, remark: str = "") -> str:
    return "; ".join(filter(None, ("does not exist", path_hint(path, remark))))


def new_file(path: Path | None) -> Path | None:
    """A file that is written."""
    if path is not None and str(path) != "-":
        if path.is_dir():
            raise UsageError(f"cannot write {path}: it is a directory; name a file")
        check_writable(path)
    return path


def directory(path: Path | None) -> Path | None:
    """A directory that is written, or written on in."""
    if path is not None:
        if path.is_file():
            raise UsageError(f"cannot write {path}: it is a file; name a directory")
        check_writable(path)
    return path


def new(path: Path | None) -> Path | None:
    """A file or a directory that is written; `free` says whether it may be, once --overwrite is known."""
    if path is not None:
        check_writable(path)
    return path


def free(path: Path | None, overwrite: bool, holding: str | None = None) -> None:
    """UsageError for an output that is there already, unless --overwrite replaces it. holding: the file in it by which
    a directory is known to be an earlier output of the same command; any other directory is never replaced."""
    if path is None or str(path) == "-" or not path.exists():
        return
    if not overwrite:
        raise UsageError(f"{path} exists already; choose another name, or replace it with --overwrite")
    if path.is_dir() and (holding is None or not (path / holding).is_file()):
        description = "a directory" if holding is None else f"a directory without {holding}"
        raise UsageError(f"{path} is {description}, and --overwrite does not replace that; choose another name")


def base(source: str | None) -> str | None:
    """A base: a catalogue name, hf:owner/name, a directory or a .gguf file."""
    if source is not None:
        from bedplate.hub.pull import check_source

        check_source(source)
    return source


def skin_or_base(source: str | None) -> str | None:
    return source if source is not None and Path(source).is_dir() else base(source)


def skin_directory(path: Path | str) -> Path | str:
    if not (Path(path) / "skin.json").is_file():
        remark = "`bedplate adapt` makes skins"
        skins = sorted(str(file.parent) for at in ("*", "skins/*") for file in Path(path).glob(f"{at}/skin.json"))
        below = f"the skins in it are {join_names(skins)}" if skins else remark
        problem = f"has no skin.json; {below}" if Path(path).is_dir() else _missing(Path(path), remark)
        raise SkinError(f"{path} is not a skin: it {problem}")
    return path


def skin_directories(paths: Sequence[str] | None) -> Sequence[str] | None:
    for path in paths or ():
        skin_directory(path)
    return paths


def directories(places: Sequence[Path] | None) -> Sequence[Path] | None:
    """Directories that are read."""
    for place in places or ():
        existing_directory(place)
    return places


def existing_directory(path: Path | None) -> Path | None:
    """A directory that is read."""
    if path is not None and not path.is_dir():
        raise UsageError(f"{path} {'is a file, not a directory' if path.exists() else _missing(path)}")
    return path


def catalog_target(target: str | None) -> str | None:
    """A directory, or a name or id of the catalogue: of what is written as a path, that it is there."""
    if target is not None and ("/" in target or target.startswith(".")) and not Path(target).exists():
        remark = "give a directory, or a name or id of `bedplate skins list`"
        raise UsageError(f"{target} {_missing(Path(target), remark)}")
    return target


def base_or_value(source: str | None) -> str | None:
    """A base, or key=value over a file's."""
    return source if source is not None and "=" in source else base(source)
