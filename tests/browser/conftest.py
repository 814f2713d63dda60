"""A real server with a tiny base and skins, and Debian's Chromium in front of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright
from tests.serving.conftest import KERNEL, Files, Server, files, running

from bedplate.inference.predict.classical import ClassicalPredictor
from bedplate.inference.predict.predictor import Predictor
from bedplate.serving.server.app import loaded_server
from bedplate.skins.files import read_skin, write_skin

__all__ = ["files"]

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
REPORT = """<!doctype html><title>r</title><style>h1 {{ color: rgb(1, 2, 3) }}</style>
<h1>Report of {name}</h1><script>document.querySelector("h1").textContent = "script ran"</script>"""
USD_PER_HOUR = 0.5


def chromium() -> str:
    """Where Chromium is. Where it is not, its tests are skipped, and the run's summary says so."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("BEDPLATE_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("NO CHROMIUM: the page was not tested in a browser (install the package chromium)")
    return path


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what needs a browser, of which `make test` runs nothing and `make browser` all but the slow."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Not for the whole session: while Playwright runs, its thread has an event loop, and other tests' `asyncio.run`
    would be refused."""
    path = chromium()
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield started
        started.close()


@pytest.fixture(scope="session")
def server(files: Files) -> Iterator[Server]:
    for path in files.skins[:2]:
        write_skin(read_skin(path), path, {"report.html": REPORT.format(name=path.name).encode()}, replace=True)
    settings = {"price": {"usd_per_hour": USD_PER_HOUR, "as_of": "2026-11-24"}}
    with (
        loaded_server(files.base, files.skins, **settings) as state,
        running(state) as url,
        loaded_server(files.base, kernel=KERNEL) as reference_state,
    ):
        skins = {path.name: read_skin(path) for path in files.skins}
        predictors = {
            name: Predictor(reference_state.registry.engines[0], skin)
            if skin.classical is None
            else ClassicalPredictor(skin)
            for name, skin in skins.items()
        }
        yield Server(url, state, predictors)


@dataclass
class PageWatch:
    """What a page did that it should not have done: errors, and requests to elsewhere."""

    host: str
    errors: list[str] = field(default_factory=list[str])
    elsewhere: list[str] = field(default_factory=list[str])
    paths: list[str] = field(default_factory=list[str])

    def console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.errors.append(message.text)

    def request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        self.paths.append(parts.path)
        if parts.netloc != self.host:
            self.elsewhere.append(request.url)

    def watch(self, page: Page) -> None:
        page.on("console", self.console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self.request)


@pytest.fixture
def page_watch(server: Server) -> PageWatch:
    return PageWatch(urlsplit(server.url).netloc)


@pytest.fixture
def page(browser: Browser, server: Server, page_watch: PageWatch) -> Iterator[Page]:
    """The loaded page of a fresh profile, 1200 by 800. Any console error fails its test."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    context.set_default_timeout(10_000)
    opened = context.new_page()
    page_watch.watch(opened)
    opened.goto(server.url)
    opened.get_by_role("radio", name="tiny", exact=True).wait_for()
    yield opened
    context.close()
    assert page_watch.errors == []
    assert page_watch.elsewhere == []
