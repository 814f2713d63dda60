"""What is kept of calls and said of replies: only with consent, cleaned, exported as task data, forgotten for good."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import json
import os
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bedplate.cli.main import main
from bedplate.core.errors import UsageError
from bedplate.core.files import read_jsonl
from bedplate.evaluation.examples import load_examples
from bedplate.evaluation.task import load_task
from bedplate.serving.callers.caller_guard import Caller, CallerGuard
from bedplate.serving.durable.feedback_service import Feedback, sampled
from bedplate.serving.durable.feedback_store import FeedbackStore, plain_id
from bedplate.serving.durable.state_directory import StateDirectory
from bedplate.serving.schemas.http_errors import DiskOutage, StatusError
from bedplate.serving.server.app import loaded_server, server_config
from bedplate.serving.settings.redaction import NAMED, Expression, RedactionTimeout, Redactor
from bedplate.serving.settings.server_config import FeedbackConfig, KeepRule

from .conftest import Files, Server, running


class ByHeader(CallerGuard):
    """The bearer token is the tenant."""

    def identify(self, headers):
        return Caller("", headers.get("authorization", "").removeprefix("Bearer "), admin=True)


@contextmanager
def serving(files: Files, directory: Path | None, **retention: dict[str, Any]) -> Iterator[Server]:
    rules = {("*" if name == "every" else name): KeepRule(**rule) for name, rule in retention.items()}
    config = server_config(files.base, state=directory, feedback=FeedbackConfig(keep=rules))
    with loaded_server(config, files.skins) as state:
        state.guard = ByHeader()
        with running(state) as url:
            yield Server(url, state, {})


def post_chat(server: Server, text: str, model: str = "prompted", tenant: str = "us", **fields: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, **fields}
    answer = server.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {tenant}"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def post_feedback(server: Server, id_: str, tenant: str = "us", **feedback: Any) -> httpx.Response:
    return server.post("/v1/feedback", json={"id": id_, **feedback}, headers={"authorization": f"Bearer {tenant}"})


def stored_rows(state: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(state.glob("feedback/*/*.jsonl")) for row in read_jsonl(path)]


def settled(server: Server, count: int) -> None:
    """Waits until so many replies are written."""
    end = time.monotonic() + 5
    while server.state.part(Feedback).counts["kept"] < count:
        assert time.monotonic() < end
        time.sleep(0.01)


FULL_RETENTION = {"requests": True, "replies": True}


def test_nothing_is_kept_without_consent(files, tmp_path):
    with serving(files, tmp_path) as server:
        reply = post_chat(server, "this product is great")
        refused = post_feedback(server, reply["id"], rating="good")
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "feedback_not_kept")
    assert not list(tmp_path.glob("feedback/**/*"))
    with serving(files, tmp_path, writer=FULL_RETENTION) as server:
        reply = post_chat(server, "this product is great")
        assert post_feedback(server, reply["id"], rating="good").status_code == 404
    assert stored_rows(tmp_path) == []


def test_what_consent_allows_is_kept_and_nothing_else(files, tmp_path):
    rules = {
        "prompted": FULL_RETENTION,
        "tuned": {"requests": True},
        "probed": {"replies": True},
        "pair": {},
        "every": {**FULL_RETENTION, "redact": ["email"]},
    }
    with serving(files, tmp_path, **rules) as server:
        label = post_chat(server, "great")["choices"][0]["message"]["content"]
        post_chat(server, "good", "tuned")
        post_chat(server, "good", "probed")
        post_chat(server, json.dumps({"question": "a", "answer": "b"}), "pair")
        text = post_chat(server, "mail me@x.org", "tiny", max_tokens=3)["choices"][0]["message"]["content"]
        server.post("/v1/embeddings", json={"model": "tiny", "input": "a"})
        settled(server, 5)
        stats = server.state.part(Feedback).counts
        assert (stats["kept"], stats["dropped"]) == (5, 0)
    rows = {path.parent.name: read_jsonl(path)[0] for path in tmp_path.glob("feedback/*/*.jsonl")}
    assert (rows["prompted"]["inputs"], rows["prompted"]["replies"]) == ([{"review": "great"}], [label])
    assert (rows["tuned"]["inputs"], "replies" in rows["tuned"]) == ([{"review": "good"}], False)
    assert ("inputs" in rows["probed"], len(rows["probed"]["replies"])) == (False, 1)
    assert rows["pair"].keys() == {"kind", "id", "tenant", "endpoint", "choices", "time"}
    assert rows["tiny"]["request"]["messages"][0]["content"] == "mail [EMAIL]"
    assert rows["tiny"]["replies"] == [text]
    assert {row["tenant"] for row in rows.values()} == {"us"}
    files_kept = [path for path in (tmp_path / "feedback").rglob("*") if path.is_file()]
    assert all(path.stat().st_mode & 0o077 == 0 for path in files_kept if path.suffix == ".jsonl")
    assert (tmp_path / "feedback").stat().st_mode & 0o077 == 0


def test_the_command_says_where_it_looked(tmp_path, capsys):
    for arguments in (["list"], ["export", "m", "--out", str(tmp_path / "x.jsonl")]):
        with pytest.raises(SystemExit):
            main(["feedback", *arguments, "--state", str(tmp_path)])
        said = "".join(capsys.readouterr())
        assert f"{tmp_path / 'feedback'} holds nothing" in said
        assert "--state" in said


def test_the_command_looks_where_the_server_keeps_it(files, tmp_path, monkeypatch, capsys):
    """Without a state directory of their own, both mean the same."""
    monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path))
    with serving(files, None, prompted=FULL_RETENTION) as server:
        post_chat(server, "great")
        settled(server, 1)
    with pytest.raises(SystemExit) as ended:
        main(["feedback", "list", "--json"])
    assert ended.value.code == 0
    assert [(row["model"], row["replies"]) for row in json.loads(capsys.readouterr().out)["models"]] == [
        ("prompted", 1)
    ]


def test_feedback_is_for_ones_own_replies(files, tmp_path):
    with serving(files, tmp_path, every=FULL_RETENTION) as server:
        reply = post_chat(server, "great")
        assert post_feedback(server, reply["id"], tenant="them", rating="good").status_code == 404
        unknown = post_feedback(server, "chatcmpl-" + "0" * 32, rating="good")
        assert unknown.status_code == 404
        assert "of models that `feedback.keep` names" in unknown.json()["error"]["message"]
        assert post_feedback(server, "../../etc", rating="good").status_code == 404
        answer = post_feedback(server, reply["id"], rating="bad", correction="negative", comment="call 030 123-4567")
        assert answer.json() == {"id": reply["id"], "object": "feedback", "model": "prompted", "index": 0}
        for feedback, param in (
            ({}, "rating"),
            ({"rating": "great"}, "rating"),
            ({"correction": "neutral"}, "correction"),
            ({"comment": ""}, "comment"),
            ({"correction": "x" * 32_001}, "correction"),
            ({"rating": "good", "index": -1}, "index"),
            ({"rating": "good", "colour": "red"}, "colour"),
        ):
            refused = post_feedback(server, reply["id"], **feedback)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
        message = post_feedback(server, reply["id"], correction="positiv").json()["error"]["message"]
        assert "prompted has no label 'positiv'; did you mean 'positive'? its labels are negative, positive" in message
    with serving(files, tmp_path, every=FULL_RETENTION) as server:  # another server knows whose it is
        assert post_feedback(server, reply["id"], tenant="them", rating="good").status_code == 404
        assert post_feedback(server, reply["id"], rating="good").status_code == 200
        assert [row["kind"] for row in stored_rows(tmp_path)] == ["reply", "feedback", "feedback"]


def test_feedback_is_for_a_choice_that_there_is(files, tmp_path):
    with serving(files, tmp_path, every=FULL_RETENTION) as server:
        replies = [post_chat(server, "great"), post_chat(server, "great", "writer", n=3)]
        assert [post_feedback(server, replies[1]["id"], rating="good", index=i).status_code for i in (0, 2)] == [
            200
        ] * 2
    for _ in range(2):  # the next server knows it too
        with serving(files, tmp_path, every=FULL_RETENTION) as server:
            for reply, index in ((replies[0], 1), (replies[0], 1000), (replies[1], 3)):
                refused = post_feedback(server, reply["id"], rating="good", index=index)
                assert (refused.status_code, refused.json()["error"]["param"]) == (400, "index")


def test_a_correction_of_several_labels_is_a_list_of_them(files, tmp_path):
    with serving(files, tmp_path, every=FULL_RETENTION) as server:
        reply = post_chat(server, "great", "several")
        for wrong in ("price", '["price","colour"]', "{}"):
            refused = post_feedback(server, reply["id"], correction=wrong)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "correction")
        assert post_feedback(server, reply["id"], correction='["price"]').status_code == 200
        assert post_feedback(server, reply["id"], correction="[]").status_code == 200


def test_corrected_and_accepted_replies_are_rows_of_the_next_task(files, tmp_path, capsys):
    texts = [f"row {i}: this product works" for i in range(24)]
    expected: dict[str, str] = {}
    with serving(files, tmp_path, prompted=FULL_RETENTION) as server:
        for i, text in enumerate(texts):
            reply = post_chat(server, text, tenant=f"t{i % 3}")
            label = reply["choices"][0]["message"]["content"]
            wrong = "negative" if label == "positive" else "positive"
            payload: dict[str, Any] = [
                {"rating": "good"},
                {"rating": "bad", "correction": wrong},
                {"rating": "bad"},
                {},
            ][i % 4]
            if payload:
                assert post_feedback(server, reply["id"], tenant=f"t{i % 3}", **payload).status_code == 200
            if i % 4 < 2:
                expected[text] = label if i % 4 == 0 else wrong
        admin = httpx.get(f"{server.url}/admin/feedback/prompted/export", trust_env=False)
        listed = httpx.get(f"{server.url}/admin/feedback", trust_env=False).json()
    assert {row["review"]: row["target"] for row in map(json.loads, admin.text.splitlines())} == expected
    assert listed["data"] == [{"model": "prompted", "replies": 24, "with_texts": 24, "feedback": 18, "corrections": 6}]
    task_file = tmp_path / "task.yaml"
    task_file.write_text(
        "task: again\ninputs: {review: {column: text}}\noutput: {kind: label, labels: [negative, positive]}\n"
        "data: {source: again.jsonl, target: label, split: {train: 0.5, valid: 0.25, test: 0.25}}\nmetric: accuracy\n"
    )
    out = tmp_path / "again.jsonl"
    arguments = ["feedback", "export", "prompted", "--state", str(tmp_path), "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--task", str(task_file), "--json"])
    assert ended.value.code == 0
    payload = json.loads(capsys.readouterr().out)
    assert (payload["rows"], payload["skipped"]) == (12, {"no feedback": 6, "neither corrected nor called good": 6})
    data = load_examples(load_task(task_file))
    loaded = (*data.train, *data.valid, *data.test.open("compared with what was said"))
    assert {example.inputs["review"]: example.target for example in loaded} == expected
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "exists already" in capsys.readouterr().err


def test_what_is_purged_is_in_no_file(files, tmp_path, capsys):
    with serving(files, tmp_path, every=FULL_RETENTION) as server:
        replies = {name: post_chat(server, f"secret of {name}", tenant=name) for name in ("us", "them", "others")}
        for name, reply in replies.items():
            assert post_feedback(server, reply["id"], tenant=name, comment=f"comment of {name}").status_code == 200
        path = f"{server.url}/v1/feedback/{replies['us']['id']}"
        with httpx.Client(trust_env=False) as client:
            assert client.delete(path, headers={"authorization": "Bearer them"}).status_code == 404
            deleted = client.delete(path, headers={"authorization": "Bearer us"})
            assert (deleted.status_code, deleted.json()["lines"]) == (200, 2)
            assert client.delete(path, headers={"authorization": "Bearer us"}).status_code == 404
        with pytest.raises(SystemExit) as ended:  # from another process, while the server runs
            main(["feedback", "purge", "--tenant", "them", "--state", str(tmp_path)])
        assert ended.value.code == 0
        assert post_feedback(server, replies["them"]["id"], tenant="them", rating="good").status_code == 404
        assert post_feedback(server, replies["others"]["id"], tenant="others", rating="good").status_code == 200
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for name in ("us", "them"):
        assert f"of {name}".encode() not in everything
        assert replies[name]["id"][-32:].encode() not in everything
    assert b"secret of others" in everything
    for arguments in (["purge"], ["purge", "--id", "nonsense"], ["purge", "--everything"], ["export", "prompted"]):
        with pytest.raises(SystemExit) as ended:
            main(["feedback", *arguments, "--state", str(tmp_path)])
        assert ended.value.code == 2
    with pytest.raises(SystemExit):
        main(["feedback", "purge", "prompted", "--everything", "--state", str(tmp_path)])
    assert stored_rows(tmp_path) == []
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["feedback", "purge", "--tenant", "thme", "--state", str(tmp_path)])
    assert "has no such line of every model; nothing was deleted" in capsys.readouterr().err


# --- the store


def row(id_: str, row_type: str = "reply", tenant: str = "t", **fields: Any) -> dict[str, Any]:
    return {"kind": row_type, "id": id_, "tenant": tenant, **fields}


def test_lines_are_kept_by_day_and_whole_days_are_forgotten(tmp_path):
    clock = [datetime(2026, 1, 1, 23, 59, tzinfo=UTC)]
    store = FeedbackStore(tmp_path, lambda: clock[0])
    for model in ("a", "b", "../x/..", "."):
        store.append(model, [row("0")])
    clock[0] += timedelta(minutes=2)
    store.append("a", [row("1")])
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")) == [
        "%2E%2E%2Fx%2F%2E%2E/2026-01-01.jsonl",
        "%2E/2026-01-01.jsonl",
        "a/2026-01-01.jsonl",
        "a/2026-01-02.jsonl",
        "b/2026-01-01.jsonl",
    ]
    assert store.models() == [".", "../x/..", "a", "b"]
    clock[0] = datetime(2026, 1, 11, tzinfo=UTC)
    assert store.sweep({"a": 10, "b": 9}.get) == {str(tmp_path / "b/2026-01-01.jsonl")}
    assert store.models() == [".", "../x/..", "a"]
    clock[0] += timedelta(days=1)
    assert store.sweep({"a": 10}.get) == {str(tmp_path / "a/2026-01-01.jsonl")}
    assert [stored["id"] for model, stored in store.rows() if model == "a"] == ["1"]


def test_a_torn_line_hurts_nothing(tmp_path):
    store = FeedbackStore(tmp_path)
    store.append("m", [row("1", inputs=[{"x": "ü"}], replies=["a"])])
    (path,) = tmp_path.glob("m/*.jsonl")
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write('{"kind": "reply", "id": "2", "inputs": [{"x": "ü'.encode()[:-1])
    assert [stored["id"] for _, stored in store.rows()] == ["1"]
    store.append("m", [row("3")])
    assert [stored["id"] for _, stored in store.rows()] == ["1", "3"]
    assert path.read_bytes().startswith(whole)
    assert store.purge(ids={"3"}) == 1
    assert path.read_bytes() == whole


def test_a_reply_is_erased_in_its_place_and_half_an_erasure_is_none(tmp_path):
    store = FeedbackStore(tmp_path)
    (path,) = {Path(file) for file, _ in store.append("m", [row("1", replies=["a"]), row("2", replies=["secret"])])}
    store.append("m", [row("3")])
    whole = path.read_bytes()
    places = [place for _, place, stored in store.lines() if stored["id"] == "2"]
    assert store.erase("2", places) == 1
    assert path.read_bytes() == b"".join(
        b" " * (len(line) - 1) + b"\n" if b"secret" in line else line for line in whole.splitlines(keepends=True)
    )
    assert [stored["id"] for _, stored in store.rows()] == ["1", "3"]
    places = [place for _, place, stored in store.lines() if stored["id"] == "3"]
    with path.open("r+b") as file:  # as a power failure may leave it
        file.write(b" ")
    assert [stored["id"] for _, stored in store.rows()] == ["3"]
    FeedbackStore(tmp_path).purge(ids={"0"})
    FeedbackStore(tmp_path).purge(ids={"1"})
    store.append("m", [row("4"), row("3", "feedback")])
    FeedbackStore(tmp_path).purge(ids={"4"})  # its lines are elsewhere now
    assert store.erase("3", places) == 2
    assert list(store.rows()) == []


def test_an_interrupted_erasure_is_finished(tmp_path, monkeypatch):
    """By the next attempt, by a server's start, and by whatever is purged."""
    store = FeedbackStore(tmp_path)
    places = store.append("m", [row(str(number), replies=["secret"]) for number in range(3)])

    def fail(descriptor):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        for place in places:
            with pytest.raises(OSError, match="Input"):
                store.erase(str(places.index(place)), [place])
    assert list(store.rows()) == []
    left = Path(places[0][0]).read_bytes()
    assert left.count(b"secret") == 3
    assert store.erase("0", places[:1]) == 1
    assert Path(places[0][0]).read_bytes().count(b"secret") == 2
    for finish in (FeedbackStore(tmp_path).finish_erasures, lambda: FeedbackStore(tmp_path).purge(ids={"none"})):
        Path(places[0][0]).write_bytes(left)
        finish()
        assert Path(places[0][0]).read_bytes().split() == []


