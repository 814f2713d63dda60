"""Pools of labelled rows: exact search against scikit-learn, skins as directories, and what does not fit."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from bedplate.core.errors import RequestError, SkinError, UsageError
from bedplate.core.files import sha256_file
from bedplate.skins.export import export_skin
from bedplate.skins.files import SKIN_FILE, read_skin, skin_id, write_skin
from bedplate.skins.lookup_index import ROWS_FILE, VECTORS_FILE, Neighbours, vector_bytes
from bedplate.skins.prompt import Demonstration
from bedplate.skins.verify import verify_skin


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def pool(count: int = 40, size: int = 16, k: int = 3, seed: int = 0, **changes) -> Neighbours:
    vectors = unit(np.random.default_rng(seed).normal(size=(count, size)))
    rows = tuple(Demonstration({"review": f"row {i}"}, " positive" if i % 2 else " negative") for i in range(count))
    return Neighbours(vectors, rows, k, **changes)


@pytest.fixture
def knn(base, build_skin):
    return dataclasses.replace(build_skin(base, "prompt"), demonstrations=(), neighbours=pool())


@pytest.mark.parametrize(("count", "k"), [(1, 1), (7, 7), (500, 8), (500, 1)])
def test_the_nearest_are_those_of_scikit_learn(count: int, k: int):
    mine = pool(count, 24, k, seed=count)
    queries = np.random.default_rng(1).normal(size=(20, 24)).astype(np.float32) * 7
    oracle = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(mine.vectors)
    expected = oracle.kneighbors(queries, return_distance=False)
    assert [mine.nearest(query) for query in queries] == expected.tolist()


@settings(max_examples=60, deadline=None)
@given(codes=st.lists(st.integers(0, 2), min_size=1, max_size=30), data=st.data())
def test_of_equals_the_earlier_rows_are_nearest(codes: list[int], data: st.DataObject):
    """Three directions only, so that most rows are tied at the edge."""
    k = data.draw(st.integers(1, len(codes)))
    vectors = np.eye(3, dtype=np.float32)[codes]
    rows = tuple(Demonstration({"x": str(i)}, "a") for i in range(len(codes)))
    query = np.array([3.0, 2.0, 1.0], dtype=np.float32)
    expected = sorted(range(len(codes)), key=lambda i: (-float(query[codes[i]]), i))[:k]
    assert Neighbours(vectors, rows, k).nearest(query) == expected


def test_the_order_says_where_the_nearest_stands():
    query = pool().vectors[11]
    last, first = pool().demonstrations(query), pool(order="nearest_first").demonstrations(query)
    assert last == first[::-1]
    assert first[0].inputs == {"review": "row 11"}


@pytest.mark.parametrize(
    ("query", "message"),
    [(np.zeros(15, np.float32), "16 finite numbers"), (np.full(16, np.nan, np.float32), "16 finite numbers")],
)
def test_a_query_that_does_not_fit_is_refused(query: np.ndarray, message: str):
    with pytest.raises(RequestError, match=message):
        pool().nearest(query)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[:-1], "each row needs one"),
        (lambda v: v * 2, "has length 2"),
        (lambda v: np.where(v == v[3, 4], np.nan, v).astype(np.float32), "NaN or infinity"),
        (lambda v: v.astype(np.float64), "float32"),
        (lambda v: v[0], "float32"),
        (lambda v: np.concatenate([v[:3] * 0, v[3:]]), "has length 0"),
    ],
)
def test_vectors_that_cannot_be_are_refused(change, message: str):
    whole = pool()
    with pytest.raises(SkinError, match=message):
        Neighbours(change(whole.vectors), whole.rows, 3)


@pytest.mark.parametrize("k", [0, 41])
def test_k_is_what_the_pool_holds(k: int):
    with pytest.raises(SkinError, match="between 1 and the pool's 40"):
        pool(k=k)


def test_a_directory_gives_back_the_skin_and_the_same_bytes(knn, base, tmp_path):
    reread = read_skin(write_skin(knn, tmp_path / "one"))
    assert (reread.kind, skin_id(reread)) == ("knn", skin_id(knn))
    assert np.array_equal(reread.neighbours.vectors, knn.neighbours.vectors)
    assert (reread.neighbours.rows, reread.neighbours.k) == (knn.neighbours.rows, 3)
    write_skin(reread, tmp_path / "two")
    for name in (SKIN_FILE, VECTORS_FILE, ROWS_FILE):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert verify_skin(reread, base) == []
    changed = dataclasses.replace(knn, neighbours=dataclasses.replace(knn.neighbours, k=4))
    assert skin_id(changed) != skin_id(knn)


def relisted(directory, name: str, content: bytes) -> None:
    """A file of a skin replaced by one that `skin.json` lists, as whoever forges one would."""
    (directory / name).write_bytes(content)
    manifest = json.loads((directory / SKIN_FILE).read_text())
    manifest["files"][name] = sha256_file(directory / name)
    (directory / SKIN_FILE).write_text(json.dumps(manifest))


def test_changed_missing_and_unfitting_files_are_refused(knn, tmp_path):
    directory = write_skin(knn, tmp_path / "skin")
    whole = (directory / VECTORS_FILE).read_bytes()
    (directory / VECTORS_FILE).write_bytes(whole[:-4] + b"\0\0\0\0")
    with pytest.raises(SkinError, match="sha256 differs"):
        read_skin(directory)
    for name, content, message in (
        (VECTORS_FILE, vector_bytes(np.zeros((40, 16))), "has length 0"),
        (VECTORS_FILE, vector_bytes(np.eye(16)), "40 rows and 16 vectors"),
        (ROWS_FILE, b'{"inputs": {"review": 3}, "answer": "a"}\n', "line 1: "),
        (ROWS_FILE, b'{"inputs": {"review": "x"}}\n', "line 1: "),
        (ROWS_FILE, b'{"inputs": {"text": "x"}, "answer": "a"}\n' * 40, "its pool's row 0 has"),
    ):
        target = write_skin(knn, tmp_path / "other", replace=True)
        relisted(target, name, content)
        with pytest.raises(SkinError, match=message):
            read_skin(target)
    (directory / VECTORS_FILE).unlink()
    with pytest.raises(SkinError, match=r"vectors\.safetensors"):
        read_skin(directory)


def test_what_lies_in_the_index_must_be_listed_and_be_no_link(knn, tmp_path):
    directory = write_skin(knn, tmp_path / "skin")
    (directory / "index" / "more.txt").write_text("x")
    with pytest.raises(SkinError, match="not listed"):
        read_skin(directory)
    (directory / "index" / "more.txt").unlink()
    (directory / "index").rename(tmp_path / "elsewhere")
    (directory / "index").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SkinError):
        read_skin(directory)


def test_a_pool_belongs_to_skins_of_its_kind_alone(knn, base, tmp_path):
    listed = write_skin(knn, tmp_path / "skin") / SKIN_FILE
    listed.write_text(json.dumps(json.loads(listed.read_text()) | {"kind": "prompt"}))
    with pytest.raises(SkinError, match="'prompt' does not fit the parts, which are of a 'knn'"):
        read_skin(tmp_path / "skin")
    with pytest.raises(SkinError, match="chooses its demonstrations from a pool"):
        dataclasses.replace(knn, demonstrations=(knn.neighbours.rows[0],))
    with pytest.raises(SkinError, match="no use for a base 'embedder'"):
        dataclasses.replace(knn, neighbours=None, bases={**knn.bases, "embedder": knn.base})
    with pytest.raises(SkinError, match="vectors of size 17"):
        verify_skin(dataclasses.replace(knn, neighbours=pool(size=17)), base)
    with pytest.raises(SkinError, match=r"reads layers\.9"):
        verify_skin(dataclasses.replace(knn, neighbours=pool(depth=9)), base)


def test_other_programs_have_no_form_for_it(knn, tmp_path):
    with pytest.raises(UsageError, match="chooses its demonstrations for each call"):
        export_skin(knn, tmp_path / "out")
    assert not (tmp_path / "out").exists()
