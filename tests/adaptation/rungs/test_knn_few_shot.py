"""Demonstrations chosen for each call: what the rung searches, exports, loads elsewhere and serves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.adaptation.conftest import NATIVE_SHAPE, write_rows, write_task
from tests.elsewhere import answers
from tests.homes import new_home
from tests.serving.conformance.conftest import write_tiny_encoder
from tests.serving.conftest import Server, running
from tests.tiny import write_tiny_base

from bedplate.adaptation.context import embedding
from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.report.report import Report
from bedplate.adaptation.rungs import successive_halving
from bedplate.core.errors import ConfigError, HubError, SkinError
from bedplate.evaluation.examples import load_examples
from bedplate.evaluation.task import load_task
from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.skin_bases import LoadedSkin
from bedplate.serving.server.app import loaded_server, server_config
from bedplate.skins.files import read_skin
from bedplate.skins.lookup_index import read_vectors


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose best prompt is plain and short, so that there is room beside it."""
    return write_tiny_base(tmp_path_factory.mktemp("plain") / "tiny", seed=1, layers=2, **NATIVE_SHAPE)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "bert")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, encoder: Path) -> tuple[Report, Path, Path]:
    """The rung with an encoder that embeds for it."""
    directory = tmp_path_factory.mktemp("knn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDPLATE_HOME", str(new_home(directory / "home")))
        task = write_task(directory, tiny_base, embedders=[str(encoder)], rungs=["zero_shot", "knn_few_shot"])
        report = adapt(task, directory / "out", seed=0)
    return report, directory, task


def test_the_pool_is_train_and_the_report_says_so(run: tuple[Report, Path, Path]):
    report, directory, path = run
    row, data = report.row("knn_few_shot"), load_examples(load_task(path))
    skin = read_skin(directory / "out" / row["skin"])
    assert skin.neighbours is not None
    texts = {e.inputs["review"] for e in data.train}
    shown = {row.inputs["review"] for row in skin.neighbours.rows}
    assert shown <= texts
    assert not shown & {e.inputs["review"] for e in data.valid}
    result = json.loads((directory / "out" / "rungs" / "knn_few_shot" / "result.json").read_text())
    assert result["details"]["pool"] == {"rows": len(shown), "split": "train", "too_long": len(data.train) - len(shown)}
    assert len(shown) == len(data.train)
    names = [trial["name"] for trial in result["search"]]
    assert any("nearest first" in name for name in names)
    assert len({name.split()[0] for name in names}) > 1


def test_the_neighbours_of_a_row_are_those_of_its_vector(run: tuple[Report, Path, Path], encoder: Path):
    """Against vectors of the encoder asked for each row alone, and scikit-learn's search."""
    from sklearn.neighbors import NearestNeighbors

    report, directory, path = run
    skin = load(directory / "out" / report.row("knn_few_shot")["skin"])
    embedder = load(encoder)
    data = load_examples(load_task(path))
    try:
        assert isinstance(skin, LoadedSkin)
        pool = skin.skin.neighbours
        assert pool is not None
        vectors = embedder.embed([row.inputs["review"] for row in pool.rows])
        np.testing.assert_allclose(pool.vectors, vectors, atol=1e-5)
        reviews = [e.inputs["review"] for e in data.valid[:8]]
        oracle = NearestNeighbors(n_neighbors=pool.k, metric="cosine", algorithm="brute").fit(vectors)
        queries = embedder.embed(reviews)
        distances, _ = oracle.kneighbors(queries)
        places = {row.inputs["review"]: i for i, row in enumerate(pool.rows)}
        assert skin._lookup is not None
        for text, query, distance in zip(reviews, queries, distances, strict=True):
            shown = skin._lookup.retrieve([{"review": text}])[0].demonstrations
            nearest_first = shown[::-1] if pool.order == "nearest_last" else shown
            mine = [
                1 - float(vectors[places[demonstration.inputs["review"]]] @ query) for demonstration in nearest_first
            ]
            np.testing.assert_allclose(mine, distance, atol=1e-5)  # many of these vectors are equal
            tokens = skin.request(text).tokens
            alone = replace(
                skin.skin,
                neighbours=None,
                bases={"main": skin.skin.base},
                embedded_with=None,
                demonstrations=tuple(shown),
            )
            assert tokens == skin.model.predictor(alone).request(text).tokens
    finally:
        skin.close()
        embedder.close()