def test_a_reply_that_is_deleted_twice_at_once_is_looked_for_nowhere_else(tmp_path, monkeypatch):
    """And nothing is said any more of a reply whose deletion came first."""
    id_ = "a1" * 16
    FeedbackStore(tmp_path / "feedback").append("m", [row(id_)])
    directory = StateDirectory(SimpleNamespace(state=tmp_path))  # type: ignore[arg-type]
    feedback = Feedback(directory, FeedbackConfig(), DiskOutage())
    monkeypatch.setattr(FeedbackStore, "purge", lambda *_, **__: pytest.fail("all files were read"))
    said = {"index": 0, "rating": "good", "correction": None, "comment": None}

    async def deleted_twice() -> list[Any]:
        async with feedback.running(None):  # type: ignore[arg-type]
            calls = (feedback.forget(id_), feedback.forget(id_), feedback.record(id_, "m", "t", said))
            return await asyncio.gather(*calls, return_exceptions=True)

    *erased, refused = asyncio.run(deleted_twice())
    directory.release()
    assert erased == [1, 0]
    assert isinstance(refused, StatusError)
    assert refused.status == 404
    assert list(FeedbackStore(tmp_path / "feedback").rows()) == []


def test_what_is_too_old_is_forgotten_without_reading_the_rest(tmp_path, monkeypatch):
    store = FeedbackStore(tmp_path / "feedback", lambda: datetime(2026, 1, 1, tzinfo=UTC))
    store.append("m", [row("a1" * 16), row("a1" * 16, "feedback", index=0, rating="good", correction=None)])
    FeedbackStore(tmp_path / "feedback").append("m", [row("b2" * 16)])
    directory = StateDirectory(SimpleNamespace(state=tmp_path))  # type: ignore[arg-type]
    feedback = Feedback(directory, FeedbackConfig(keep={"*": KeepRule(days=3)}), DiskOutage())
    readings, lines = [0], FeedbackStore.lines

    def counted(store, models=()):
        readings[0] += 1
        return lines(store, models)

    monkeypatch.setattr(FeedbackStore, "lines", counted)

    async def swept() -> tuple[list[str], list[str]]:
        async with feedback.running(None):  # type: ignore[arg-type]
            for _ in range(200):
                await asyncio.sleep(0.01)
                if len(feedback._owners) == 1 and not feedback.targets:
                    break
            return list(feedback._owners), list(feedback.targets)

    assert asyncio.run(swept()) == (["b2" * 16], [])
    directory.release()
    assert readings == [1], "the files are read when the server starts, and never for a day that is deleted"


