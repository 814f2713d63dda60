"""Data sets of the Hugging Face Hub: which files there are, and each as a stream."""

from __future__ import annotations

import contextlib
import fnmatch
import io
from collections.abc import Generator
from dataclasses import dataclass
from typing import IO, Any

import huggingface_hub

from bedplate.hub.huggingface import answering


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
