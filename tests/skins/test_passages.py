"""Passages of documents in a skin: as directories, in prompts, and what does not fit."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from bedplate.core.errors import SkinError, UsageError
from bedplate.core.files import sha256_file
from bedplate.skins.export import export_skin
from bedplate.skins.files import SKIN_FILE, read_skin, skin_id, write_skin
from bedplate.skins.lookup_index import PASSAGES_FILE, VECTORS_FILE, Chunk, Passages, vector_bytes
from bedplate.skins.prompt import Passage, Prompt
from bedplate.skins.verify import verify_skin

BLOCK = "{% for passage in passages %}[{{ passage.number }}] {{ passage.text }}\n{% endfor %}\n"
TEMPLATE = f"{BLOCK}Review: {{{{ review }}}}\nSentiment:"


def index(count: int = 12, size: int = 16, k: int = 2) -> Passages:
    vectors = np.random.default_rng(0).normal(size=(count, size))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return Passages(vectors, tuple(Chunk(f"page {i // 2}", 40 * (i % 2), f"text {i}, ü") for i in range(count)), k)


@pytest.fixture
def retrieval(base, build_skin):
    skin = build_skin(base, "prompt")
    return dataclasses.replace(skin, demonstrations=(), prompt=Prompt(TEMPLATE), passages=index(), inputs=skin.inputs)


def test_a_directory_gives_back_the_skin_and_the_same_bytes(retrieval, base, tmp_path):
    reread = read_skin(write_skin(retrieval, tmp_path / "one"))
    assert (reread.kind, skin_id(reread)) == ("retrieval", skin_id(retrieval))
    assert np.array_equal(reread.passages.vectors, retrieval.passages.vectors)
    assert (reread.passages.chunks, reread.passages.k) == (retrieval.passages.chunks, 2)
    write_skin(reread, tmp_path / "two")
    for name in (SKIN_FILE, VECTORS_FILE, PASSAGES_FILE):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert verify_skin(reread, base) == []
    changed = dataclasses.replace(retrieval, passages=dataclasses.replace(retrieval.passages, k=3))
    assert skin_id(changed) != skin_id(retrieval)


def test_passages_are_numbered_from_the_nearest():
    passages = index().retrieve(index().vectors[7] * 3)
    assert passages[0] == Passage(1, "text 7, ü", "page 3", 40)
    assert [passage.number for passage in passages] == [1, 2]


@pytest.mark.parametrize("format", ["plain", "chat"])
def test_a_template_places_passages_whatever_they_hold(format):
    prompt = Prompt(TEMPLATE, format)
    text = prompt.text({"review": "ok"}, (), (Passage(1, "{{ review }} {% x %}", "a"), Passage(2, "two", "b")))
    rendered = text if format == "plain" else text[-1]["content"]
    assert rendered == "[1] {{ review }} {% x %}\n[2] two\nReview: ok\nSentiment:"


def test_an_input_of_that_name_is_the_input():
    assert Prompt("{{ passages }}!").text({"passages": "mine"}) == "mine!"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"document": "a", "start": 0, "text": 3}, "line 1: "),
        ({"document": "a", "start": -1, "text": "x"}, "line 1: "),
        ({"document": "a", "start": True, "text": "x"}, "line 1: "),
        ({"document": "a", "text": "x"}, "line 1: "),
        ({"document": "a", "start": 0, "text": "x", "more": 1}, "line 1: "),
        ({"document": "a", "start": 0, "text": " \n"}, "passage 0 of the index is empty"),
    ],
)
def test_rows_that_are_no_passages_are_refused(retrieval, tmp_path, line, message):
    directory = write_skin(retrieval, tmp_path / "skin")
    path, manifest = directory / PASSAGES_FILE, directory / SKIN_FILE
    path.write_text((json.dumps(line) + "\n") * 12)
    listed = json.loads(manifest.read_text())
    listed["files"][PASSAGES_FILE] = sha256_file(path)
    manifest.write_text(json.dumps(listed))
    with pytest.raises(SkinError, match=message):
        read_skin(directory)


def test_what_does_not_fit_is_refused(retrieval, base, tmp_path):
    with pytest.raises(SkinError, match="loops over `passages`"):
        dataclasses.replace(retrieval, prompt=Prompt("Review: {{ review }}"))
    with pytest.raises(SkinError, match="loops over `passages`"):
        dataclasses.replace(retrieval, passages=None)
    listed = write_skin(retrieval, tmp_path / "other") / SKIN_FILE
    listed.write_text(json.dumps(json.loads(listed.read_text()) | {"kind": "prompt"}))
    with pytest.raises(SkinError, match="'prompt' does not fit the parts, which are of a 'retrieval'"):
        read_skin(tmp_path / "other")
    with pytest.raises(SkinError, match="vectors of size 17"):
        verify_skin(dataclasses.replace(retrieval, passages=index(size=17)), base)
    with pytest.raises(UsageError, match="chooses its passages for each call"):
        export_skin(retrieval, tmp_path / "out")
    directory = write_skin(retrieval, tmp_path / "skin")
    (directory / VECTORS_FILE).write_bytes(vector_bytes(index(11).vectors))
    with pytest.raises(SkinError, match="sha256 differs"):
        read_skin(directory)
