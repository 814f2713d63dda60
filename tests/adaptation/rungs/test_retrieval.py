"""Passages looked up for each call: what the rung searches, cites, exports, loads elsewhere and serves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.adaptation.conftest import NATIVE_SHAPE, write_task
from tests.elsewhere import answers
from tests.homes import new_home
from tests.serving.conformance.conftest import write_tiny_encoder
from tests.serving.conftest import Server, running
from tests.tiny import write_tiny_base

from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.report.report import Report
from bedplate.adaptation.task.adapt_parts import DocumentsSpec, task_documents
from bedplate.core.errors import ConfigError, DataError
from bedplate.evaluation.examples import load_examples
from bedplate.evaluation.task import load_task
from bedplate.inference.predict.loaded import load
from bedplate.inference.predict.skin_bases import LoadedSkin
from bedplate.serving.server.app import loaded_server, server_config
from bedplate.skins.files import read_skin

WORDS = "the answer is yes or no and the question was asked by the user"


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose best prompt is plain and short, so that there is room beside it."""
    return write_tiny_base(tmp_path_factory.mktemp("plain") / "tiny", seed=1, layers=2, **NATIVE_SHAPE)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "bert")


def write_documents(path: Path, number: int = 40) -> Path:
    rows = [
        {"title": f"manual {i}", "body": f"product {i} works well. It broke after {i} days.\n\n{WORDS} {i}. Great."}
        for i in range(number)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, encoder: Path) -> tuple[Report, Path, Path]:
    directory = tmp_path_factory.mktemp("retrieval")
    documents = {
        "source": str(write_documents(directory / "documents.jsonl")),
        "column": "body",
        "id": "title",
        "chunk_tokens": [24, 40],
        "k": [2, 1],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDPLATE_HOME", str(new_home(directory / "home")))
        task = write_task(
            directory, tiny_base, embedders=[str(encoder)], documents=documents, rungs=["zero_shot", "retrieval"]
        )
        report = adapt(task, directory / "out", seed=0)
    return report, directory, task


def test_sizes_and_numbers_of_passages_are_searched_on_valid(run: tuple[Report, Path, Path]):
    report, directory, _ = run
    assert report.row("retrieval")["status"] == "done", report.row("retrieval")["reason"]
    result = json.loads((directory / "out" / "rungs" / "retrieval" / "result.json").read_text())
    assert len(result["search"]) == 4
    assert {trial["split"] for trial in result["search"]} == {"valid"}
    assert result["details"]["documents"]["number"] == 40


def test_the_prompt_holds_the_nearest_passages_by_their_numbers(run: tuple[Report, Path, Path], encoder: Path):
    """Against the encoder's vectors of the passages and of the question alone."""
    report, directory, path = run
    place = directory / "out" / report.row("retrieval")["skin"]
    skin, embedder = load(place), load(encoder)
    try:
        assert isinstance(skin, LoadedSkin)
        index = skin.skin.passages
        assert index is not None
        vectors = embedder.embed([chunk.text for chunk in index.chunks])
        np.testing.assert_allclose(index.vectors, vectors, atol=1e-5)
        for example in load_examples(load_task(path)).valid[:6]:
            text = example.inputs["review"]
            expected = np.argsort(-(vectors @ embedder.embed([text])[0]), kind="stable")[: index.k]
            answer = skin.predict([text])[0]
            assert [passage["number"] for passage in answer.passages] == list(range(1, index.k + 1))
            assert [(passage["document"], passage["start"]) for passage in answer.passages] == [
                (index.chunks[i].document, index.chunks[i].start) for i in expected
            ]
            prompt = skin.engine.base.need_tokenizer().decode(skin.request(text).tokens)
            for number, i in enumerate(expected, start=1):
                assert f"[{number}] {index.chunks[i].text}\n" in prompt
            assert prompt.endswith(skin.skin.prompt.text({"review": text})[-20:])
    finally:
        skin.close()
        embedder.close()


def test_passages_are_stretches_of_the_documents(run: tuple[Report, Path, Path]):
    report, directory, _ = run
    index = read_skin(directory / "out" / report.row("retrieval")["skin"]).passages
    assert index is not None
    spec = DocumentsSpec(source=str(directory / "documents.jsonl"), column="body", id="title")
    texts = {document.id: document.text for document in task_documents(spec, directory).documents}
    for chunk in index.chunks:
        assert texts[chunk.document][chunk.start : chunk.start + len(chunk.text)] == chunk.text


def test_another_process_and_a_server_give_the_reports_answers(
    run: tuple[Report, Path, Path], tiny_base: Path, encoder: Path, tmp_path: Path
):
    report, directory, path = run
    place = directory / "out" / report.row("retrieval")["skin"]
    valid = {row["id"]: row for row in report.data["rows"]["valid"]["retrieval"]}
    examples = load_examples(load_task(path)).valid[:8]
    rows = [e.inputs["review"] for e in examples]
    (elsewhere,) = answers(tmp_path, [place], rows)
    skin = load(place)
    assert isinstance(skin, LoadedSkin)
    try:
        predictions = skin.predict(rows, one_by_one=True)
        index = skin.skin.passages
    finally:
        skin.close()
    assert index is not None
    assert [[a.output, dict(a.scores)] for a in predictions] == elsewhere
    assert [a.output for a in predictions] == [valid[e.id]["prediction"] for e in examples]
    name = read_skin(place).name
    with loaded_server(server_config(tiny_base, encoder), [place]) as state, running(state) as url:
        server = Server(url, state, {})
        for text, answer in zip(rows, predictions, strict=True):
            body = server.chat(model=name, messages=[{"role": "user", "content": text}]).json()
            assert body["choices"][0]["message"]["content"] == answer.output
            passages = body["choices"][0].get("bedplate", body.get("bedplate"))["passages"]
            assert [{k: passage[k] for k in ("number", "document", "start")} for passage in passages] == list(
                answer.passages
            )
            for passage in passages:
                assert passage["text"] in {
                    chunk.text for chunk in index.chunks if chunk.document == passage["document"]
                }
        assert server.idle()


def test_what_cannot_be_read_or_fit_is_said(tmp_path: Path, tiny_base: Path):
    rungs = ["zero_shot", "retrieval"]
    report = adapt(write_task(tmp_path / "none", tiny_base, rungs=rungs), tmp_path / "none-out")
    assert "adapt.documents" in report.row("retrieval")["reason"]
    source = str(write_documents(tmp_path / "documents.jsonl"))
    long = {"source": source, "column": "body", "chunk_tokens": [400], "k": [2]}
    report = adapt(write_task(tmp_path / "long", tiny_base, documents=long, rungs=rungs), tmp_path / "long-out")
    assert report.row("retrieval")["status"] == "skipped"
    assert "2 passages of 400 tokens do not fit 400" in report.row("retrieval")["reason"]
    wrong = {"source": source, "column": "txet"}
    with pytest.raises(DataError, match="no column 'txet' for documents"):
        adapt(write_task(tmp_path / "wrong", tiny_base, documents=wrong, rungs=rungs), tmp_path / "wrong-out")
    with pytest.raises(ConfigError, match="chunk_tokens"):
        adapt(write_task(tmp_path / "small", tiny_base, documents={"source": source, "chunk_tokens": [2]}), tmp_path)


def test_documents_of_files_and_directories(tmp_path: Path):
    (tmp_path / "help" / "inner").mkdir(parents=True)
    (tmp_path / "help" / "a.md").write_text("One.")
    (tmp_path / "help" / "inner" / "b.txt").write_text("Two.")
    (tmp_path / "help" / "again.txt").write_text("One.")
    (tmp_path / "help" / "empty.rst").write_text(" \n")
    (tmp_path / "help" / "picture.png").write_bytes(b"\x89PNG")
    corpus = task_documents(DocumentsSpec(source="help"), tmp_path)
    assert [(document.id, document.text) for document in corpus.documents] == [
        ("a.md", "One."),
        ("inner/b.txt", "Two."),
    ]
    assert (corpus.repeated, corpus.empty) == (1, 1)
    assert [document.id for document in task_documents(DocumentsSpec(source="help/a.md"), tmp_path).documents] == [
        "a.md"
    ]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="holds no documents"):
        task_documents(DocumentsSpec(source="nothing"), tmp_path)
    with pytest.raises(DataError, match="no document holds any text"):
        task_documents(DocumentsSpec(source="help/empty.rst"), tmp_path)
