"""Files that are whole or absent: atomic writes and directories, locks, hashes, JSON lines, safe paths."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, cast

from bedplate.core.errors import DataError, UsageError
from bedplate.core.json import load_json

_TAIL = 4096
"""Bytes that are read at a time, from the end, to see how a file ends."""
_TICK_NS = 2 * 10**9
"""The coarsest clock of a file system (FAT's)."""
MODEL_JSON_BYTES = 16 << 20
"""The largest of a model's own JSON files, but for vocabularies and indexes of weights, has a megabyte or two. Python
needs some twenty times as much for what such a file holds."""
DISK_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
"""The operating system's numbers for no room left, on the disk or in a quota."""


def bedplate_home() -> Path:
    """Where pulled items and the catalogue live: $BEDPLATE_HOME, by default ~/.cache/bedplate. Not created here."""
    return Path(os.environ.get("BEDPLATE_HOME") or "~/.cache/bedplate").expanduser().absolute()


# --- hashes


def sha256_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path | str) -> str:
    """Hex sha256 of a file's content, read in chunks."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a JSON value in canonical form: sorted keys, no spaces, ASCII, no NaN (ValueError)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return sha256_bytes(text.encode("ascii"))


class FileState(NamedTuple):
    """What changes when a file does: two equal ones, once settled, are of one content. (Whoever sets the time of change
    back cannot set back the inode's.)"""

    path: str
    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @property
    def settled(self) -> bool:
        """Whether a later change must show: one that follows within a tick of the file system's clock need not."""
        return time.time_ns() - max(self.modified_ns, self.changed_ns) > _TICK_NS


def file_state(path: Path) -> FileState:
    """The state of a file as it is now. Raises OSError where there is none."""
    its = path.stat()
    return FileState(str(path.absolute()), its.st_dev, its.st_ino, its.st_size, its.st_mtime_ns, its.st_ctime_ns)


# --- writing


def atomic_write(path: Path | str, content: str | bytes, *, durable: bool = True) -> None:
    """Write a whole file, or leave the old one untouched, also across a crash. UsageError where one cannot write.

    Without `durable` the disk is not waited for, which takes tens of milliseconds: after a crash the new file may be
    empty. For what is found again where it is damaged.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = _temporary_path(path)
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync_directory(path.parent)


@contextlib.contextmanager
def atomic_directory(path: Path | str, replace: bool = False) -> Generator[Path]:
    """Yield an empty directory beside `path` that becomes `path` on success and vanishes on any failure.

    An existing non-empty `path` is refused (UsageError) unless `replace`; then it stays whole until the exchange.
    What a killed process left behind is removed by the next call for the same path.
    """
    path = Path(path).absolute()
    if not replace and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"{path} already exists; give another output directory or remove it")
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file; a directory is to be written there: give another path")
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        temporary, lock = _make_locked(path)
    try:
        yield temporary
        with writable(path):
            if path.exists():
                _exchange(temporary, path)  # `temporary` now holds the old content
            else:
                temporary.rename(path)
            sync_directory(path.parent)
    except OSError as error:  # of whoever fills the directory
        if error.errno not in DISK_FULL:
            raise
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def file_lock(path: Path | str, *, wait: bool = True) -> Generator[None]:
    """Hold an exclusive lock on `path` (made if missing); waits for other holders, in this process or another, or
    raises UsageError where there is one and `wait` is false.

    The kernel drops the lock when its holder dies, so a killed process never blocks the next.
    """
    path = Path(path)
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            holder = path.read_text()  # of an older version it holds nothing
            by = f" (pid {holder})" if holder.isdecimal() else ""
            raise UsageError(f"{path.parent} is in use by another process{by}; wait until it has ended") from error
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        yield


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def writable(path: Path) -> Generator[None]:
    """Turn the operating system's refusal to write into a UsageError that names the path."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> UsageError:
    """The operating system's refusal to write there, as what is said of it."""
    advice = "make room there" if error.errno in DISK_FULL else "choose a place that can be written"
    return UsageError(f"cannot write {path}: {error.strerror or error}; {advice}")


def check_writable(path: Path | str) -> None:
    """UsageError where something to be written as `path` has no directory above it that can be written."""
    place = Path(path).absolute()
    parent = place.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise UsageError(f"cannot write {path}: {parent} is not a directory; choose a place that can be written")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {path}: {parent} does not allow it; choose a place that can be written")


def sync_directory(path: Path) -> None:
    """Makes names that were written in a directory safe on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems cannot; the rename itself has happened
        pass
    finally:
        os.close(descriptor)


def _make_locked(path: Path) -> tuple[Path, int]:
    """A new temporary directory and a locked descriptor of it; the lock tells others that its owner lives."""
    while True:
        temporary = _temporary_path(path)
        temporary.mkdir()
        descriptor = os.open(temporary, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if temporary.exists():  # a cleaner may have come between mkdir and flock
            return temporary, descriptor
        os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary directories of dead processes that were writing `path`."""
    for candidate in path.parent.iterdir():
        if not (candidate.name.startswith(f".{path.name}.") and candidate.name.endswith(".tmp") and candidate.is_dir()):
            continue
        try:
            descriptor = os.open(candidate, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(candidate, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def _exchange(a: Path, b: Path) -> None:
    """Swap two directories in one step where the kernel can (renameat2(2), RENAME_EXCHANGE), else in two."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        at_cwd, exchange = -100, 2
        if renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0:
            return
        code = ctypes.get_errno()
        if code not in {errno.EINVAL, errno.ENOSYS}:
            raise OSError(code, os.strerror(code), str(b))
    aside = _temporary_path(b)
    b.rename(aside)
    try:
        a.rename(b)
    except BaseException:
        aside.rename(b)
        raise
    aside.rename(a)


# --- reading


def read_text(path: Path | str, max_bytes: int | None = None) -> str:
    """A UTF-8 file's text. Raises DataError naming the byte offset where it is not UTF-8, or why it cannot be read; and
    for a file of more than `max_bytes` bytes, before it is read."""
    path = Path(path)
    try:
        if max_bytes is not None and (size := path.stat().st_size) > max_bytes:
            raise DataError(f"{path}: {size:,} bytes, where such a file has at most {max_bytes:,}; fetch it again")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 at byte {error.start} (0x{error.object[error.start]:02x}); save the file as UTF-8"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def on_closed(prefix: str = "") -> Callable[[OSError], None]:
    """For `os.walk`: a folder that may not be read is a DataError, which begins with `prefix`, and not passed over."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{prefix}{error.filename} cannot be read: {error.strerror}; make it readable") from error

    return refuse


def check_folders(root: Path, prefix: str = "") -> None:
    """DataError as `on_closed` for a folder below `root` that may not be read, which pathlib passes over."""
    for _ in os.walk(root, onerror=on_closed(prefix)):
        pass


def read_jsonl(path: Path | str, *, allow_torn_tail: bool = False) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; blank lines are skipped.

    Raises DataError naming the line for bad JSON, NaN, duplicate keys or a row that is not an object. With
    `allow_torn_tail` a last line that a killed writer left unfinished (no newline) is left out.
    """
    path = Path(path)
    text = _text_without_torn_character(path) if allow_torn_tail else read_text(path)
    lines = text.split("\n")  # not splitlines(): U+2028 may stand inside a JSON string
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = load_json(line)
        except ValueError as error:
            if allow_torn_tail and number == len(lines):
                break
            raise DataError(f"{path}, line {number}: not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: each line must be a JSON object, not {line.strip()[:40]!r}")
        rows.append(cast("dict[str, Any]", row))
    return rows


def _text_without_torn_character(path: Path) -> str:
    try:
        return read_text(path)
    except DataError as error:
        cause = error.__cause__
        if isinstance(cause, UnicodeDecodeError) and b"\n" not in cause.object[cause.start :]:
            return cause.object[: cause.start].decode("utf-8")
        raise


def append_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> list[int]:
    """Append rows to a JSON-lines file, forced to disk; a line that a killed writer left unfinished is cut off. Returns
    the byte at which each row begins."""
    path = Path(path)
    lines = [(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8") for row in rows]
    data = b"".join(lines)
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer, of which closing the file would write the rest after all.
        with path.open("a+b", buffering=0) as file:
            end = _whole_end(file)
            file.truncate(end)
            try:
                pending = memoryview(data)
                while pending:
                    pending = pending[file.write(pending) :]
                os.fsync(file.fileno())
            except OSError:  # all rows or none: whoever appends knows then what is kept
                with contextlib.suppress(OSError):
                    os.ftruncate(file.fileno(), end)
                raise
    return list(accumulate(map(len, lines), initial=end))[:-1]


def _whole_end(file: Any) -> int:
    """Length of the file without a torn last line; a whole last line that lacks its newline gets one."""
    size = end = file.seek(0, os.SEEK_END)
    tail = b""
    while end > 0 and b"\n" not in tail:
        start = max(0, end - _TAIL)
        file.seek(start)
        tail = file.read(end - start) + tail
        end = start
    last = tail.rpartition(b"\n")[2]
    if not last:
        return size
    try:
        json.loads(last)
    except ValueError:
        return size - len(last)
    file.seek(0, os.SEEK_END)
    file.write(b"\n")
    file.flush()
    return size + 1


def safe_join(root: Path | str, relative: str) -> Path:
    """`root / relative`, refusing (DataError) what would lead outside: absolute paths, `..`, NUL, symlinks out."""
    root = Path(root)
    parts = relative.replace("\\", "/").split("/")
    if not relative or "\0" in relative or relative.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        raise DataError(f"{relative!r}: a path inside {root} is wanted: relative, without `..`")
    joined = root.joinpath(*parts)
    if not joined.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{relative!r}: leads out of {root} through a symbolic link")
    return joined
