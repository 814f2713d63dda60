"""Every kind of source, read from files as other programs write them; nothing lost between stretches."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import errors
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.core.config import parse_config
from bedplate.core.errors import ConfigError, DataError, HubError, UnknownItemError, UnreachableError
from bedplate.data.corpus.readers import READERS
from bedplate.data.corpus.readers.parts import RawDocument, Read, SourcePart, Unread
from bedplate.data.corpus.readers.tables import json_lines
from bedplate.data.corpus.readers.text import as_code
from bedplate.data.corpus.readers.web import decoded
from bedplate.data.corpus.recipe import CorpusRecipe
from bedplate.hub.huggingface import files as data_files

PAGE = """<html><head><title>A page</title><meta charset="utf-8"></head><body><nav><a href="/">Home</a></nav>
<article><h1>On rivers</h1><p>{}</p><p>{}</p></article><footer>Imprint and cookies</footer></body></html>"""
CLIENT: Any = importlib.import_module(
    next(cls for cls in errors.HfHubHTTPError.__mro__ if cls.__name__ == "HTTPError").__module__
)
"""What the Hub's client asks with, which has changed between versions."""
LONG = "The river begins in the hills, where the rain of the winter gathers in small streams, and it ends in the sea. "


def read(place: Path, source: str, part_bytes: int = 1 << 30) -> tuple[list[Read], list[SourcePart]]:
    recipe = parse_config(f"corpus: x\nsources: [{{name: a, {source}}}]", CorpusRecipe, "r.yaml")
    source_spec = recipe.sources[0]
    parts = list(READERS[source_spec.kind].plan(source_spec, place, part_bytes))
    assert [SourcePart.from_json(json.loads(json.dumps(part.to_json()))) for part in parts] == parts
    return [document for part in parts for document in READERS[source_spec.kind].read(source_spec, part)], parts


def texts(documents: list[Read]) -> dict[str, str]:
    return {document.id: document.text for document in documents if isinstance(document, RawDocument)}


def refused(documents: list[Read]) -> dict[str, str]:
    return {document.id: document.why for document in documents if isinstance(document, Unread)}


