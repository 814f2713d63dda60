"""Instructions and demonstrations searched together: what is recorded, that nothing is asked twice, who proposes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.adaptation.conftest import write_task
from tests.homes import new_home
from tests.inference.fake_server import Fake, fake_server

from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.report.report import Report
from bedplate.adaptation.rungs import prompt_search, successive_halving
from bedplate.core.errors import ConfigError, UsageError
from bedplate.core.files import read_jsonl
from bedplate.skins.files import read_skin

RUNGS = ["zero_shot", "prompt_search"]
ANSWERS = ['"Say what the user felt."', "Instruction: name the sentiment of the text", "no", "x" * 900]


class Proposer(Fake):
    """Answers each question with the next of ANSWERS; the model "stops" fails after two."""

    async def _answer(self, model: str, body: dict[str, Any], send: Any, receive: Any) -> None:
        if model == "stops" and len(self.requests) > 2:
            await self._json(send, 400, {"error": {"message": "no more", "type": "t", "param": None, "code": "spent"}})
            return
        text = ANSWERS[(len(self.requests) - 1) % len(ANSWERS)]
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        await self._json(send, 200, {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})


@pytest.fixture
def server() -> Iterator[Proposer]:
    with fake_server(Proposer()) as fake:
        yield fake


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Report, Path, Path]:
    """With the base itself as the proposer."""
    directory = tmp_path_factory.mktemp("prompts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEDPLATE_HOME", str(new_home(directory / "home")))
        task = write_task(directory, tiny_base, groups=40, rungs=RUNGS)
        report = adapt(task, directory / "out", seed=0)
    return report, directory, task


def result_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "rungs" / "prompt_search" / "result.json").read_text())


def test_every_candidate_is_recorded_with_its_score_and_stage(run: tuple[Report, Path, Path]):
    report, directory, _ = run
    assert report.row("prompt_search")["status"] == "done", report.row("prompt_search")["reason"]
    result = result_of(directory / "out")
    first = [row for row in result["search"] if row["stage"] == "instructions"]
    second = [row for row in result["search"] if row["stage"] == "with demonstrations"]
    assert first[0]["text"] == "Say whether the review is positive or negative."
    assert len({row["text"] for row in first}) == len(first) == result["details"]["proposals"]
    assert any(row["name"].startswith("rewrite") for row in first)
    best = sorted((row["estimate"] for row in first), reverse=True)[:3]
    crossed = {row["name"] for row in second if ", with set" not in row["name"]}
    assert sorted((row["estimate"] for row in first if row["name"] in crossed), reverse=True) == best
    assert len(second) > 3
    assert max(row["n"] for row in second) == report.row("prompt_search")["n"]
    skin = read_skin(directory / "out" / report.row("prompt_search")["skin"])
    assert skin.kind == "prompt"
    assert result["details"]["instructions"] in skin.prompt.text({"review": "x"}, skin.demonstrations)


def test_the_seed_decides_everything(run: tuple[Report, Path, Path], tmp_path: Path):
    report, directory, path = run
    rerun = adapt(path, tmp_path / "again", seed=0)
    assert result_of(tmp_path / "again")["search"] == result_of(directory / "out")["search"]
    assert rerun.row("prompt_search")["estimate"] == report.row("prompt_search")["estimate"]
    places = (directory / "out", tmp_path / "again")
    proposals = [read_jsonl(place / "rungs" / "prompt_search" / "proposals.jsonl") for place in places]
    assert proposals[0] == proposals[1]
    assert len({row["question"] for row in proposals[0]}) == len(proposals[0])


def test_an_endpoint_proposes_and_is_asked_once(
    server: Proposer, tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
):
    proposer = {"url": server.url, "model": "good", "api_key_env": "PROPOSER_KEY", "number": 4}
    task = write_task(tmp_path / "task", tiny_base, groups=40, rungs=RUNGS, proposer=proposer)
    with pytest.raises(UsageError, match="PROPOSER_KEY"):
        adapt(task, tmp_path / "out")
    monkeypatch.setenv("PROPOSER_KEY", "secret")
    queries: list[tuple[str, str]] = []
    original_ask = successive_halving._predict

    def counted(context, variant, rows):
        if len(queries) > 200:
            raise KeyboardInterrupt
        answers = original_ask(context, variant, rows)
        # zero-shot's own questions come before there are proposals
        queries.extend((variant.key, row.id) for row in rows if server.requests)
        return answers

    with monkeypatch.context() as patch:
        patch.setattr(successive_halving, "_predict", counted)
        with pytest.raises(KeyboardInterrupt):
            adapt(task, tmp_path / "out")
    assert len(server.requests) == 4
    assert {request["key"] for request in server.requests} == {"Bearer secret"}
    assert "answer: positive" in server.requests[0]["messages"][0]["content"]
    before = len(queries)

    def recorded(context, variant, rows):
        queries.extend((variant.key, row.id) for row in rows)
        return original_ask(context, variant, rows)

    monkeypatch.setattr(successive_halving, "_predict", recorded)
    adapt(task, tmp_path / "out")
    assert len(server.requests) == 4
    assert len(queries) > before
    assert len(set(queries)) == len(queries)
    texts = {row["text"] for row in result_of(tmp_path / "out")["search"]}
    assert {"Say what the user felt.", "name the sentiment of the text"} <= texts
    assert "no" not in texts
    saved_text = "".join(p.read_text(errors="replace") for p in (tmp_path / "out").rglob("*.json*"))
    assert "secret" not in saved_text


def test_a_proposer_that_fails_leaves_what_it_gave(server: Proposer, tmp_path: Path, tiny_base: Path):
    proposer = {"url": server.url, "model": "stops", "number": 5}
    report = adapt(
        write_task(tmp_path / "task", tiny_base, groups=40, rungs=RUNGS, proposer=proposer), tmp_path / "out"
    )
    assert report.row("prompt_search")["status"] == "done"
    result = result_of(tmp_path / "out")
    assert any("failed after 2 of 5" in reason and "no more" in reason for reason in result["left_out"])
    assert "Say what the user felt." in {row["text"] for row in result["search"]}


@pytest.mark.parametrize(
    ("proposer", "message"),
    [
        ({"url": "http://127.0.0.1:1", "base": "x", "model": "m"}, "either a `url`"),
        ({"url": "http://127.0.0.1:1"}, "belong together"),
        ({"api_key_env": "KEY"}, "belong together"),
        ({"url": "nonsense", "model": "m"}, "not a server's address"),
        ({"number": 0}, "number"),
    ],
)
def test_proposers_that_cannot_be(tmp_path: Path, tiny_base: Path, proposer: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        adapt(write_task(tmp_path / "task", tiny_base, proposer=proposer), tmp_path / "out")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("Instruction: Name the feeling.", "Name the feeling."),
        ("**Instruction:** Name\nthe feeling.", "Name the feeling."),
        ("“Name the feeling.”", "Name the feeling."),
        ("short", None),
        ("", None),
        ("y" * 601, None),
    ],
)
def test_what_a_proposer_says_is_cleaned(answer: str, text: str | None):
    assert prompt_search.cleaned(answer) == text
