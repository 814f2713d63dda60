"""Skins that were added, replaced and deleted while the server ran, after a restart; and whether routes are served."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serving.conftest import Files, Server, make_skins, running
from tests.serving.test_admin import variant

from bedplate.models.checkpoints.base import load_base
from bedplate.serving.durable.state_directory import StateDirectory
from bedplate.serving.server.app import loaded_server, server_config
from bedplate.serving.settings.server_config import RouteConfig, SkinConfig
from bedplate.skins.files import write_skin
from bedplate.skins.skin import Skin


@pytest.fixture(scope="module")
def tuned(files: Files) -> Skin:
    return make_skins(load_base(files.base))[1]


@dataclasses.dataclass
class Site:
    """A skins directory and a state directory, whose server starts again and again."""

    files: Files
    root: Path

    @property
    def shelf(self) -> Path:
        return self.root / "shelf"

    @contextlib.contextmanager
    def started(self, **settings: Any) -> Iterator[Server]:
        self.shelf.mkdir(exist_ok=True)
        state_settings = {"state": self.root / "state", "skins_directory": self.shelf}
        config = server_config(self.files.base, **{**state_settings, **settings})
        with loaded_server(config) as state, running(state) as url:
            yield Server(url, state, {})


@pytest.fixture
def site(files: Files, tmp_path: Path) -> Site:
    return Site(files, tmp_path)


def skins_of(server: Server) -> dict[str, str]:
    """The served skins: name → the directory that each came from."""
    rows = server.request("GET", "/admin/skins").json()["data"]
    return {row["name"]: Path(row["source"]).name for row in rows}


def route(server: Server, versions: dict[str, float]) -> None:
    assert server.request("PUT", "/admin/routes/reviews", json={"versions": versions}).status_code == 200


def test_a_canary_under_an_alias_outlives_a_restart(site, tuned):
    routes = {"reviews": RouteConfig(versions={"tuned": 1})}
    site.shelf.mkdir()
    write_skin(variant(tuned, 1), site.shelf / "lora1")
    with site.started(routes=routes) as server:
        write_skin(variant(tuned, 2), site.shelf / "a-newer-one")  # before the old one in the order of a scan
        added = server.post("/admin/skins", json={"source": "a-newer-one", "name": "tuned-next"})
        assert (added.status_code, added.json()["durable"]) == (201, True)
        route(server, {"tuned": 0, "tuned-next": 1})
    with site.started(routes=routes) as server:
        assert skins_of(server) == {"tuned": "lora1", "tuned-next": "a-newer-one"}
        answer = server.chat(model="reviews")
        assert (answer.status_code, answer.headers["x-bedplate-version"]) == (200, "tuned-next")
        unknown = server.chat(model="review")
        assert "the models are: tiny, tuned-next, tuned, reviews" in unknown.json()["error"]["message"]
        assert server.request("GET", "/ready").json() == {"status": "ok"}
        assert server.request("DELETE", "/admin/skins/tuned-next").json()["durable"]
    with site.started(routes=routes) as server:
        assert skins_of(server) == {"tuned": "lora1"}  # not the canary


def test_an_alias_whose_files_are_gone_is_said_and_comes_back_with_a_scan(site, tuned, caplog):
    with site.started() as server:
        write_skin(variant(tuned, 2), site.shelf / "lora2")
        assert server.post("/admin/skins", json={"source": "lora2", "name": "next"}).status_code == 201
    (site.shelf / "lora2").rename(site.root / "away")
    with site.started() as server:
        assert skins_of(server) == {}
        assert "'next'" in caplog.text
        assert "lora2" in caplog.text
        assert "'next'" in server.post("/admin/skins/scan").json()["problems"][0]
        (site.root / "away").rename(site.shelf / "lora2")
        assert server.post("/admin/skins/scan").json()["added"] == ["next", "tuned"]


def test_a_deleted_skin_stays_away_and_a_scan_says_why(site, tuned, caplog):
    site.shelf.mkdir()
    write_skin(variant(tuned, 1), site.shelf / "lora1")
    with site.started() as server:
        assert server.request("DELETE", "/admin/skins/tuned").json()["durable"]
        scanned = server.post("/admin/skins/scan").json()
        assert scanned["added"] == []
        assert "'tuned' was deleted" in scanned["problems"][0]
        assert "POST /admin/skins" in scanned["problems"][0]
    with site.started() as server:
        assert skins_of(server) == {}
        assert "'tuned' was deleted" in caplog.text
        assert server.post("/admin/skins", json={"source": "lora1"}).status_code == 201
    with site.started() as server:
        assert skins_of(server) == {"tuned": "lora1"}
        assert server.request("DELETE", "/admin/skins/tuned").status_code == 200
    shutil.rmtree(site.shelf / "lora1")
    write_skin(variant(tuned, 9), site.shelf / "lora1")  # another version
    with site.started() as server:
        assert skins_of(server) == {"tuned": "lora1"}


def test_a_replaced_name_stays_replaced_and_deleted(site, tuned):
    site.shelf.mkdir()
    for seed in (1, 2):
        write_skin(variant(tuned, seed), site.shelf / f"lora{seed}")
    with site.started() as server:
        assert skins_of(server) == {"tuned": "lora1"}
        assert server.post("/admin/skins", json={"source": "lora2", "replace": True}).status_code == 200
    with site.started() as server:
        assert skins_of(server) == {"tuned": "lora2"}
        assert server.request("DELETE", "/admin/skins/tuned").status_code == 200
        server.post("/admin/skins/scan")
        assert skins_of(server) == {}
    with site.started() as server:
        assert skins_of(server) == {}


def test_a_skin_of_the_servers_file_is_replaced_until_the_file_is_edited(site, tuned):
    given = {seed: write_skin(variant(tuned, seed), site.root / f"given{seed}") for seed in (1, 2)}
    file = {"skins": (SkinConfig(source=given[1]),)}
    with site.started(**file) as server:
        write_skin(variant(tuned, 3), site.shelf / "lora3")
        assert server.post("/admin/skins", json={"source": "lora3", "replace": True}).json()["durable"]
    with site.started(**file) as server:
        assert skins_of(server) == {"tuned": "lora3"}
    with site.started(skins=(SkinConfig(source=given[2]),)) as server:
        assert skins_of(server) == {"tuned": "given2"}
        deleted = server.request("DELETE", "/admin/skins/tuned").json()
        assert not deleted["durable"]  # the file names it
    with site.started(**file) as server:
        assert skins_of(server) == {"tuned": "given1"}


def test_changes_are_those_of_their_skins_directory(site, tuned):
    with site.started() as server:
        write_skin(variant(tuned, 2), site.shelf / "lora2")
        assert server.post("/admin/skins", json={"source": "lora2", "name": "next"}).status_code == 201
    elsewhere = site.root / "elsewhere"
    shutil.copytree(site.shelf, elsewhere)
    with site.started(skins_directory=elsewhere) as server:
        assert skins_of(server) == {"tuned": "lora2"}
        assert server.post("/admin/skins", json={"source": "lora2", "name": "second"}).status_code == 201
    with site.started() as server:
        assert skins_of(server) == {"next": "lora2", "tuned": "lora2"}


def test_a_change_that_cannot_be_saved_is_made_and_says_so(site, tuned, monkeypatch, tmp_path, caplog):
    """Two servers on one machine without a state directory of their own: the second has none."""
    monkeypatch.setenv("BEDPLATE_HOME", str(tmp_path / "home"))
    with site.started(state=None) as server, site.started(state=None) as second:
        assert server.state.part(StateDirectory).acquire()
        write_skin(variant(tuned, 2), site.shelf / "lora2")
        reply = second.post("/admin/skins", json={"source": "lora2", "name": "next"})
        assert (reply.status_code, reply.json()["durable"]) == (201, False)
        assert "will not outlive" in caplog.text
        assert second.chat(model="next").status_code == 200


def test_a_damaged_file_of_changes_is_named(site):
    from bedplate.core.errors import UsageError

    (site.root / "state").mkdir()
    (site.root / "state" / "skins.json").write_text("{")
    with pytest.raises(UsageError, match=r"skins\.json.*delete it"), site.started():
        pass


# --- readiness


def ready(server: Server) -> tuple[int, dict[str, Any]]:
    answer = server.request("GET", "/ready")
    return answer.status_code, answer.json()


def test_a_server_whose_routes_lead_nowhere_is_not_ready(site, tuned):
    site.shelf.mkdir()
    write_skin(variant(tuned, 1), site.shelf / "lora1")
    lost = RouteConfig(versions={"gone": 1, "also-gone": 1, "tuned": 0})
    with site.started(routes={"reviews": lost}) as server:
        status = {"status": "degraded", "routes_without_version": ["reviews"]}
        assert ready(server) == (503, status)
        refused = server.chat(model="reviews")  # not the version without weight
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "version_unavailable")
        with httpx.Client(trust_env=False) as client:
            assert client.get(f"{server.url}/health").json() == {"status": "ok"}
        assert server.post("/admin/skins", json={"source": "lora1", "name": "gone"}).status_code == 201
        assert ready(server) == (200, {"status": "ok"})
    routes = {"reviews": lost, "second": RouteConfig(versions={"tuned": 1})}
    with site.started(routes={**routes, "reviews": RouteConfig(versions={"away": 1})}) as server:
        assert ready(server) == (200, {"status": "degraded", "routes_without_version": ["reviews"]})
        metrics = server.request("GET", "/metrics").text
        assert 'bedplate:route_up{route="reviews"} 0.0' in metrics
        assert 'bedplate:route_up{route="second"} 1.0' in metrics


def test_the_saved_changes_are_one_readable_file(site, tuned):
    with site.started() as server:
        write_skin(variant(tuned, 2), site.shelf / "lora2")
        server.post("/admin/skins", json={"source": "lora2", "name": "next"})
        identity = server.request("GET", "/admin/skins/next").json()["id"]
    saved = json.loads((site.root / "state" / "skins.json").read_text())
    added = {"next": {"source": "lora2", "id": identity, "instead_of": None}}
    assert saved == {str(site.shelf.resolve()): {"added": added, "removed": {}}}