def test_text_files(tmp_path: Path) -> None:
    (tmp_path / "t/inner").mkdir(parents=True)
    (tmp_path / "t/b.txt").write_bytes(b"\xef\xbb\xbfwith a mark\r\nand two lines")
    (tmp_path / "t/inner/a.md").write_text("inner")
    (tmp_path / "t/c.log").write_text("a log")
    (tmp_path / "t/d.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "t/link.txt").symlink_to(tmp_path / "t/b.txt")
    documents, parts = read(tmp_path, "kind: files, path: t", 10)
    assert texts(documents) == {"b.txt": "with a mark\nand two lines", "inner/a.md": "inner"}
    assert refused(documents) == {"d.txt": "not_utf8"}
    assert len(parts) == 2
    assert texts(read(tmp_path, "kind: files, path: t, pattern: '*.log'")[0]) == {"c.log": "a log"}
    assert texts(read(tmp_path, "kind: files, path: t/c.log")[0]) == {"c.log": "a log"}
    with pytest.raises(DataError, match=r"no file below .* fits"):
        read(tmp_path, "kind: files, path: t, pattern: '*.tex'")


def test_trees_of_code(tmp_path: Path) -> None:
    for name, content in {
        "src/a.py": b"# -*- coding: latin-1 -*-\nx = '\xe9'\n", "src/b.rs": b"fn main() {}", "Makefile": b"all:\n",
        "vendor/c.py": b"y = 2\n", "notes.bin": b"\0", "src/d.c": b"\0\1",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    documents, _ = read(tmp_path, "kind: code, path: .")
    assert texts(documents).keys() == {"src/a.py", "src/b.rs", "Makefile"}
    assert "é" in texts(documents)["src/a.py"]
    assert refused(documents) == {"src/d.c": "binary", "vendor/c.py": "vendor"}
    assert {document.id: document.about for document in documents if isinstance(document, RawDocument)}["src/b.rs"] == {
        "language": "Rust"
    }
    assert list(texts(read(tmp_path, "kind: code, path: ., languages: [Rust]")[0])) == ["src/b.rs"]
    with pytest.raises(ConfigError, match="no language 'Pyton' is known; did you mean 'Python'"):
        read(tmp_path, "kind: code, path: ., languages: [Pyton]")


def test_the_standard_library(tmp_path: Path) -> None:
    recipe = parse_config("corpus: x\nsources: [{name: a, kind: stdlib}]", CorpusRecipe, "r.yaml")
    parts = list(READERS["stdlib"].plan(recipe.sources[0], tmp_path, 1_000_000))
    names = {piece.path for part in parts for piece in part.pieces}
    root = Path(sysconfig.get_paths()["stdlib"])
    assert {str(root / "ast.py"), str(root / "json/decoder.py")} <= names
    assert not any("site-packages" in name or "/test/" in name for name in names)
    first = list(READERS["stdlib"].read(recipe.sources[0], parts[0]))
    assert len([read for read in first if isinstance(read, RawDocument)]) == len(parts[0].pieces)
    skipped = [read for read in first if isinstance(read, Unread)]
    assert {read.rule for read in skipped} == {"skipped"}
    if (root / "idlelib").is_dir():  # some systems have it in a package of its own
        assert {read.id for read in skipped if read.why == "idlelib"} >= {"idlelib/editor.py"}


@pytest.mark.slow
def test_the_whole_tree_of_the_standard_library(tmp_path: Path) -> None:
    recipe = parse_config("corpus: x\nsources: [{name: a, kind: stdlib, everything: true}]", CorpusRecipe, "r.yaml")
    parts = READERS["stdlib"].plan(recipe.sources[0], tmp_path, 1 << 40)
    root = Path(sysconfig.get_paths()["stdlib"])
    names = {Path(piece.path).relative_to(root).as_posix() for part in parts for piece in part.pieces}
    library_files = {path.relative_to(root).as_posix() for path in root.rglob("*.py")}
    assert names == {name for name in library_files if not {"site-packages", "dist-packages"} & set(Path(name).parts)}
    assert {"ast.py", "encodings/cp1252.py"} <= names


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=8), max_size=12), st.integers(1, 40), st.booleans())
def test_every_line_is_in_one_stretch(rows: list[str], size: int, ended: bool) -> None:
    content = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in rows) + ("\n" if ended else "")
    data = content.encode("utf-8", "surrogatepass")
    stretches = [
        list(json_lines(io.BytesIO(data), "f", "text", None, start, min(len(data), start + size)))
        for start in range(0, len(data), size)
    ]
    documents = [document for stretch in stretches for document in stretch]
    assert documents == list(json_lines(io.BytesIO(data), "f", "text", None))
    assert len({document.id for document in documents}) == len(documents) == len(rows)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": f"row {n}", "key": f"k{n}", "url": "http://x"} for n in range(50)]
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows) + b'[1]\n{"text": 3}\n\n'
    if suffix == ".gz":
        data = gzip.compress(data)
    elif suffix == ".zst":
        library = pytest.importorskip("zstandard")
        data = library.compress(data[:700]) + library.compress(data[700:])  # as tools write that append
    (tmp_path / f"a.jsonl{suffix}").write_bytes(data)
    documents, parts = read(tmp_path, f"kind: jsonl, path: a.jsonl{suffix}, id: key", 500)
    assert texts(documents) == {f"a.jsonl{suffix}#k{n}": f"row {n}" for n in range(50)}
    assert sorted(refused(documents).values()) == ["no_text", "not_json"]
    assert (len(parts) > 3) == (not suffix)
    if suffix:
        (tmp_path / f"a.jsonl{suffix}").write_bytes(data[: len(data) // 2])
        with pytest.raises(DataError, match="damaged after byte"):
            read(tmp_path, f"kind: jsonl, path: a.jsonl{suffix}")


def test_parquet(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"content": [f"row {n}" for n in range(25)] + [None], "n": list(range(26))})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    documents, parts = read(tmp_path, "kind: parquet, path: a.parquet, text: content, id: n", 1)
    assert texts(documents) == {f"a.parquet#{n}": f"row {n}" for n in range(25)}
    assert refused(documents) == {"a.parquet#25": "no_text"}
    assert len(parts) == 3
    with pytest.raises(DataError, match="no column 'text'; the columns are content, n"):
        read(tmp_path, "kind: parquet, path: a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read(tmp_path, "kind: parquet, path: b.parquet")
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=10, write_page_checksum=True, compression="none")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole.replace(b"row 12", b"row 99", 1))  # a text still, and another one
    with pytest.raises(DataError, match=r"a\.parquet: its row group 1 is damaged"):
        read(tmp_path, "kind: parquet, path: a.parquet, text: content")


