"""A ladder's report in a real browser: nothing is fetched, nothing runs, it fits a phone, and all of it can be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from tests.browser.test_access import CONTRAST, UNNAMED
from tests.report.sample import report, row

from bedplate.report.html import adaptation_page

DESKTOP, PHONE = {"width": 1200, "height": 800}, {"width": 360, "height": 740}
UNBROKEN = "an-input-without-a-single-place-to-break-it" * 40
EVIL = "<img src='http://elsewhere.example/x.png' onerror='owned = 1'><script>owned = 1</script>"
NAME = "document.activeElement.getAttribute('aria-label') || document.activeElement.textContent"
OVERFLOW = """() => {
  const wide = document.documentElement.clientWidth;
  const inside = (e) => e.parentElement.closest(".scroll, svg, .skip") || e.matches(".skip");
  return [...document.querySelectorAll("body *")]
    .filter((e) => !inside(e) && e.getBoundingClientRect().right > wide + 1)
    .map((e) => e.tagName + " " + e.textContent.trim().slice(0, 40));
}"""


def crowded() -> dict[str, Any]:
    """Many rungs, long names, texts that do not break, and markup where users write."""
    values = report()
    names = [f"prompt_search@a-base-with-a-rather-long-name-{number}" for number in range(9)]
    values["task"] = f"task {EVIL}"
    values["rungs"] += [row(name, 0.5 + number / 30, 0.01 * number) for number, name in enumerate(names)]
    shown = values["examples"]["rows"]
    shown[0] |= {"text": UNBROKEN, "answers": dict.fromkeys(names, "good"), "scores": dict.fromkeys(names, 1.0)}
    shown[1] |= {"text": EVIL, "answers": {"lora": UNBROKEN}, "scores": {"lora": 0.25}}
    values["nominees"]["reasons"] = dict.fromkeys(names, "not nominated: " + UNBROKEN)
    values["data"]["notes"] = [UNBROKEN, EVIL]
    return values


SCROLLED = """() => [...document.querySelectorAll(".scroll")]
  .filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.getAttribute("aria-label"))"""
HEIGHTS = """() => [...document.querySelectorAll("[aria-label='Every rung'] tbody tr")]
  .map((e) => Math.round(e.getBoundingClientRect().height))"""
COVERED = """() => {
  const svg = document.querySelector("figure svg");
  const texts = [...svg.querySelectorAll("text")].map((e) => [e.textContent, e.getBoundingClientRect()]);
  const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
  const covered = ([name, a], i) => texts.slice(i + 1).filter(([, b]) => !apart(a, b)).map(([other]) => [name, other]);
  return texts.flatMap(covered);
}"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(adaptation_page(crowded()), "utf-8")
    return path


@contextmanager
def opened(browser: Browser, file: Path, viewport: Any = DESKTOP, scheme: Any = "light") -> Iterator[Page]:
    """The page; at the end, that it said nothing on the console, asked for nothing and ran nothing."""
    context = browser.new_context(viewport=viewport, color_scheme=scheme)
    page = context.new_page()
    console_lines: list[str] = []
    requested_urls: list[str] = []
    page.on("console", lambda message: console_lines.append(message.text))
    page.on("pageerror", lambda error: console_lines.append(str(error)))
    page.on("request", lambda request: requested_urls.append(request.url))
    page.goto(file.as_uri())
    yield page
    owned = page.evaluate("typeof owned")
    context.close()
    assert console_lines == []
    assert {url.partition("#")[0] for url in requested_urls} == {file.as_uri()}
    assert owned == "undefined"


@pytest.fixture(
    params=[
        pytest.param((DESKTOP, "light"), id="light-desktop"),
        pytest.param((DESKTOP, "dark"), id="dark-desktop", marks=pytest.mark.slow),
        pytest.param((PHONE, "light"), id="light-phone", marks=pytest.mark.slow),
        pytest.param((PHONE, "dark"), id="dark-phone"),
    ]
)
def page(request: pytest.FixtureRequest, browser: Browser, file: Path) -> Iterator[Page]:
    with opened(browser, file, *request.param) as page:
        yield page


def test_it_fits_its_screen_and_can_be_read(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate(OVERFLOW) == []
    worst = page.evaluate(CONTRAST)[:3]
    assert worst[0][0] >= 4.5, worst
    assert page.evaluate(UNNAMED) == []
    expect(page.locator("figure svg")).to_have_count(5)
    assert page.locator("svg").first.evaluate("e => e.getBoundingClientRect().height") > 100


def test_the_theme_reaches_the_drawings(browser: Browser, file: Path) -> None:
    colours: list[set[str]] = []
    for scheme in ("light", "dark"):
        with opened(browser, file, DESKTOP, scheme) as page:
            drawn = "e => [...e.querySelectorAll('path, text')].map((p) => getComputedStyle(p).fill)"
            colours.append(set(page.locator("figure svg").first.evaluate(drawn)))
    assert colours[0] != colours[1]


def test_keys_alone_reach_every_section_and_every_wide_table(browser: Browser, file: Path) -> None:
    with opened(browser, file, PHONE) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        expect(page).to_have_url(file.as_uri() + "#verdict")
        focused_names: list[str] = []
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement === document.body"):
                break
            name = page.evaluate(NAME)
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", name
            focused_names.append(name.strip())
        for section in ("Data card", "Every rung", "Learning curve", "Confusion", "Slices", "Bounds", "Skins"):
            assert any(name.startswith(section) for name in focused_names), section
        summary = page.locator("summary", has_text="2 tried")
        summary.focus()
        page.keyboard.press("Enter")
        expect(page.get_by_text("no template")).to_be_visible()


def test_user_text_stays_text(browser: Browser, file: Path) -> None:
    with opened(browser, file) as page:
        assert page.locator("img, script, iframe").count() == 0
        assert EVIL in page.locator("#examples").inner_text()
        assert page.locator("h1").inner_text() == f"task {EVIL}"


def test_at_1280_pixels_no_table_scrolls_and_the_rows_of_the_main_one_have_one_height(
    browser: Browser, file: Path
) -> None:
    with opened(browser, file, {"width": 1280, "height": 800}) as page:
        assert page.evaluate(SCROLLED) == []
        heights = page.evaluate(HEIGHTS)
        assert len(heights) == 12
        assert max(heights) - min(heights) <= 1, heights
        folded = page.locator("details", has_text="1 without a result: probe")
        expect(folded.get_by_text("no time")).to_be_hidden()
        folded.locator("summary").click()
        expect(folded.get_by_text("no time")).to_be_visible()


def test_labels_of_the_cost_picture_do_not_cover_each_other(browser: Browser, file: Path) -> None:
    with opened(browser, file, {"width": 1280, "height": 800}) as page:
        assert page.evaluate(COVERED) == []


def test_an_exploratory_pass_is_called_that_and_is_not_green(browser: Browser, tmp_path: Path) -> None:
    colours: dict[bool, str] = {}
    for exploratory in (True, False):
        values = report()
        values["verdict"]["exploratory"] = exploratory
        path = tmp_path / f"{exploratory}.html"
        path.write_text(adaptation_page(values), "utf-8")
        with opened(browser, path) as page:
            status = page.locator(".verdict b").first
            expect(status).to_have_text("EXPLORATORY PASS" if exploratory else "PASS")
            colours[exploratory] = status.evaluate("e => getComputedStyle(e).color")
    assert colours[True] != colours[False] == "rgb(21, 128, 61)"
