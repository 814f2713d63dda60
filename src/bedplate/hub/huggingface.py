"""The Hugging Face Hub through huggingface_hub: models (`hf:` sources, never pickles), and data sets as streams."""

from __future__ import annotations

import contextlib
import fnmatch
import io
import re
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.repocard import metadata_load

from bedplate.core.errors import HubError, UnknownItemError, UnreachableError, UsageError
from bedplate.core.files import sha256_file, sha256_json
from bedplate.core.progress import console
from bedplate.hub.cache import cache_directory

# the HTTP client's own base error: which client that is has changed between versions of huggingface_hub
_TRANSPORT_ERROR: type[Exception] = next(c for c in errors.HfHubHTTPError.__mro__ if c.__name__ == "HTTPError")
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_SOURCE = re.compile(rf"hf:(?P<repo>{_NAME}/{_NAME})(?:/(?P<file>[A-Za-z0-9._/-]+\.gguf))?(?:@(?P<revision>[^@\s]+))?")
_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "LICENSE*", "LICENCE*", "NOTICE*", "README.md"]


@dataclass(frozen=True)
class Reference:
    """`hf:owner/name[/file.gguf][@revision]` in parts."""

    repo: str
    revision: str | None
    file: str | None


def parse(source: str) -> Reference:
    """Read an `hf:` source. Raises UsageError when it is not of that form."""
    match = _SOURCE.fullmatch(source)
    if match is None or ".." in source:
        raise UsageError(f"{source!r}: write hf:owner/name, hf:owner/name@revision or hf:owner/name/file.gguf")
    return Reference(match["repo"], match["revision"], match["file"])


def snapshot(source: str, *, quiet: bool = False) -> Path:
    """Download the snapshot (or find it in the cache, which is all that happens under HF_HUB_OFFLINE). Returns the
    snapshot's directory, or the file where the repository is a GGUF one. Raises UnknownItemError (no such repository or
    revision), UnreachableError (no network; offline and not cached), HubError (gated; nothing to load)."""
    reference = parse(source)
    with answering(source, "repository", reference.revision):
        patterns = _PATTERNS if reference.file is None else [reference.file, "LICENSE*", "README.md"]
        if not constants.HF_HUB_OFFLINE:
            patterns = [*patterns, *_gguf_files(reference)]
        bar = _quiet_bar() if quiet or not console(stderr=True).is_terminal else None
        cache, revision = cache_directory() / "huggingface", reference.revision
        directory = huggingface_hub.snapshot_download(
            reference.repo, revision=revision, cache_dir=cache, allow_patterns=patterns, tqdm_class=bar
        )
    return _content(source, Path(directory), reference)


