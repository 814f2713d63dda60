"""Skins loaded, replaced and unloaded on a live server, under traffic; and those that must be refused."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import torch

from bedplate.core.errors import UsageError
from bedplate.core.files import sha256_file
from bedplate.inference.predict.predictor import Predictor
from bedplate.models.checkpoints.base import load_base
from bedplate.serving.callers.caller_guard import Caller
from bedplate.serving.models.residency import Residency
from bedplate.serving.models.served_skin import ServedSkin
from bedplate.serving.server.app import loaded_server, server_config
from bedplate.serving.settings.server_config import BaseConfig, RouteConfig, ServerConfig, SkinConfig
from bedplate.skins.files import read_skin, write_skin
from bedplate.skins.output import EmbeddingOutput, TextOutput
from bedplate.skins.prompt import Prompt
from bedplate.skins.skin import LoraPart, Skin

from .conftest import KERNEL, Server, make_skins, running

TEXT = "this product is great"


def variant(skin: Skin, seed: int, name: str | None = None) -> Skin:
    """The tuned skin with other weights, writing text."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {key: torch.randn(value.shape, generator=generator) * 0.3 for key, value in skin.lora.tensors.items()}
    lora = LoraPart(skin.lora.config, tensors)
    return dataclasses.replace(skin, name=name or skin.name, lora=lora, output=TextOutput(max_tokens=6), directory=None)


@dataclasses.dataclass
class Room:
    """A live server over a skins directory."""

    server: Server
    shelf: Path
    tuned: Skin
    prompted: Skin
    alone: Predictor

    def chat(self, model: str, text: str = TEXT) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        return self.server.post("/v1/chat/completions", json=body)

    def answer(self, model: str) -> str:
        reply = self.chat(model)
        assert reply.status_code == 200, reply.text
        return reply.json()["choices"][0]["message"]["content"]

    def load_skin(self, **fields) -> httpx.Response:
        return self.server.post("/admin/skins", json=fields)

    def request(self, method: str, path: str = "", **kwargs) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=30) as client:
            return client.request(method, f"{self.server.url}/admin/skins{path}", **kwargs)

    def write(self, skin: Skin, place: str | None = None) -> str:
        write_skin(skin, self.shelf / (place or skin.name), replace=True)
        return place or skin.name

    def said_alone(self, skin: Skin) -> str:
        """What the skin answers on an engine of its own."""
        with Predictor(self.alone.engine, skin) as predictor:
            return predictor(TEXT)

    def bank(self) -> tuple[int, ...]:
        return self.server.state.registry.engines[0].bank.slots

    def settled(self, slots: int) -> bool:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            if len(self.bank()) == slots and not self.server.state.registry.retired:
                return True
            time.sleep(0.01)
        return False


@contextlib.contextmanager
def room_of(files, directory: Path, adapters: int = 4, **settings) -> Iterator[Room]:
    shelf = directory / "shelf"
    shelf.mkdir()
    skins = make_skins(load_base(files.base))
    config = server_config(files.base, kernel=KERNEL, adapters=adapters, skins_directory=shelf, **settings)
    with (
        loaded_server(config) as state,
        running(state) as url,
        loaded_server(files.base, kernel=KERNEL) as reference_state,
    ):
        alone = Predictor(reference_state.registry.engines[0], skins[0])
        yield Room(Server(url, state, {}), shelf, skins[1], skins[0], alone)


@pytest.fixture(scope="module")
def room(files, tmp_path_factory) -> Iterator[Room]:
    with room_of(files, tmp_path_factory.mktemp("room")) as room:
        yield room


@pytest.fixture(autouse=True)
def _clean(request):
    yield
    if "room" in request.fixturenames:
        room = request.getfixturevalue("room")
        for skin in room.request("GET").json()["data"]:
            assert room.request("DELETE", f"/{skin['name']}").status_code == 200
        for path in room.shelf.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        assert room.settled(0), "slots or versions are left over"


def test_a_skin_is_loaded_asked_replaced_and_unloaded(room):
    first, second = variant(room.tuned, 1), variant(room.tuned, 2)
    expected = [room.said_alone(skin) for skin in (first, second)]
    assert expected[0] != expected[1]
    reply = room.load_skin(source=room.write(first))
    assert reply.status_code == 201
    assert reply.json()["state"] == "registered"
    assert reply.json()["replaced"] is None
    assert room.answer("tuned") == expected[0]
    shown = room.request("GET", "/tuned").json()
    assert (shown["state"], shown["kind"], shown["calls_running"]) == ("resident", "lora", 0)
    assert room.load_skin(source=room.write(second)).status_code == 409
    assert room.load_skin(source=room.write(second), name="other").status_code == 201
    replaced = room.load_skin(source=room.write(second), replace=True)
    assert (replaced.status_code, replaced.json()["replaced"]) == (200, shown["id"])
    assert room.answer("tuned") == room.answer("other") == expected[1]
    assert room.settled(2)
    assert {model["id"] for model in room.server.client.models.list().to_dict()["data"]} == {"tiny", "tuned", "other"}
    deleted = room.request("DELETE", "/tuned").json()
    assert deleted == {"name": "tuned", "deleted": True, "calls_running": 0, "durable": True}
    assert room.chat("tuned").status_code == 404
    assert room.request("GET", "/tuned").status_code == 404
    assert room.request("DELETE", "/tuned").status_code == 404
    assert room.settled(1)