def test_the_garbage_collector_does_not_track_the_index_of_kept_replies(files, tmp_path):
    """It stops every thread while it traverses what it tracks, and half a million replies may be kept."""
    with serving(files, tmp_path, every={"replies": True}) as server:
        replies = [post_chat(server, f"row {i}") for i in range(3)]
        settled(server, 3)
        post_feedback(server, replies[0]["id"], rating="good")
        feedback = server.state.part(Feedback)
        for indexed in (feedback._owners, feedback._places, feedback._feedback_places):
            assert len(indexed) >= 1
            gc.collect()
            gc.collect()  # of tuples of tuples the outer ones come last
            assert not [value for value in indexed.values() if gc.is_tracked(value)]


def test_two_threads_of_a_server_have_its_directory_at_once(tmp_path, monkeypatch):
    directory = StateDirectory(SimpleNamespace(state=tmp_path))  # type: ignore[arg-type]
    lock = fcntl.flock

    def slow(file, operation):
        lock(file, operation)
        time.sleep(0.2)

    monkeypatch.setattr(fcntl, "flock", slow)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda _: directory.acquire(), range(2))) == [tmp_path] * 2
    directory.release()


def test_deleting_a_reply_reads_nobody_elses_lines(files, tmp_path):
    """Nor does what comes after: whose the replies are is known still."""
    others = [row(f"{number:032x}", tenant="them", replies=["x" * 200]) for number in range(5_000)]
    FeedbackStore(tmp_path / "feedback").append("prompted", others)

    def read_bytes() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    with serving(files, tmp_path, every=FULL_RETENTION) as server, httpx.Client(trust_env=False) as client:
        replies = [post_chat(server, f"secret {number}") for number in range(3)]
        assert post_feedback(server, replies[0]["id"], comment="a word").status_code == 200
        before = read_bytes()
        for reply in replies:
            path = f"{server.url}/v1/feedback/{reply['id']}"
            assert client.delete(path, headers={"authorization": "Bearer us"}).status_code == 200
            assert post_feedback(server, others[0]["id"], tenant="them", rating="good").status_code == 200
        assert read_bytes() - before < 500_000  # of some 1,600,000 that are others'
    assert [stored["id"] for stored in stored_rows(tmp_path)] == [
        *(stored["id"] for stored in others),
        *[others[0]["id"]] * 3,
    ]


