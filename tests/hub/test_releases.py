"""Releases as archives: checked before use, fetched once, their members read and nothing of them run."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bedplate.core.errors import BedplateError, HashMismatchError, HubError, UnreachableError, UsageError
from bedplate.core.files import bedplate_home
from bedplate.hub import index as indexes
from bedplate.hub.index import members, release

FILES = {"toy-1.0/toy.py": b"x = 1\n", "toy-1.0/setup.py": b"1 / 0\n"}


@pytest.fixture
def toy(index: Any, archives: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An index that asks for a password, with one release."""
    index.hashed = True
    index.files = {
        "toy-1.0.tar.gz": archives.tar(FILES),
        "toy-1.0-py3-none-any.whl": archives.wheel({"toy.py": b"x = 1\n"}),
    }
    monkeypatch.setattr(indexes, "_pip_files", dict)  # asking pip, each time, takes most of the test's time
    monkeypatch.setenv("PIP_INDEX_URL", index.simple.replace("://", "://user:secret@"))
    return index


def test_the_source_is_fetched_once_and_read(toy: Any) -> None:
    archive = release("toy==1.0", quiet=True)
    assert archive.name == "toy-1.0.tar.gz"
    assert dict(members(archive)) == FILES
    assert release("Toy==1.0", quiet=True) == archive
    assert toy.downloads() == 1


def test_what_fails_leaves_nothing_and_tells_no_password(toy: Any) -> None:
    def failed(error_class: type[BedplateError]) -> str:
        with pytest.raises(error_class) as caught:
            release("toy==1.0", quiet=True)
        assert "secret" not in str(caught.value)
        return str(caught.value)

    toy.closed = True
    assert "toy-1.0.tar.gz: the download from http://127.0.0.1" in failed(UnreachableError)
    assert "403 Client Error" in failed(UnreachableError)
    toy.closed, toy.cut = False, True
    toy.files["toy-1.0.tar.gz"] += b"0" * 200_000
    assert "broke off" in failed(UnreachableError)
    toy.cut, toy.hashed = False, False
    assert "gives no sha256" in failed(HubError)
    toy.hashed = True
    whole = dict(toy.files)
    answer = toy.answer

    def swapped_answer(request: Any, path: str) -> None:
        toy.files = whole if path.startswith("/simple") else dict.fromkeys(whole, b"other")
        answer(request, path)

    toy.answer = swapped_answer
    assert "its sha256 is" in failed(HashMismatchError)
    toy.answer, toy.files = answer, whole
    [folder] = bedplate_home().rglob("toy-1.0")
    (folder / "toy-1.0.tar.gz.part").symlink_to("/dev/full")
    assert "No space left on device; make room there" in failed(UsageError)
    assert release("toy==1.0", quiet=True).is_file()


def test_archives_that_cannot_be_read_are_named(tmp_path: Path, archives: Any) -> None:
    tar = archives.tar(FILES)
    (tmp_path / "cut.tar.gz").write_bytes(tar[: len(tar) // 2])
    (tmp_path / "none.tar.gz").write_bytes(b"nothing")
    wheel = bytearray(archives.wheel({"a.py": b"x = 1\n"}))
    (tmp_path / "cut.whl").write_bytes(wheel[:30])
    for name, change in (("locked.whl", (6, 1)), ("unknown.whl", (8, 77))):
        at, value = change
        changed = bytearray(wheel)
        directory = changed.index(b"PK\x01\x02")
        struct.pack_into("<H", changed, at, value)  # flags, or the compression, here and in the directory
        struct.pack_into("<H", changed, directory + at + 2, value)
        (tmp_path / name).write_bytes(changed)
    for name in ("cut.tar.gz", "none.tar.gz", "cut.whl", "locked.whl", "unknown.whl"):
        with pytest.raises(HubError, match=rf"(?s){name}: cannot be unpacked: .*; remove it"):
            list(members(tmp_path / name))
    link = zipfile.ZipInfo("b.py")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.whl", "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("c.py", "y = 2\n")
    assert dict(members(tmp_path / "link.whl")) == {"c.py": b"y = 2\n"}
