"""Unpacking takes the wanted plain files and nothing that leads out."""

from __future__ import annotations

import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bedplate.core.errors import HubError
from bedplate.hub.archive import extract


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def unpacked(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


MEMBERS = {"a/x.txt": b"1", "a/b/y.txt": b"2", "c/z.txt": b"3", "other.py": b"4"}


@pytest.mark.parametrize("archive_type", ["wheel", "tar"])
def test_files_and_folders(tmp_path: Path, archives: Any, archive_type: str) -> None:
    content = archives.wheel(MEMBERS) if archive_type == "wheel" else archives.tar(MEMBERS)
    archive = write(tmp_path / ("f.whl" if archive_type == "wheel" else "f.tar.gz"), content)
    extract(archive, ["a/b/y.txt"], tmp_path / "file")
    assert unpacked(tmp_path / "file") == {"y.txt": b"2"}
    extract(archive, ["a/"], tmp_path / "folder")
    assert unpacked(tmp_path / "folder") == {"x.txt": b"1", "b/y.txt": b"2"}
    extract(archive, ["a/", "c/"], tmp_path / "folders")
    assert unpacked(tmp_path / "folders") == {"a/x.txt": b"1", "a/b/y.txt": b"2", "c/z.txt": b"3"}
    with pytest.raises(HubError, match=r"has no d/, e\.txt"):
        extract(archive, ["a/", "d/", "e.txt"], tmp_path / "missing")


@pytest.mark.parametrize("name", ["a/../../out.txt", "a//etc/out.txt"])
def test_paths_that_lead_out(tmp_path: Path, archives: Any, name: str) -> None:
    archive = write(tmp_path / "f.tar.gz", archives.tar({name: b"x"}))
    with pytest.raises(HubError, match="cannot be unpacked"):
        extract(archive, ["a/"], tmp_path / "in" / "side")
    assert not (tmp_path / "out.txt").exists()


def test_links(tmp_path: Path, archives: Any) -> None:
    link = tarfile.TarInfo("a/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    archive = write(tmp_path / "f.tar.gz", archives.tar({"a/link": link}))
    with pytest.raises(HubError, match="not a plain file"):
        extract(archive, ["a/"], tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "f.whl", "w") as wheel:
        member = zipfile.ZipInfo("a/link")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        wheel.writestr(member, "/etc/passwd")
    with pytest.raises(HubError, match="symbolic link"):
        extract(tmp_path / "f.whl", ["a/"], tmp_path / "out")


@pytest.mark.parametrize("name", ["f.whl", "f.tar.gz"])
def test_damaged(tmp_path: Path, archives: Any, name: str) -> None:
    whole = archives.wheel(MEMBERS) if name == "f.whl" else archives.tar(MEMBERS)
    for content in (b"", b"nonsense", whole[: len(whole) // 2]):
        with pytest.raises(HubError, match=r"cannot be unpacked|has no"):
            extract(write(tmp_path / name, content), ["a/", "c/", "other.py"], tmp_path / str(len(content)))