def test_no_feedback_waits_for_an_export_and_a_summary_reads_no_lines(files, tmp_path, monkeypatch):
    exporting, released, lines = threading.Event(), threading.Event(), FeedbackStore.lines

    def held(store, models=()):
        if models:
            exporting.set()
            assert released.wait(20)
        return lines(store, models)

    with serving(files, tmp_path, every=FULL_RETENTION) as server, ThreadPoolExecutor(1) as threads:
        replies = [post_chat(server, f"row {number}") for number in range(3)]
        settled(server, 3)
        monkeypatch.setattr(FeedbackStore, "lines", held)
        export = threads.submit(httpx.get, f"{server.url}/admin/feedback/prompted/export", trust_env=False, timeout=30)
        try:
            assert exporting.wait(20)
            assert post_feedback(server, replies[0]["id"], rating="good").status_code == 200
            monkeypatch.setattr(FeedbackStore, "lines", lambda *_: pytest.fail("lines were read"))
            listed = httpx.get(f"{server.url}/admin/feedback", trust_env=False).json()
        finally:
            released.set()
        assert export.result().status_code == 200
    assert listed["data"] == [{"model": "prompted", "replies": 3, "with_texts": 3, "feedback": 1, "corrections": 0}]


CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("reply"), st.sampled_from("ab"), st.integers(0, 5), st.booleans()),
        st.tuples(st.just("feedback"), st.sampled_from("ab"), st.integers(0, 5), st.booleans()),
        st.tuples(st.sampled_from(("erase", "purge", "another purges", "fails", "interleave")), st.integers(0, 5)),
        st.tuples(st.sampled_from(("a day later", "sweep", "summary"))),
    ),
    max_size=30,
)