def test_another_process_and_a_server_give_the_reports_answers(
    run: tuple[Report, Path, Path], tiny_base: Path, encoder: Path, tmp_path: Path
):
    report, directory, path = run
    place = directory / "out" / report.row("knn_few_shot")["skin"]
    valid = {row["id"]: row for row in report.data["rows"]["valid"]["knn_few_shot"]}
    examples = load_examples(load_task(path)).valid[:12]
    rows = [e.inputs["review"] for e in examples]
    (elsewhere,) = answers(tmp_path, [place], rows)
    skin = load(place)
    assert isinstance(skin, LoadedSkin)
    try:
        local_predictions = skin.predict(rows, one_by_one=True)
    finally:
        skin.close()
    assert [[a.output, dict(a.scores)] for a in local_predictions] == elsewhere
    assert [a.output for a in local_predictions] == [valid[e.id]["prediction"] for e in examples]
    name = read_skin(place).name
    config = server_config(tiny_base, encoder)
    with loaded_server(config, [place]) as state, running(state) as url:
        server = Server(url, state, {})
        for text, answer in zip(rows, local_predictions, strict=True):
            reply = server.chat(model=name, messages=[{"role": "user", "content": text}])
            assert reply.status_code == 200, reply.text
            body = reply.json()
            assert body["choices"][0]["message"]["content"] == answer.output
        classified = server.post("/v1/classify", json={"model": name, "input": rows}).json()["data"]
        assert [result["label"] for result in classified] == [a.output for a in local_predictions]
        assert server.idle()


def test_a_server_without_the_embedder_says_what_is_missing(run: tuple[Report, Path, Path], tiny_base: Path):
    report, directory, _ = run
    with (
        pytest.raises(SkinError, match="serve that base too"),
        loaded_server(server_config(tiny_base), [directory / "out" / report.row("knn_few_shot")["skin"]]),
    ):
        pass


def test_another_encoder_than_the_pools_is_refused(run: tuple[Report, Path, Path], tiny_base: Path):
    report, directory, _ = run
    with pytest.raises(SkinError, match="belongs to the base"):
        load(directory / "out" / report.row("knn_few_shot")["skin"], embedder=tiny_base)


def test_an_interrupted_search_asks_and_embeds_nothing_twice(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
):
    task = write_task(tmp_path / "task", tiny_base, groups=40, rungs=["zero_shot", "knn_few_shot"])
    queries: list[tuple[str, str]] = []
    original_ask = successive_halving._predict

    def counted(context, variant, rows):
        if variant.neighbours is not None and len(queries) > 50:
            raise KeyboardInterrupt
        answers = original_ask(context, variant, rows)
        queries.extend((variant.key, row.id) for row in rows if variant.neighbours is not None)
        return answers

    with monkeypatch.context() as patch:
        patch.setattr(successive_halving, "_predict", counted)
        with pytest.raises(KeyboardInterrupt):
            adapt(task, tmp_path / "out")
    pools = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "rungs" / "knn_few_shot").glob("pool-*")}
    assert pools
    query_count = len(queries)

    def recorded(context, variant, rows):
        queries.extend((variant.key, row.id) for row in rows if variant.neighbours is not None)
        return original_ask(context, variant, rows)

    monkeypatch.setattr(successive_halving, "_predict", recorded)
    resumed = adapt(task, tmp_path / "out").row("knn_few_shot")
    assert len(queries) > query_count
    assert len(set(queries)) == len(queries)
    assert all(path.stat().st_mtime_ns == at for path, at in pools.items())
    assert resumed["estimate"] == adapt(task, tmp_path / "whole").row("knn_few_shot")["estimate"]