@pytest.mark.filterwarnings("ignore")
def test_pages_and_web_archives(tmp_path: Path) -> None:
    pytest.importorskip("trafilatura")
    warc: Any = pytest.importorskip("warcio.warcwriter")
    headers: Any = pytest.importorskip("warcio.statusandheaders").StatusAndHeaders
    page = PAGE.format(LONG * 4, "Der Fluß fließt. " + LONG * 3)
    (tmp_path / "p").mkdir()
    (tmp_path / "p/a.html").write_text(page)
    (tmp_path / "p/b.html").write_bytes(page.replace("utf-8", "latin-1").encode("latin-1"))
    (tmp_path / "p/c.html").write_text("<html><body></body></html>")
    documents, _ = read(tmp_path, "kind: html, path: p")
    assert refused(documents) == {"c.html": "no_article"}
    for text in texts(documents).values():
        assert "Fluß" in text
        assert "Home" not in text
        assert "Imprint" not in text
    with (tmp_path / "crawl.warc.gz").open("wb") as out:
        writer = warc.WARCWriter(out, gzip=True)
        for url, status, content_type, body in (
            ("http://a/", "200 OK", "text/html; charset=utf-8", page.encode()),
            ("http://b/", "404 Not Found", "text/html", page.encode()),
            ("http://c/", "200 OK", "image/png", b"\x89PNG"),
        ):
            answer = headers(status, [("Content-Type", content_type)], protocol="HTTP/1.1")
            writer.write_record(
                writer.create_warc_record(url, "response", payload=io.BytesIO(body), http_headers=answer)
            )
            writer.write_record(writer.create_warc_record(url, "metadata", payload=io.BytesIO(b"a: b")))
    documents, _ = read(tmp_path, "kind: warc, path: crawl.warc.gz")
    assert sorted(refused(documents).values()) == ["no_page", "no_page"]
    [article] = [document for document in documents if isinstance(document, RawDocument)]
    assert article.about == {"url": "http://a/"}
    assert "winter gathers" in article.text
    whole = (tmp_path / "crawl.warc.gz").read_bytes()
    (tmp_path / "plain.warc").write_bytes(gzip.decompress(whole))
    (tmp_path / "one.warc.gz").write_bytes(gzip.compress(gzip.decompress(whole)))  # not a member for each record
    for name in ("plain.warc", "one.warc.gz"):
        assert list(texts(read(tmp_path, f"kind: warc, path: {name}")[0]).values()) == [article.text]


def wet(count: int) -> bytes:
    """A web archive of texts, each record its own member, as Common Crawl has it."""
    archive = b""
    for number in range(count):
        text = f"text {number} " * (30 + 3 * number)
        head = f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Record-ID: <urn:{number}>\r\nContent-Length: {len(text)}"
        archive += gzip.compress(f"{head}\r\n\r\n{text}\r\n\r\n".encode(), mtime=0)
    return archive