@given(CHANGES)
@settings(max_examples=60)
def test_a_summary_counts_what_the_files_have(changes):
    clock = [datetime(2026, 1, 1, tzinfo=UTC)]
    with tempfile.TemporaryDirectory() as directory:
        store = FeedbackStore(Path(directory), lambda: clock[0])
        for change in changes:
            match change:
                case ("reply", model, number, has_texts):
                    store.append(model, [row(str(number), **({"replies": ["x"]} if has_texts else {}))])
                case ("feedback", model, number, is_corrected):
                    store.append(model, [row(str(number), "feedback", correction="y" if is_corrected else None)])
                case ("erase", number):
                    places = [place for _, place, stored in store.lines() if stored["id"] == str(number)]
                    assert store.erase(str(number), places) == len(places)
                case ("purge", number):
                    store.purge(ids={str(number)})
                case ("another purges", number):
                    FeedbackStore(Path(directory)).purge(ids={str(number)})
                case ("fails", number):
                    with pytest.raises(TypeError):
                        store.append("a", [row(str(number)), row(str(number), replies=object())])
                case ("interleave", number):
                    for _ in store.lines():
                        store.append("a", [row(str(number))])
                        break
                case ("a day later",):
                    clock[0] += timedelta(days=1)
                case ("sweep",):
                    store.sweep(lambda _: 1)
                case ("summary",):
                    store.summary()
        assert store.summary() == FeedbackStore(Path(directory)).summary()