def test_names_that_are_taken_or_cannot_be(room):
    source = room.write(variant(room.tuned, 1))
    for body, status, param in (
        ({"name": "tiny"}, 409, "name"),
        ({"name": "tiny", "replace": True}, 409, "name"),
        ({"name": "a:b"}, 400, "name"),
        ({"name": ""}, 400, "name"),
        ({"name": 7}, 400, "name"),
        ({"colour": "red"}, 400, "colour"),
    ):
        reply = room.load_skin(source=source, **body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (status, param), body
    assert room.request("GET").json()["data"] == []


def test_bad_skins_are_400_and_nothing_is_registered(room, tmp_path):
    good = variant(room.tuned, 1)
    outside = write_skin(good, tmp_path / "outside")

    def edited(name: str, change) -> str:
        directory = room.shelf / room.write(good, name)
        change(directory)
        return name

    def relist(directory: Path, change, file: str) -> None:
        fields = json.loads((directory / "skin.json").read_text())
        fields["files"][file] = sha256_file(directory / file)
        change(fields)
        (directory / "skin.json").write_text(json.dumps(fields))

    def nan(directory: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(directory / "adapter_model.safetensors")
        next(iter(tensors.values()))[0, 0] = torch.nan
        save_file(tensors, directory / "adapter_model.safetensors")
        relist(directory, lambda fields: None, "adapter_model.safetensors")

    def shape(directory: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = {
            key: value[:, :5].contiguous() for key, value in load_file(directory / "adapter_model.safetensors").items()
        }
        save_file(tensors, directory / "adapter_model.safetensors")
        relist(directory, lambda fields: None, "adapter_model.safetensors")

    def rank(directory: Path) -> None:
        fields = json.loads((directory / "adapter_config.json").read_text()) | {"r": 3}
        (directory / "adapter_config.json").write_text(json.dumps(fields))
        relist(directory, lambda fields: None, "adapter_config.json")

    def modules(directory: Path) -> None:
        relist(directory, lambda fields: fields["lora"].update(targets=["k", "down"]), "prompt.jinja")

    def base(directory: Path) -> None:
        relist(directory, lambda fields: fields["bases"]["main"].update(weights_id="0" * 64), "prompt.jinja")

    (room.shelf / "link").symlink_to(outside)
    sources = {
        "../outside": "lies outside",
        str(outside): "lies outside",
        "link": "symbolic link",
        "nowhere": "no directory",
        "": "not a path",
        "a\0b": "not a path",
        edited("pickle", lambda d: (d / "adapter_model.bin").write_bytes(b"x")): "not listed",
        edited("hash", lambda d: (d / "prompt.jinja").write_text("{{ review }}")): "sha256",
        edited("nan", nan): "NaN",
        edited("shape", shape): "shape",
        edited("rank", rank): "rank|disagree",
        edited("modules", modules): "adapter",
        edited("base", base): "belongs to the base",
        edited("json", lambda d: (d / "skin.json").write_text("{")): "JSON",
    }
    for source, message in sources.items():
        reply = room.load_skin(source=source)
        assert reply.status_code == 400, source
        error = reply.json()["error"]
        assert error["param"] == "source", source
        assert pytest.importorskip("re").search(message, error["message"]), (source, error)
    assert room.request("GET").json()["data"] == []
    assert room.bank() == ()


def test_only_admins(room, monkeypatch):
    monkeypatch.setattr(room.server.state.guard, "identify", lambda *args, **kwargs: Caller(admin=False))
    replies = [
        room.load_skin(source="x"),
        *(room.request(m, p) for m, p in (("GET", ""), ("GET", "/x"), ("DELETE", "/x"))),
    ]
    replies.append(room.request("POST", "/scan"))
    assert {reply.status_code for reply in replies} == {403}
    monkeypatch.undo()


def test_without_a_skins_directory_nothing_is_taken(server):
    reply = server.post("/admin/skins", json={"source": "/etc"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "no_skins_directory")


def test_a_scan_adds_changes_and_removes(room):
    for seed, name in enumerate(("one", "two")):
        room.write(variant(room.tuned, seed, name), f"team/{name}")
    (room.shelf / "broken").mkdir()
    (room.shelf / "broken" / "skin.json").write_text("{")
    changes = room.request("POST", "/scan").json()
    assert (changes["added"], len(changes["problems"])) == (["one", "two"], 1)
    room.write(changed := variant(room.tuned, 7, "one"), "team/one")
    shutil.rmtree(room.shelf / "team" / "two")
    # registered and not yet loaded, and its files are others by now: never served as something it is not
    assert room.chat("one").status_code == 503
    changes = room.request("POST", "/scan").json()
    assert (changes["replaced"], changes["removed"]) == (["one"], ["two"])
    assert room.answer("one") == room.said_alone(changed)


def test_more_skins_at_once_than_places_take_turns(room):
    skins = [variant(room.tuned, seed, f"s{seed}") for seed in range(12)]
    expected = {skin.name: room.said_alone(skin) for skin in skins}
    for skin in skins:
        room.write(skin)
    assert len(room.request("POST", "/scan").json()["added"]) == 12
    names = [name for name in expected for _ in range(3)]

    async def everything() -> list[httpx.Response]:
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            body = {"messages": [{"role": "user", "content": TEXT}], "temperature": 0}
            url = f"{room.server.url}/v1/chat/completions"
            return await asyncio.gather(*(client.post(url, json={**body, "model": name}) for name in names))

    replies = asyncio.run(everything())
    assert [reply.status_code for reply in replies] == [200] * len(names)
    contents = [reply.json()["choices"][0]["message"]["content"] for reply in replies]
    assert contents == [expected[name] for name in names]
    memory = room.request("GET").json()["memory"]
    assert memory["adapters"]["tiny"] == {"resident": 4, "limit": 4, "waiting": 0}
    assert len(room.bank()) == 4


def test_swaps_under_traffic(room):
    """Each answer is that of a version that was served while the call ran; after a swap, the new one's only."""
    skins = [variant(room.tuned, seed) for seed in range(5)]
    expected = [room.said_alone(skin) for skin in skins]
    assert len(set(expected)) == 5
    for number, skin in enumerate(skins):
        room.write(skin, f"v{number}")
    assert room.load_skin(source="v0").status_code == 201
    swaps = 10
    current, stop, wrong = [0], threading.Event(), []

    def traffic() -> None:
        while not stop.is_set():
            earliest = current[0]
            reply = room.chat("tuned")
            latest = current[0] + 1  # the swap may have happened before its reply came
            allowed = {expected[number % 5] for number in range(earliest, latest + 1)}
            text = reply.json()["choices"][0]["message"]["content"] if reply.status_code == 200 else reply.text
            if text not in allowed:
                wrong.append((earliest, latest, text))

    threads = [threading.Thread(target=traffic) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(1, swaps + 1):
            assert room.load_skin(source=f"v{number % 5}", replace=True).status_code == 200
            current[0] = number
            assert room.answer("tuned") == expected[number % 5], number
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert room.settled(1)


def test_a_call_ends_on_the_version_it_began_with(room, monkeypatch):
    long = dataclasses.replace(variant(room.tuned, 1), output=TextOutput(max_tokens=120))
    room.write(long)
    room.load_skin(source="tuned")
    expected = room.said_alone(long)
    body = {"model": "tuned", "messages": [{"role": "user", "content": TEXT}], "stream": True, "temperature": 0}
    with (
        httpx.Client(trust_env=False, timeout=30) as client,
        client.stream("POST", f"{room.server.url}/v1/chat/completions", json=body) as reply,
    ):
        lines = reply.iter_lines()
        first = next(lines)
        room.write(variant(room.tuned, 2), "new")
        assert room.load_skin(source="new", replace=True).status_code == 200
        assert room.request("DELETE", "/tuned").status_code == 200
        chunks = [json.loads(line[6:]) for line in [first, *lines] if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == expected


def test_embedding_skins_are_served_by_name(room):
    skin = dataclasses.replace(
        room.prompted,
        name="queries",
        prompt=Prompt("query: {{ review }}"),
        output=EmbeddingOutput(pooling="last", depth=2, dimensions=8),
    )
    room.write(skin)
    assert room.load_skin(source="queries").status_code == 201
    reply = room.server.post("/v1/embeddings", json={"model": "queries", "input": [TEXT, "ok"]})
    assert reply.status_code == 200
    vectors = torch.tensor([row["embedding"] for row in reply.json()["data"]])
    with Predictor(room.alone.engine, skin) as alone:
        torch.testing.assert_close(vectors, torch.tensor(alone.embed([TEXT, "ok"])), atol=1e-5, rtol=1e-5)
    assert vectors.shape == (2, 8)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    wrong = room.chat("queries")
    assert wrong.status_code == 400
    assert "/v1/embeddings" in wrong.json()["error"]["message"]
    cut = room.server.post("/v1/embeddings", json={"model": "queries", "input": TEXT, "dimensions": 9})
    assert (cut.status_code, cut.json()["error"]["param"]) == (400, "dimensions")


def test_prompt_beginnings_are_kept_within_their_bytes(files, tmp_path):
    with room_of(files, tmp_path) as room:
        registry = room.server.state.registry
        registry.prefixes.limit = 80_000
        skins = [
            dataclasses.replace(
                room.prompted, name=f"p{i}", prompt=Prompt(f"Number {i} of them. " * 4 + "{{ review }}:")
            )
            for i in range(8)
        ]
        for skin in skins:
            room.write(skin)
        room.request("POST", "/scan")
        for _ in range(2):
            for skin in skins:
                assert room.answer(skin.name) == room.said_alone(skin)
        assert 0 < registry.prefixes.cached_bytes <= 80_000
        assert 0 < len(registry.prefixes._cached) < 8
        for skin in skins:
            room.request("DELETE", f"/{skin.name}")
        end = time.monotonic() + 5
        while len(registry.prefixes._cached) and time.monotonic() < end:
            time.sleep(0.01)
        assert (registry.prefixes.cached_bytes, len(registry.prefixes._cached)) == (0, 0)


def test_read_skins_keep_the_id_of_their_card(files):
    from bedplate.skins.files import card_of, read_card

    for directory in files.skins:
        assert read_card(directory) == dataclasses.replace(card_of(read_skin(directory)), directory=directory)


def test_waiting_for_a_skin_ends_with_the_deadline_and_with_the_client(room, monkeypatch):
    """Others are served meanwhile; who has gone is forgotten; the skin is there when it has been loaded."""
    open_ = threading.Event()
    load = ServedSkin.load
    monkeypatch.setattr(ServedSkin, "load", lambda self: (self.name != "slow" or open_.wait(20)) and load(self))
    for seed, name in enumerate(("slow", "quick")):
        room.write(variant(room.tuned, seed, name))
    room.request("POST", "/scan")
    pooled = room.server.state.registry.pooled("slow")
    body = {"model": "slow", "messages": [{"role": "user", "content": TEXT}]}
    reply = room.server.post("/v1/chat/completions", json=body, headers={"x-request-timeout-seconds": "0.3"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
    with pytest.raises(httpx.ReadTimeout), httpx.Client(trust_env=False, timeout=0.3) as client:
        client.post(f"{room.server.url}/v1/chat/completions", json=body)
    end = time.monotonic() + 5
    while pooled.waiters and time.monotonic() < end:
        time.sleep(0.01)
    assert not pooled.waiters
    assert room.chat("quick").status_code == 200
    assert pooled.state is Residency.LOADING
    open_.set()
    assert room.chat("slow").status_code == 200


@pytest.mark.parametrize("name", ["a/b", "scan", "a/report", "ü ?#%2F", "x" * 255])
def test_a_skin_of_any_name_is_read_and_deleted_again(room, name):
    source = room.write(room.prompted)
    assert room.load_skin(source=source, name=name).status_code == 201
    place = f"/{quote(name, safe='')}"
    assert room.request("GET", place).json()["name"] == name
    assert room.chat(name).status_code == 200
    assert room.request("DELETE", place).json()["name"] == name
    assert room.request("GET", place).status_code == 404


@pytest.mark.parametrize("name", ["", "x" * 256, "a" * 200_000, "..", "a/../b", ".", "/a", "a/", "a//b", "a:b", "a\nb"])
def test_a_name_that_no_address_can_have_is_refused(room, name):
    source = room.write(room.prompted)
    refused = room.load_skin(source=source, name=name)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_name")
    assert len(refused.text) < 500


def test_a_name_is_bounded_on_every_way_in(room, files, tmp_path):
    room.write(dataclasses.replace(room.prompted, name="x" * 5000, directory=None), "long")
    assert "cannot be a model name" in room.request("POST", "/scan").json()["problems"][0]
    named = SkinConfig(source=files.skins[0], name="a/../b")
    base = BaseConfig(source=str(files.base))
    for config in (
        ServerConfig(bases=(base,), skins=(named,)),
        ServerConfig(bases=(base.model_copy(update={"name": "x" * 256}),)),
        ServerConfig(bases=(base,), routes={"..": RouteConfig(versions={"tiny": 1})}),
    ):
        with pytest.raises(UsageError, match="cannot be a model name"), loaded_server(config):
            pass


def test_a_skin_does_not_hide_behind_a_route(files, tmp_path):
    routes = {"canary": RouteConfig(versions={"prompted": 1}), "prompted": RouteConfig(versions={"prompted": 1})}
    with room_of(files, tmp_path, routes=routes) as room:
        source = room.write(room.prompted)
        refused = room.load_skin(source=source, name="canary")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_name")
        assert room.load_skin(source=source).status_code == 201  # its route leads to it
