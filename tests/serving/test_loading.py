"""What a server answers while bases load, which names and skins it refuses; seeds, and stripping in pieces."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedplate.core.errors import CheckpointError, SkinError, UsageError
from bedplate.inference.engine.requests import Generate, Sampling
from bedplate.serving.callers.api_keys import KeyStore
from bedplate.serving.callers.caller_guard import Caller
from bedplate.serving.durable.skin_changes import SkinChanges
from bedplate.serving.durable.state_directory import StateDirectory
from bedplate.serving.models import engines
from bedplate.serving.models.served import ServedBase, Stripped, choices
from bedplate.serving.schemas.http_errors import LoadingError
from bedplate.serving.server.app import loaded_server, opened_server
from bedplate.serving.settings.server_config import FeedbackConfig, KeepRule, ServerConfig, SkinConfig
from bedplate.skins.files import read_skin, write_skin

from .conformance.test_classical import words
from .conftest import Files, Server
from .test_guard import make_key, write
from .test_lifecycle import wait_until
from .test_operations import Running, answers, config, no_signals, status

__all__ = ["no_signals"]


class Gate:
    """Bases load once it is opened, and fail with `failure` if it has one."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self.failure: Exception | None = None

    def wait(self) -> None:
        self.reached.set()
        assert self.opened.wait(60)
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, load = Gate(), engines._load

    def waits(*arguments: Any, **settings: Any) -> Any:
        gate.wait()
        return load(*arguments, **settings)

    monkeypatch.setattr(engines, "_load", waits)
    yield gate
    gate.opened.set()


@contextlib.contextmanager
def loading(settings: ServerConfig, gate: Gate) -> Iterator[tuple[Running, Server]]:
    """A server whose base is about to be loaded."""
    run = Running(settings)
    run.thread.start()
    try:
        assert gate.reached.wait(20)
        yield run, Server(run.url, None, {})  # type: ignore[arg-type]
    finally:
        run.__exit__()


def with_skins(files: Files, *names: str, **settings: Any) -> ServerConfig:
    skins = tuple(SkinConfig(source=path) for path in files.skins if path.name in names)
    return config(files, skins=skins, **settings)


def names_of(server: Server) -> list[str]:
    return [model["id"] for model in server.request("GET", "/v1/models").json()["data"]]


def test_a_skin_without_a_base_answers_while_bases_load(files, tmp_path, gate):
    settings = with_skins(files, "prompted", "worded", state=tmp_path)
    with loading(settings, gate) as (run, server):
        assert server.chat(model="worded").status_code == 200
        progress = {"status": "loading", "models_ready": 1, "bases_loading": 1}
        health, ready = server.request("GET", "/health"), server.request("GET", "/ready")
        assert (health.status_code, health.json()) == (200, progress)
        assert (ready.status_code, ready.json()) == (503, progress)
        assert names_of(server) == ["worded"]
        assert server.request("GET", "/metrics").status_code == 200
        for refused in (
            server.chat(),
            server.chat(model="prompted"),
            server.post("/tokenize", json={"prompt": "x"}),
            server.post("/v1/feedback", json={"id": "x", "rating": "good"}),
            server.request("GET", "/admin/skins"),
        ):
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "loading"), refused.text
            assert int(refused.headers["retry-after"]) >= 1
        gate.opened.set()
        wait_until(lambda: status(run.url, "/ready") == (200, "ok"), 20.0)
        assert names_of(server) == ["tiny", "prompted", "worded"]  # as they were named, bases first
        assert [server.chat(model=name).status_code for name in names_of(server)] == [200, 200, 200]
        assert server.post("/tokenize", json={"prompt": "x"}).json()["count"] > 0
    assert run.result == [True]


def test_a_server_whose_skins_all_need_a_base_answers_none_before(files, tmp_path, gate):
    with loading(with_skins(files, "prompted", state=tmp_path), gate) as (run, server):
        assert answers(run.url, "/health") == (200, "loading")
        assert server.request("GET", "/v1/models").json()["error"]["code"] == "loading"
        gate.opened.set()
        wait_until(lambda: answers(run.url, "/ready") == (200, "ok"), 20.0)


def test_a_base_that_cannot_be_loaded_ends_the_server_with_what_it_served(files, tmp_path, gate):
    gate.failure = CheckpointError("its weights are cut off")
    with loading(with_skins(files, "worded", state=tmp_path), gate) as (run, server):
        assert server.chat(model="worded").status_code == 200
        gate.opened.set()
        run.thread.join(20)
        assert (run.failure, run.states) == (gate.failure, [])
        assert answers(run.url, "/health") is None