def test_a_file_that_is_deleted_while_lines_are_read_has_none(tmp_path):
    store = FeedbackStore(tmp_path)
    store.append("a", [row("1")])
    store.append("b", [row("2")])
    reading = store.lines()
    assert next(reading)[2]["id"] == "1"
    assert store.purge(ids={"2"}) == 1
    assert list(reading) == []


def test_appending_and_purging_at_once_loses_nothing(tmp_path):
    """Two stores on one directory, as a server and a command line are."""
    ours, theirs = FeedbackStore(tmp_path), FeedbackStore(tmp_path)
    thread = threading.Thread(target=lambda: [ours.append("m", [row(f"k{i}")]) for i in range(60)])
    thread.start()
    for i in range(30):
        theirs.append("m", [row(f"p{i}")])
        assert theirs.purge(ids={f"p{i}"}) == 1
    thread.join()
    assert [stored["id"] for _, stored in ours.rows()] == [f"k{i}" for i in range(60)]


def test_only_whole_examples_are_exported(tmp_path):
    store = FeedbackStore(tmp_path)
    inputs = [{"x": "one"}, {"x": "two"}]
    store.append(
        "m",
        [
            row("both", inputs=inputs, replies=["a", "b"]),
            row("asked", inputs=inputs[:1]),
            row("bare"),
            row("silent", inputs=inputs[:1], replies=["a"]),
            row("both", "feedback", rating="good", correction=None, index=1),
            row("both", "feedback", rating="good", correction=None, index=0),
            row("both", "feedback", rating="bad", correction="c", index=0),
            row("asked", "feedback", rating="good", correction=None, index=0),
            row("bare", "feedback", rating=None, correction="c", index=0),
            row("lost", "feedback", rating="good", correction=None, index=0),
            row("both", "feedback", rating="good", correction=None, index=2),
        ],
    )
    exported = store.export("m", {"x": "text"}, "label", "tenant")
    digest = "e3b98a4da31a"  # sha256 of "t"
    assert exported.rows == [
        {"id": "both-1", "text": "two", "label": "b", "tenant": digest},
        {"id": "both-0", "text": "one", "label": "c", "tenant": digest},
    ]
    assert {why: count for why, count in exported.skipped.items() if count} == {
        "no feedback": 1,
        "called good, but the reply was not kept": 1,
        "the request was not kept, or has no inputs of a skin": 2,
        "the reply is no longer kept": 1,
    }
    with pytest.raises(UsageError, match="one name"):
        store.export("m", None, "x")
    with pytest.raises(UsageError, match="those of the task y"):
        store.export("m", {"y": "text"})