@pytest.mark.slow
def test_an_interrupted_embedding_goes_on_part_by_part(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    task = write_task(tmp_path / "task", tiny_base, groups=34, rungs=["zero_shot", "knn_few_shot"])
    monkeypatch.setattr(embedding, "_AT_ONCE", 10)
    embed, embedded_texts = embedding.embed_texts, list[str]()

    def stopping(engine, texts, *args):
        if len(texts) == 10 and len(embedded_texts) == 20:
            embedded_texts.append("stopped")
            raise KeyboardInterrupt
        embedded_texts.extend(texts if len(texts) == 10 else ())
        return embed(engine, texts, *args)

    monkeypatch.setattr(embedding, "embed_texts", stopping)
    with pytest.raises(KeyboardInterrupt):
        adapt(task, tmp_path / "out")
    pool = tmp_path / "out" / "rungs" / "knn_few_shot" / "pool-0.safetensors"
    assert len(read_vectors(pool)) == 20
    first_texts, resumed = set(embedded_texts[:20]), list[tuple[int | None, str]]()

    def recorded(engine, texts, pooling, depth=None):
        resumed.extend((depth, text) for text in texts)
        return embed(engine, texts, pooling, depth)

    monkeypatch.setattr(embedding, "embed_texts", recorded)
    report = adapt(task, tmp_path / "out")
    assert report.row("knn_few_shot")["status"] == "done"
    result = json.loads((tmp_path / "out" / "rungs" / "knn_few_shot" / "plan.json").read_text())
    interrupted = result["settings"]["embedders"][0]["depth"]
    assert any(depth == interrupted for depth, _ in resumed)
    assert not any(depth == interrupted and text in first_texts for depth, text in resumed)
    skin = read_skin(tmp_path / "out" / report.row("knn_few_shot")["skin"])
    assert skin.neighbours is not None
    assert len(read_vectors(pool)) == len(skin.neighbours)


def test_rows_too_long_to_be_shown_are_counted_and_few_make_a_skip(tmp_path: Path):
    base = write_tiny_base(tmp_path / "base", **NATIVE_SHAPE)
    rows = write_rows(tmp_path / "rows.jsonl", groups=60)
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    for line in lines[::10]:
        line["text"] = "great product " * 12 + line["text"]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    budget = {"budget": {"p95_ms": 60000, "max_prompt_tokens": 320}, "rungs": ["zero_shot", "knn_few_shot"]}
    report = adapt(write_task(tmp_path / "some", base, rows=rows, **budget), tmp_path / "out")
    assert report.row("knn_few_shot")["status"] == "done", report.row("knn_few_shot")["reason"]
    skin = read_skin(tmp_path / "out" / report.row("knn_few_shot")["skin"])
    assert skin.neighbours is not None
    assert 40 < len(skin.neighbours) < 60
    result = json.loads((tmp_path / "out" / "rungs" / "knn_few_shot" / "result.json").read_text())
    assert 250 < result["prompt_tokens"] <= 320
    budget["budget"] = {"p95_ms": 60000, "max_prompt_tokens": 90}
    report = adapt(write_task(tmp_path / "none", base, rows=rows, **budget), tmp_path / "none-out")
    assert report.row("knn_few_shot")["status"] == "skipped"
    assert "do not fit 90 prompt tokens" in report.row("knn_few_shot")["reason"]


def test_embedders_that_cannot_be_are_refused(tmp_path: Path, tiny_base: Path):
    with pytest.raises(ConfigError, match="named twice"):
        adapt(write_task(tmp_path / "twice", tiny_base, embedders=["a", "a"]), tmp_path / "out")
    with pytest.raises(HubError, match="no-such-encoder"):
        adapt(
            write_task(tmp_path / "none", tiny_base, embedders=["no-such-encoder"], rungs=["knn_few_shot"]),
            tmp_path / "other",
        )
