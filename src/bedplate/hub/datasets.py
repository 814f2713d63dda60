"""Data sets of the Hugging Face Hub: which files there are, and each as a stream."""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import Generator
from dataclasses import dataclass
from typing import IO, Any

import huggingface_hub
from huggingface_hub import errors

from bedplate.core.errors import HubError, UnknownItemError, UnreachableError


@dataclass(frozen=True)
class RemoteFile:
    """path: in the repository; stamp: its blob's name there."""

    path: str
    size: int
    stamp: str


def files(source: str, pattern: str = "**") -> tuple[str, str, list[RemoteFile]]:
    """Repository, commit and, sorted, the files of `hf:owner/name[@revision]` that fit the pattern. Raises
    UnknownItemError, HubError (gated) or UnreachableError."""
    repository, _, revision = source.removeprefix("hf:").partition("@")
    try:
        info = huggingface_hub.HfApi().dataset_info(repository, revision=revision or None, files_metadata=True)
    except errors.GatedRepoError as error:
        raise HubError(f"{source}: the data set is gated; accept its terms on its page and log in") from error
    except errors.RevisionNotFoundError as error:
        raise UnknownItemError(f"{source}: the data set has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise UnknownItemError(f"{source}: no such data set (or it is private and no token is set)") from error
    except Exception as error:  # the transport's errors: which client that is has changed between versions
        raise UnreachableError(f"{source}: the Hub cannot be reached: {_first(error)}; check the network") from error
    found = [
        RemoteFile(one.rfilename, one.size or 0, str(one.blob_id))
        for one in info.siblings or ()
        if pattern == "**" or fnmatch.fnmatch(one.rfilename, pattern)
    ]
    return repository, str(info.sha), sorted(found, key=lambda one: one.path)


@contextlib.contextmanager
def stream(repository: str, path: str) -> Generator[IO[bytes]]:
    """A file of `owner/name@commit`, read by ranges as it is asked for. UnreachableError where that breaks off."""
    name, _, commit = repository.partition("@")
    try:
        remote: Any = huggingface_hub.HfFileSystem().open(f"datasets/{name}@{commit}/{path}", "rb")
    except Exception as error:
        raise UnreachableError(f"hf:{name}: {path} cannot be read: {_first(error)}; run the command again") from error
    with remote:
        yield remote


def _first(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