def test_an_export_holds_one_reply_at_a_time(tmp_path):
    store = FeedbackStore(tmp_path)
    ids = [f"{number:032x}" for number in range(1_000)]
    store.append("m", [row(id_, inputs=[{"x": "y" * 10_000}], replies=["a"]) for id_ in ids])
    store.append("m", [row(id_, "feedback", rating="good", correction=None, index=0) for id_ in ids])
    tracemalloc.start()
    try:
        assert sum(1 for _ in store.examples("m")) == len(ids)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000  # of 10,000,000
    finally:
        tracemalloc.stop()


def test_replies_that_are_erased_during_an_export_are_not_exported(tmp_path):
    store = FeedbackStore(tmp_path)
    replies = store.append("m", [row(str(number), inputs=[{"x": "y"}], replies=["a"]) for number in range(2)])
    store.append("m", [row(str(number), "feedback", rating="good", correction=None, index=0) for number in range(2)])
    exported = store.examples("m")
    assert next(exported)["id"] == "0-0"
    store.erase("1", replies[1:])
    assert list(exported) == []


def test_lines_that_are_erased_while_they_are_read_are_not_read(tmp_path):
    store = FeedbackStore(tmp_path)
    places = store.append("m", [row(str(number), replies=["x" * 20_000]) for number in range(5)])
    reading = store.lines()
    assert next(reading)[2]["id"] == "0"  # a part of the next line is in the reader's buffer
    assert store.erase("1", places[1:2]) == 1
    assert [stored["id"] for _, _, stored in reading] == ["2", "3", "4"]


