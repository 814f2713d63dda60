"""Pulls a base, an encoder or data by catalogue name or from the Hugging Face Hub, or takes it from a path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bedplate.core.arguments import checked
from bedplate.core.errors import UnknownItemError
from bedplate.core.suggestions import did_you_mean, nearest, path_hint
from bedplate.hub import cache
from bedplate.hub.catalog import CATALOG


@dataclass(frozen=True)
class Pulled:
    """An item on this machine. `sha256` is the pinned hash of the download for catalogue items, else the content's: a
    file's own, or a directory's hash over its sorted {path: sha256}. `size_bytes` is what lies on disk."""

    name: str
    path: Path
    licence: str
    sha256: str
    source: str
    size_bytes: int


@checked
def pull(source: str | Path, *, quiet: bool = False, accept_licence: bool = False) -> Pulled:
    """Pulls `source` (catalogue name | "hf:owner/name[@revision]" | path), checks it, and describes it. A damaged
    cached item is pulled again.

    accept_licence: you have read and accept the licence that the item requires; remembered. Raises UnknownItemError,
    LicenceError, UnreachableError, HashMismatchError or HubError.
    """
    name = str(source)
    if isinstance(source, str) and name in CATALOG:
        artifact = CATALOG[name]
        if accept_licence:
            cache.accept(artifact)
        path = cache.ensure(artifact, quiet=quiet, check_hashes=True)
        return Pulled(name, path, artifact.licence, artifact.sha256, artifact.source, _size(path))
    from bedplate.hub import huggingface

    path = resolve(source, quiet=quiet)
    licence = huggingface.licence(path if path.is_dir() else path.parent)
    origin = name if name.startswith("hf:") else f"file:{path}"
    return Pulled(name, path, licence, huggingface.content_sha256(path), origin, _size(path))


def resolve(source: str | Path, *, quiet: bool = False) -> Path:
    """The path of `source` on disk, pulled first if it is a catalogue name or `hf:` source that is not cached. A
    catalogue name wins over a file of that name here; write ./name for the file. Cached items are checked by size."""
    name = str(source)
    if isinstance(source, str):
        if name in CATALOG:
            return cache.ensure(CATALOG[name], quiet=quiet)
        if name.startswith("hf:"):
            from bedplate.hub import huggingface

            return huggingface.snapshot(name, quiet=quiet)
    return _local(source)


def check_source(source: str | Path) -> None:
    """UnknownItemError for what `resolve` cannot have, as far as this can be said without asking anybody."""
    if not (isinstance(source, str) and (source in CATALOG or source.startswith("hf:"))):
        _local(source)


def _local(source: str | Path) -> Path:
    """A model directory or .gguf file on this machine. UnknownItemError, with what may have been meant."""
    name = str(source)
    path = Path(name).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        raise UnknownItemError(f"{name}: is neither a model directory nor a .gguf file")
    if isinstance(source, Path) or "/" in name or path.suffix == ".gguf":
        raise UnknownItemError("; ".join(filter(None, (f"{name}: no such file or directory", path_hint(path)))))
    hint = did_you_mean(nearest(name.lower(), CATALOG, 3), show=str)
    hint = hint or f"the catalogue has {', '.join(sorted(CATALOG))}."
    raise UnknownItemError(
        f"{name!r} is in no catalogue, and no file or directory; {hint} "
        "Also possible: hf:owner/name, or the path of a model directory or .gguf file"
    )


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)
