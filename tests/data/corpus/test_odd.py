"""Corpora of what is odd: each document has a fate, and what cannot be is refused with what to do."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from bedplate.core.config import parse_config
from bedplate.core.errors import BedplateError, ConfigError, DataError
from bedplate.core.files import sha256_file
from bedplate.data.corpus.build import BuiltCorpus, build
from bedplate.data.corpus.fates import fates_of, read_funnel
from bedplate.data.corpus.recipe import CorpusRecipe
from bedplate.data.corpus.shards import Corpus
from bedplate.report.formatting import cell

NOTES = "corpus: c\npreset: none\nsources: [{name: a, kind: files, path: t}]\ntokenizer: {train: {vocab_size: 300}}\n"


def build_corpus(place: Path, text: str = NOTES, out: str = "out") -> BuiltCorpus:
    return build(parse_config(text, CorpusRecipe, "recipe.yaml"), place, place / out, quiet=True)


def write(place: Path, count: int = 6) -> Path:
    (place / "t").mkdir(parents=True)
    for number in range(count):
        (place / f"t/{number}.txt").write_text(
            f"the note of number {'abcdefgh'[number] * 9} says that it is well\n" * 3
        )
    return place


def test_names_and_keys_that_are_no_unicode(tmp_path: Path) -> None:
    good = [json.dumps({"text": f"row {n} says {'xyz'[n] * 20}", "id": n}) for n in range(3)]
    odd = [r'{"text": "of an odd name", "id": "\ud800"}', r'{"\udfff": 1}', r'{"a\ud800": 1, "a\ud800": 2}']
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(good + odd).encode() + b"\n")
    text = NOTES.replace("kind: files, path: t", "kind: jsonl, path: a.jsonl, id: id")
    build_corpus(tmp_path, text + "rules: {length: {min_characters: 1}}\n")
    funnel = read_funnel(tmp_path / "out")
    assert funnel["documents"] == 6
    assert funnel["steps"][0]["reasons"] == {"not_json": 1, "no_text": 1}
    [fate] = fates_of(tmp_path / "out", r"a.jsonl#\ud800")
    assert fate.rule is None
    [first] = fates_of(tmp_path / "out", "a.jsonl#0")
    assert first.rule is None, "the mark at the beginning is no part of the first row"


def test_a_file_name_of_two_lines_is_said_in_one(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "t/two\nlines\x1b[31m.txt").write_text("a note of an odd name that says something of its own\n")
    build_corpus(tmp_path)
    [fate] = fates_of(tmp_path / "out", "two\nlines\x1b[31m.txt")
    assert fate.line.startswith(r"a: two\nlines\x1b[31m.txt (")


def test_a_corpus_is_not_made_of_itself(tmp_path: Path) -> None:
    write(tmp_path)
    text = NOTES.replace("kind: files, path: t", "kind: code, path: ., languages: [Markdown, YAML]")
    (tmp_path / "a.md").write_text("the text of this page is long enough to be kept by every rule there is\n" * 3)
    (tmp_path / "b.md").write_text("and another one of which no line is as in the first of the two pages\n" * 3)
    assert build_corpus(tmp_path, text, "corpora/c").new
    before = sha256_file(tmp_path / "corpora/c/corpus.json")
    assert not build_corpus(tmp_path, text, "corpora/c").new
    assert sha256_file(tmp_path / "corpora/c/corpus.json") == before
    assert read_funnel(tmp_path / "corpora/c")["documents"] == 2
    with pytest.raises(DataError, match=r"source 'a': all that it has lies in .*corpora/c, the corpus's own"):
        build_corpus(tmp_path, text.replace("path: .,", "path: corpora,"), "corpora/c")


def test_a_tokenizer_is_named_from_where_the_recipe_lies(tmp_path: Path) -> None:
    write(tmp_path)
    build_corpus(tmp_path, out="first")
    text = NOTES.replace("train: {vocab_size: 300}", "use: first")
    assert build_corpus(tmp_path, text).corpus.manifest.tokenizer == Corpus.open(tmp_path / "first").manifest.tokenizer
    build_corpus(tmp_path, NOTES.replace("300", "290"), "second")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "first" / name).write_bytes((tmp_path / "second" / name).read_bytes())
    with pytest.raises(BedplateError, match="of other files"):  # another tokenizer of the same name
        build_corpus(tmp_path, text)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "links").mkdir()
    (tmp_path / "links/a.txt").symlink_to(tmp_path / "t/0.txt")
    (tmp_path / "links/loop").symlink_to(tmp_path / "links")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "held.jsonl.gz").write_bytes(gzip.compress(b'{"a": "b"}\n' * 99)[:-20])
    two = NOTES.replace("path: t}", "path: t}, {name: b, kind: jsonl, path: empty.jsonl}")
    three = two.replace("}]", "}, {name: c, kind: jsonl, path: empty.jsonl}]")
    for text, message in (
        (NOTES.replace("path: t}", "path: links}"), "but 1 symbolic links, which are not followed"),
        (NOTES.replace("path: t}", "path: t, pattern: ../*}"), r"pattern '../\*' must fit files below"),
        (NOTES.replace("path: t}", "path: t, pattern: /a}"), "pattern '/a'.*write it as"),
        (NOTES.replace("path: t}", "path: t, pattern: a**b}"), r"pattern 'a\*\*b'.*write it as"),
        (NOTES.replace("path: t}", "path: t, pattern: ''}"), "pattern '' must"),
        (two, "source 'b' holds no document; give another path"),
        (three, "'b' holds no.*; also, source 'c' holds no"),
        (NOTES.replace("path: t}", "path: t, weight: 0}"), "no source has a weight above 0"),
        (NOTES + "split: {valid: 1}\n", "less than 1"),
        (NOTES + "seed: 3\n", "unknown key 'seed'"),
        (NOTES + "decontaminate: {against: [held.jsonl.gz]}\n", "held.jsonl.gz is damaged"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            build_corpus(tmp_path, text)


def test_parts_of_no_byte_are_parts_of_one(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"{c * 40} and more of it"}) + "\n" for c in "abc"))
    text = NOTES.replace("kind: files, path: t", "kind: jsonl, path: a.jsonl") + "part_mb: 1.0e-6\n"
    build_corpus(tmp_path, text.replace("1.0e-6", "1.0e-5"))
    assert read_funnel(tmp_path / "out")["documents"] == 3


def test_a_folder_that_may_not_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    (tmp_path / "t/closed").mkdir()
    scan = os.scandir

    def closed(path: os.PathLike[str] | str = ".") -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    for source_type in ("files", "code"):
        with pytest.raises(DataError, match=r"source 'a': .*closed cannot be read: Permission denied"):
            build_corpus(tmp_path, NOTES.replace("kind: files", f"kind: {source_type}"))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    shut = tmp_path / "t" / "shut.txt"
    shut.write_text("what nobody may read")
    opening = Path.open

    def opened(self: Path, *arguments: Any, **kwargs: Any) -> Any:
        if self.name == shut.name:
            raise PermissionError(13, "Permission denied", str(self))
        return opening(self, *arguments, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(DataError, match=r"shut\.txt cannot be read: Permission denied; make it readable"):
        build_corpus(tmp_path, NOTES)


def test_fates_and_lines_that_are_damaged_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    build_corpus(tmp_path)
    [path] = (tmp_path / "out/fates").iterdir()
    data = bytearray(path.read_bytes())
    data[12:40] = b"\xff" * 28  # within the compressed stream
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"fates/a-00000.jsonl.gz is damaged"):
        fates_of(tmp_path / "out", "0.txt")
    (tmp_path / "a.jsonl.gz").write_bytes(bytes(data))
    text = NOTES.replace("kind: files, path: t", "kind: jsonl, path: a.jsonl.gz")
    with pytest.raises(DataError, match=r"a.jsonl.gz: damaged after byte 0"):
        build_corpus(tmp_path, text, "other")


def test_a_licence_is_text_in_a_card(tmp_path: Path) -> None:
    write(tmp_path)
    build_corpus(tmp_path, NOTES.replace("path: t}", 'path: t, licence: "a|b\\n<script>x</script>"}'))
    card = (tmp_path / "out/card.md").read_text()
    assert r"| a | files | a\|b &lt;script&gt;x&lt;/script&gt; | 6 | 6 |" in card
    assert cell(3) == "3"