@pytest.mark.parametrize(
    ("given_id", "plain"),
    [
        ("chatcmpl-" + "a1" * 16, "a1" * 16),
        ("msg_" + "a1" * 16 + "_0", "a1" * 16),
        ("a1" * 16, "a1" * 16),
        ("a1" * 15, None),
        ("x/" + "a1" * 16, None),
    ],
)
def test_ids_are_known_by_what_they_end_in(given_id, plain):
    assert plain_id(given_id) == plain


def test_the_share_that_is_sampled_is_that_of_the_ids():
    ids = [f"{i:02x}" + "0" * 30 for i in range(256)]
    for share, count in ((1.0, 256), (0.5, 128), (0.25, 64), (1 / 256, 1)):
        assert sum(sampled(id_, share) for id_ in ids) == count


# --- redaction


@pytest.mark.parametrize(
    ("name", "text", "cleaned"),
    [
        ("email", "to a.b+c@mail.example.co.uk, please", "to [EMAIL], please"),
        ("email", "ü@ü.de @home a@b", "[EMAIL] @home a@b"),
        ("card", "4111 1111 1111 1111 and 5500-0000-0000-0004", "[CARD] and [CARD]"),
        ("card", "4111 1111 1111 1112", "4111 1111 1111 1112"),  # its check digit is wrong
        ("iban", "DE89 3704 0044 0532 0130 00 IS MINE", "[IBAN] IS MINE"),
        ("iban", "gb82west12345698765432 GB82WEST12345698765433", "[IBAN] GB82WEST12345698765433"),
        ("ip", "192.168.1.254, ::1, fe80::1ff:fe23:4567:890a", "[IP], [IP], [IP]"),
        ("ip", "999.1.1.1 at 10:20:30, version 1.2.3", "999.1.1.1 at 10:20:30, version 1.2.3"),
        ("phone", "+44 20 7946 0958, (030) 123-4567, 0301234567", "[PHONE], [PHONE], [PHONE]"),
        ("phone", "on 2024-01-02 order 12345678 for 1,299.00", "on 2024-01-02 order 12345678 for 1,299.00"),
    ],
)
def test_named_patterns(name, text, cleaned):
    assert Redactor((name,)).clean(text) == cleaned


def test_own_expressions_come_after_named_ones():
    rules = (Expression(name="order", pattern=r"ORD-\d+"), "email")
    assert Redactor(rules).clean("ORD-17 of a@b.org") == "[ORDER] of [EMAIL]"


def test_an_expression_that_runs_away_is_stopped():
    redactor = Redactor((Expression(name="evil", pattern=r"(?:a+b?)+c"),))
    start = time.thread_time()  # of this thread alone: the machine may be busy
    with pytest.raises(RedactionTimeout):
        redactor.clean("a" * 5000)
    assert time.thread_time() - start < 2


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"name": "x", "pattern": "(a"}, "not a regular expression"),
        ({"name": "x", "pattern": "a*"}, "matches the empty text"),
        ({"name": "x", "pattern": "a" * 501}, "at most 500"),
        ({"name": "X y", "pattern": "a"}, "should match pattern"),
        ("passport", "no pattern is called 'passport'"),
    ],
)
def test_rules_that_cannot_work_are_refused(rule, why):
    with pytest.raises(ValidationError, match=why):
        KeepRule(redact=(rule,))


@given(st.text(max_size=300))
def test_what_is_clean_stays_clean(text):
    redactor = Redactor(tuple(NAMED))
    cleaned = redactor.clean(text)
    assert redactor.clean(cleaned) == cleaned


def test_texts_that_cannot_be_cleaned_in_time_are_not_kept(files, tmp_path):
    rule = {**FULL_RETENTION, "redact": [{"name": "evil", "pattern": r"(?:a|aa)+b"}]}
    with serving(files, tmp_path, every=rule) as server:
        reply = post_chat(server, "a" * 100 + "xb")
        settled(server, 1)
        assert server.state.part(Feedback).counts["redaction_timeouts"] == 1
        assert post_feedback(server, reply["id"], comment="a" * 200 + "xb").status_code == 400
        assert post_feedback(server, reply["id"], rating="good").status_code == 200
    assert "inputs" not in stored_rows(tmp_path)[0]