@contextlib.contextmanager
def answering(source: str, repo_type: str, revision: str | None) -> Generator[None]:
    """What the Hub or the way to it raises, as errors of ours: UnknownItemError, UnreachableError, HubError. repo_type:
    what the source is of, for messages."""
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(f"{source}: the {repo_type} is gated; accept its terms on its page and log in") from error
    except errors.RevisionNotFoundError as error:
        raise UnknownItemError(f"{source}: the {repo_type} has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise UnknownItemError(f"{source}: no such {repo_type} (or it is private and no token is set)") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        why = f"{'HF_HUB_OFFLINE is set and ' if constants.HF_HUB_OFFLINE else ''}it is not in the cache"
        raise UnreachableError(f"{source}: the Hub cannot be reached, and {why}; check the network") from error
    except (_TRANSPORT_ERROR, OSError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if isinstance(error, errors.HfHubHTTPError) and status in {401, 403}:
            problem = f"{source}: the Hub refuses access ({status}): {why}; check the token (HF_TOKEN)"
            raise HubError(problem) from error
        raise UnreachableError(f"{source}: the download failed: {why}; run it again") from error


def licence(directory: Path) -> str:
    """The licence that the repository's README.md states in its metadata."""
    readme = directory / "README.md"
    try:
        stated = (metadata_load(readme) or {}).get("license") if readme.is_file() else None
    except ValueError:
        stated = None
    return str(stated or "not stated")


def content_sha256(path: Path) -> str:
    """A file's sha256, or for a directory that of its sorted {relative path: sha256}."""
    if path.is_file():
        return sha256_file(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return sha256_json({p.relative_to(path).as_posix(): _file_sha256(p) for p in files})


def _file_sha256(path: Path) -> str:
    # the hub's cache links large files to blobs that it has checked and named by their sha256
    blob = path.resolve().name if path.is_symlink() else ""
    return blob if re.fullmatch(r"[0-9a-f]{64}", blob) else sha256_file(path)


def _gguf_files(reference: Reference) -> list[str]:
    """The GGUF files worth fetching: the named or only one; several are an error."""
    try:
        model = huggingface_hub.HfApi().model_info(reference.repo, revision=reference.revision)
    except errors.HfHubHTTPError:
        raise
    except _TRANSPORT_ERROR:
        return []  # no network: the snapshot is looked for in the cache
    names = [s.rfilename for s in model.siblings or []]
    files = [n for n in names if n.endswith(".gguf")]
    if reference.file is not None:
        if reference.file not in files:
            has = ", ".join(files) or "no GGUF file"
            raise UnknownItemError(f"hf:{reference.repo}/{reference.file}: the repository has {has}")
        return [reference.file]
    if any(n.endswith(".safetensors") for n in names):
        return []
    if len(files) > 1:
        raise HubError(
            f"hf:{reference.repo} holds {len(files)} GGUF files; name one: "
            + ", ".join(f"hf:{reference.repo}/{n}" for n in sorted(files))
        )
    return files


def _content(source: str, directory: Path, reference: Reference) -> Path:
    if reference.file is not None:
        if not (directory / reference.file).is_file():
            raise UnknownItemError(f"{source}: the repository has no file {reference.file}")
        return directory / reference.file
    if (directory / "config.json").is_file() and any(directory.rglob("*.safetensors")):
        return directory
    files = sorted(directory.rglob("*.gguf"))
    if len(files) == 1:
        return files[0]
    raise HubError(
        f"{source}: holds neither config.json with safetensors nor one GGUF file; other formats are not loaded "
        "(pickled weights can run code)"
    )


def _quiet_bar() -> type:
    from huggingface_hub.utils import tqdm

    class Quiet(tqdm):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return Quiet


@dataclass(frozen=True)
class RemoteFile:
    """path: in the repository; stamp: its blob's name there."""

    path: str
    size: int
    stamp: str


def files(source: str, pattern: str = "**") -> tuple[str, str, list[RemoteFile]]:
    """Repository, commit and, sorted, the files of `hf:owner/name[@revision]` that fit the pattern. Raises
    UnknownItemError, HubError (gated, or access refused) or UnreachableError."""
    repository, _, revision = source.removeprefix("hf:").partition("@")
    with answering(source, "data set", revision or None):
        dataset = huggingface_hub.HfApi().dataset_info(repository, revision=revision or None, files_metadata=True)
    remote_files = [
        RemoteFile(sibling.rfilename, sibling.size or 0, str(sibling.blob_id))
        for sibling in dataset.siblings or ()
        if pattern == "**" or fnmatch.fnmatch(sibling.rfilename, pattern)
    ]
    return repository, str(dataset.sha), sorted(remote_files, key=lambda file: file.path)


@contextlib.contextmanager
def stream(repository: str, path: str) -> Generator[IO[bytes]]:
    """A file of `owner/name@commit`, read by ranges as it is asked for. UnreachableError where that breaks off."""
    name, _, commit = repository.partition("@")
    source = f"hf:{name}: {path}"
    with answering(source, "data set", commit):
        remote: Any = huggingface_hub.HfFileSystem().open(f"datasets/{name}@{commit}/{path}", "rb")
    with remote, io.BufferedReader(_Remote(remote, source, commit), 1 << 16) as read:
        yield read


class _Remote(io.RawIOBase):
    """A file of the Hub whose errors are ours: what fails on the way to it is no damage of the file."""

    def __init__(self, file: Any, source: str, commit: str) -> None:
        self._file, self._source, self._commit = file, source, commit

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        with answering(self._source, "data set", self._commit):
            chunk = self._file.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)