def test_it_is_stopped_while_bases_load(files, tmp_path, gate, no_signals):
    with loading(with_skins(files, "worded", state=tmp_path), gate) as (run, _):
        run.stop()
        run.thread.join(20)
        assert (run.result, run.states) == ([False], [])  # False: the thread that loads is left behind


def test_replies_of_that_time_are_kept_for_feedback(files, tmp_path, gate):
    keep = FeedbackConfig(keep={"*": KeepRule(requests=True, replies=True)})
    with loading(with_skins(files, "worded", state=tmp_path, feedback=keep), gate) as (run, server):
        reply = server.chat(model="worded").json()["id"]
        gate.opened.set()
        wait_until(lambda: bool(run.states), 20.0)
        assert server.post("/v1/feedback", json={"id": reply, "rating": "good"}).status_code == 200


def test_names_of_keys_are_compared_beside_the_loop(files, tmp_path, monkeypatch):
    threads: list[threading.Thread] = []
    monkeypatch.setattr(KeyStore, "warn_of_names", lambda _: threads.append(threading.current_thread()))
    keys = write(tmp_path / "keys.yaml", make_key()[0])
    with Running(with_skins(files, "worded", state=tmp_path, keys=keys)) as run:
        assert len(threads) == 1
        assert run.thread not in threads


def test_only_a_name_that_nobody_else_will_have_is_served_early(files, tmp_path, caplog):
    """Not one that two skins claim or that was deleted at run time. A base takes its name back: it is not known
    before the base is loaded."""
    shelf, anybody = tmp_path / "shelf", Caller()
    for place, skin in enumerate((words("alone"), words("twice"), words("twice"), words("gone"), words("tiny"))):
        write_skin(skin, shelf / str(place))
    shutil.copytree(next(path for path in files.skins if path.name == "tuned"), shelf / "tuned")
    settings = with_skins(files, "prompted", state=tmp_path / "state", skins_directory=shelf)
    with loaded_server(settings) as state:
        before = list(state.registry.models)
        asyncio.run(state.part(SkinChanges).remove("gone"))
        state.part(StateDirectory).release()
    with opened_server(settings) as (state, load_bases):
        registry = state.registry
        assert list(registry.models) == ["alone", "tiny"]
        assert not state.has_free_rows  # rows of batches wait
        with pytest.raises(LoadingError, match="'tuned' is not served yet"):
            registry.lookup("tuned", anybody)
        register = load_bases()
        assert list(registry.models) == ["alone", "tiny"]  # until the loop's thread has the time
        register()
        assert set(registry.models) == set(before) - {"gone"}
        assert list(registry.models)[:2] == before[:2] == ["tiny", "prompted"]
        assert isinstance(registry.lookup("tiny", anybody), ServedBase)
        assert state.has_free_rows
    assert "another model is called 'tiny'" in caplog.text


@given(st.lists(st.text(alphabet=" \n\tab\u3000\x1c")))
def test_stripping_pieces_is_stripping_the_whole(pieces):
    stripped = Stripped()
    assert "".join(map(stripped.push, pieces)) == "".join(pieces).strip()


@given(st.integers(-(2**63), 2**63 - 1))
def test_choices_have_seeds_of_their_own(seed):
    requests = choices(Generate((1,), Sampling(seed=seed)), 8)
    seeds = [request.sampling.seed for request in requests]
    assert seeds[0] == seed
    assert len(set(seeds)) == 8
    assert all(-(2**63) <= choice_seed < 2**63 for choice_seed in seeds)


def test_names_that_collide_are_refused(files):
    with (
        pytest.raises(UsageError, match="two models are called 'prompted'"),
        loaded_server(files.base, [files.skins[0]] * 2),
    ):
        pass
    with (
        pytest.raises(UsageError, match="'prompted' is a base; a skin cannot take its name"),
        loaded_server(files.base, files.skins[:1], name="prompted"),
    ):
        pass


@pytest.mark.parametrize("name", ["a:b", "", "a\nb"])
def test_names_that_clients_cannot_use_are_refused(files, name):
    with pytest.raises(UsageError), loaded_server(files.base, name=name or ":"):
        pass


def test_skins_judged_with_other_weights_are_refused(files):
    with pytest.raises(SkinError, match="float32"), loaded_server(files.base, files.skins[:1], dtype="bfloat16"):
        pass


def test_a_text_skin_with_impossible_settings_is_refused_when_loaded(files):
    writer = dataclasses.replace(read_skin(files.skins[3]), generation={"temperature": -1.0})
    with pytest.raises(Exception, match="temperature"), loaded_server(files.base, [writer]):
        pass
