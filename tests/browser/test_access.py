"""Everybody can use the page: by keys alone, by ear, on a phone, in the dark, without motion."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from tests.serving.conftest import Server

from .test_page import last_text, ready, send, served, settings, stream_chunks

# The element with focus, and how it looks: name, tag, whether an outline is drawn.
FOCUS = """() => { const e = document.activeElement, s = getComputedStyle(e);
  const outlined = s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 2;
  return [e.id || e.value || e.textContent, e.tagName, outlined]; }"""

# WCAG 2.2, 1.4.3: contrast of each visible text against the nearest painted background.
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [R, G, B] = [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * R + 0.7152 * G + 0.0722 * B;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !e.checkVisibility() || e.disabled || e.closest(".unseen, noscript, option")) continue;
    const [a, b] = [light(rgba(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), e.tagName + " " + e.textContent.trim().slice(0, 40)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
}"""

# Controls without a name, references to ids that are not there, ids that are there twice.
UNNAMED = """() => {
  const wrong = [];
  for (const e of document.querySelectorAll("input:not([type=hidden]), textarea, button, a, iframe, dialog, summary")) {
    const by = (e.getAttribute("aria-labelledby") ?? "").split(" ").filter(Boolean);
    const name = e.getAttribute("aria-label") || by.map((id) => document.getElementById(id)?.textContent).join("")
      || [...(e.labels ?? [])].map((label) => label.textContent).join("") || e.title || e.textContent.trim();
    if (!name) wrong.push(e.outerHTML.slice(0, 90));
  }
  for (const e of document.querySelectorAll("[aria-labelledby], [aria-describedby], label[for]")) {
    for (const name of ["aria-labelledby", "aria-describedby", "for"]) {
      const id = e.getAttribute(name);
      if (id && !document.getElementById(id)) wrong.push(`${name}=${id}`);
    }
  }
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  return [...wrong, ...ids.filter((id, index) => ids.indexOf(id) !== index)];
}"""


def focus(page: Page) -> list[Any]:
    return page.evaluate(FOCUS)


def test_everything_is_reached_by_tab_and_shows_where_one_is(page: Page) -> None:
    page.locator("#skip").focus()
    names: list[str] = [focus(page)[0]]
    for _ in range(40):
        page.keyboard.press("Tab")
        name, tag, outlined = focus(page)
        if tag == "BODY":
            break
        assert outlined, name
        names.append(name)
    for focusable in (
        "skip",
        "to-chat",
        "to-compare",
        "theme",
        "keys",
        "search",
        "tiny",
        "reload",
        "message-0",
        "send",
    ):
        assert focusable in names, names
    assert names[0] == "skip"
    assert names.index("search") < names.index("message-0") < names.index("send")


def test_a_whole_conversation_by_keys_alone(page: Page, server: Server) -> None:
    page.keyboard.press("Alt+s")
    assert focus(page)[0] == "search"
    page.keyboard.type("tuned")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.get_by_role("radio", name="tuned", exact=True)).to_be_checked()
    page.keyboard.press("Alt+m")
    page.keyboard.type("works well")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("a day?")  # a question mark in a text is one
    page.keyboard.press("Enter")
    page.locator(".scores").wait_for()
    assert last_text(page) == server.skins["tuned"]("works well\na day?")
    assert page.locator(".turn.asked .text").inner_text() == "works well\na day?"
    page.keyboard.press("Alt+r")
    page.locator(".scores").wait_for()
    page.keyboard.press("Alt+p")
    expect(page.get_by_role("heading", name="Compare")).to_be_visible()
    page.keyboard.press("Alt+c")
    expect(page.get_by_role("heading", name="Chat")).to_be_visible()
    page.keyboard.press("Alt+n")
    expect(page.locator(".turn")).to_have_count(0)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    dialog = page.get_by_role("dialog", name="Shortcuts")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.keyboard.press("Tab")
    assert focus(page)[0] == "skip"
    page.keyboard.press("Enter")
    assert focus(page)[0] == "stage"
    assert "#stage" not in page.url


def test_what_is_heard_is_sentences_and_not_tokens(page: Page) -> None:
    page.evaluate(
        "window.heard = []; new MutationObserver(() => heard.push(document.getElementById('said').textContent))"
        ".observe(document.getElementById('said'), { childList: true })"
    )
    piece = {"choices": [{"index": 0, "delta": {"content": "One sentence. "}, "finish_reason": None}]}
    chunks = stream_chunks("")
    served(page, [chunks[0], *[piece] * 300, *chunks[2:]])
    send(page, "go")
    page.locator(".facts").wait_for()
    heard = page.evaluate("heard")
    assert heard[0] == "Answering."
    assert len(heard) <= 4
    assert "".join(heard[1:]).count("One sentence.") == 300
    region = page.locator("#said")
    assert region.get_attribute("aria-live") == "polite"
    assert page.locator(".turn.answer .text").get_attribute("aria-busy") is None


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        ("dark", 360),
        ("light", 1200),
        pytest.param("light", 360, marks=pytest.mark.slow),
        pytest.param("dark", 1200, marks=pytest.mark.slow),
    ],
)
def test_it_fits_and_can_be_read(browser: Browser, server: Server, scheme: Any, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 740}, color_scheme=scheme, has_touch=width < 400)
    page = context.new_page()
    ready(page, server)
    settings(page, max_tokens="30", temperature="0")
    send(page, "hi there " + "x" * 200)
    page.locator(".facts").wait_for()
    page.locator("#models-panel").evaluate("element => element.open = true")
    page.get_by_role("radio", name="tuned", exact=True).check()
    send(page, "it broke", "Input review")
    page.locator(".scores").wait_for()
    worst = page.evaluate(CONTRAST)
    page.get_by_role("link", name="Compare").click()
    send(page, "works", "Prompt")
    expect(page.locator(".column:has(dd)")).to_have_count(2)
    worst += page.evaluate(CONTRAST)
    page.get_by_role("button", name="Shortcuts", exact=True).click()
    worst += page.evaluate(CONTRAST)
    assert min(worst)[0] >= 4.5, min(worst)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(UNNAMED) == []
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 28)")
    context.close()


def test_touch_targets_on_a_phone_are_large(browser: Browser, server: Server) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740})
    page = context.new_page()
    ready(page, server)
    heights = page.locator("button:visible").evaluate_all("all => all.map(e => e.getBoundingClientRect().height)")
    assert min(heights) >= 44
    context.close()


def test_the_theme_is_chosen_and_kept(page: Page) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    backgrounds = []
    for theme in ("light", "dark", "auto"):
        page.get_by_role("button", name="Theme").click()
        expect(page.get_by_role("button", name=f"Theme: {theme}")).to_be_visible()
        backgrounds.append(page.evaluate(colour))
        if theme == "dark":
            page.reload()
            expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
            assert page.evaluate(colour) == backgrounds[-1]
    assert backgrounds == ["rgb(255, 255, 255)", "rgb(20, 23, 28)", "rgb(255, 255, 255)"]


def test_nothing_moves_for_those_who_want_no_motion(browser: Browser, server: Server) -> None:
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    page.goto(server.url)
    page.locator("#turns").evaluate(
        "e => e.insertAdjacentElement('afterend', document.createElement('p')).className = 'writing'"
    )
    assert page.locator(".writing").evaluate("e => getComputedStyle(e, '::after').animationName") == "none"
    context.close()