@pytest.mark.parametrize("name", ["a.wet.gz", "a.wet"])
def test_a_web_archive_that_is_cut_off_is_no_shorter_archive(tmp_path: Path, name: str) -> None:
    pytest.importorskip("warcio")
    data, record = wet(6), wet(1)
    if name == "a.wet":
        data, record = gzip.decompress(data), gzip.decompress(record)
    (tmp_path / name).write_bytes(data)
    assert len(texts(read(tmp_path, f"kind: warc, path: {name}")[0])) == 6
    for end in (len(data) // 2, len(record) + 40, len(record) + 95, len(data) - len(record) // 2, len(data) - 20):
        (tmp_path / name).write_bytes(data[:end])
        with pytest.raises(DataError, match=rf"{name}: damaged web archive: .*; fetch the file again"):
            read(tmp_path, f"kind: warc, path: {name}")
    if name.endswith(".gz"):
        broken = bytearray(data)
        broken[len(data) // 2] ^= 0xFF
        (tmp_path / name).write_bytes(bytes(broken))
        with pytest.raises(DataError, match="damaged web archive"):
            read(tmp_path, f"kind: warc, path: {name}")


@pytest.mark.parametrize(
    "codec", ["idna", "punycode", "undefined", "hex", "utf-7", "no-such-codec", "raw_unicode_escape"]
)
def test_an_encoding_that_is_none_of_texts_ends_no_build(codec: str) -> None:
    odd = f"# coding: {codec}\n".encode() + b"x = '\\ud800 \xff." + b"a" * 80 + b".'\n"
    read = as_code("a.py", odd)
    assert isinstance(read, Unread)
    assert read.why == "not_utf8"
    assert decoded(b"caf\xe9 \x93." + b"a" * 80 + b"." * 9, f"text/html; charset={codec}") is not None


def test_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with tarfile.open(tmp_path / "some_thing-1.0.tar.gz", "w:gz") as archive:
        for name, content in {"some_thing-1.0/a.py": b"x = 1\n", "some_thing-1.0/setup.cfg": b"[a]"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("some_thing-1.0/link.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        odd = tarfile.TarInfo("some_thing-1.0/caf\udce9.py")
        archive.addfile(odd, io.BytesIO())
    with zipfile.ZipFile(tmp_path / "other-2.1-py3-none-any.whl", "w") as archive:
        archive.writestr("other/b.py", "y = 2\n")
        archive.writestr("other/node_modules/c.js", "var a;")
    documents, parts = read(tmp_path, "kind: pypi, packages: [Some.Thing==1.0, other==2.1]")
    assert texts(documents) == {
        "Some.Thing==1.0/some_thing-1.0/a.py": "x = 1\n",
        "Some.Thing==1.0/some_thing-1.0/caf\\udce9.py": "",
        "other==2.1/other/b.py": "y = 2\n",
    }
    assert len(parts) == 2
    with pytest.raises(HubError, match=r"no archive of other 3.0"):
        read(tmp_path, "kind: pypi, packages: [other==3.0]")


class _Breaks(io.BytesIO):
    """A file on the network, which is lost after the first bytes."""

    def __init__(self, error: Exception) -> None:
        super().__init__(gzip.compress(b'{"text": "three"}\n')[:15])
        self._error = error

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        if not chunk:
            raise self._error
        return chunk


def answer(status: int, **headers: str) -> Any:
    return CLIENT.Response(status, headers=headers, request=CLIENT.Request("GET", "https://hub.example/api"))


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        (errors.GatedRepoError("x", response=answer(403)), HubError, "the data set is gated"),
        (errors.RevisionNotFoundError("x", response=answer(404)), UnknownItemError, "has no revision 'v1'"),
        (errors.RepositoryNotFoundError("x", response=answer(401)), UnknownItemError, "no such data set"),
        (errors.HfHubHTTPError("Forbidden", response=answer(403)), HubError, r"refuses access \(403\): Forbidden"),
        (errors.HfHubHTTPError("Busy", response=answer(503)), UnreachableError, "the download failed: Busy"),
        (errors.OfflineModeIsEnabled("x"), UnreachableError, "HF_HUB_OFFLINE is set"),
        (CLIENT.ConnectError("refused"), UnreachableError, "the download failed: refused"),
        (ZeroDivisionError("ours"), ZeroDivisionError, "ours"),
    ],
)
def test_what_the_hub_answers_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, error: type[Exception], message: str
) -> None:
    import huggingface_hub

    def dataset_info(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    with pytest.raises(error, match=message):
        data_files("hf:owner/set@v1")


def test_a_data_set_of_the_hub_is_read_by_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the Hub's own client, answered by files on disk."""
    import huggingface_hub
    from huggingface_hub.hf_api import RepoSibling

    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"text": ["one", "two"]}), tmp_path / "b.parquet")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}\n'))
    (tmp_path / "README.md").write_text("# a card")
    files = [RepoSibling(rfilename=p.name, size=p.stat().st_size, blob_id=p.name) for p in tmp_path.iterdir()]

    class DatasetInfo:
        sha, siblings = "abc", files

    requests: list[Any] = []

    def dataset_info(self: Any, repository: str, **settings: Any) -> DatasetInfo:
        requests.append((repository, settings["revision"]))
        return DatasetInfo()

    def opened(self: Any, path: str, mode: str) -> Any:
        assert path.startswith("datasets/owner/set@abc/")
        return (tmp_path / path.rpartition("/")[2]).open(mode)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(huggingface_hub.HfFileSystem, "open", opened)
    documents, _ = read(tmp_path, "kind: hub, data: 'hf:owner/set@v1'")
    assert texts(documents) == {"a.jsonl.gz@0": "three", "b.parquet@0": "one", "b.parquet@1": "two"}
    assert requests == [("owner/set", "v1")]
    broken = CLIENT.ReadTimeout("no answer")
    monkeypatch.setattr(huggingface_hub.HfFileSystem, "open", lambda *_: _Breaks(broken))
    with pytest.raises(UnreachableError, match=r"hf:owner/set: a.jsonl.gz: the download failed: no answer"):
        read(tmp_path, "kind: hub, data: 'hf:owner/set@v1'")
    monkeypatch.setattr(huggingface_hub.HfFileSystem, "open", opened)
    with pytest.raises(DataError, match="has no Parquet or JSON-lines file that fits 'README"):
        read(tmp_path, "kind: hub, data: 'hf:owner/set', pattern: 'README*'")
