"""The page at `/` in a real browser: what it shows is what the API answers, and it can be used by everybody."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect
from tests.serving.conftest import SKINS, Server

from .conftest import USD_PER_HOUR, PageWatch

NUMBERS = ("first token", "tokens/s", "prompt", "cached", "completion", "latency", "price")


def choose(page: Page, name: str) -> None:
    page.get_by_role("radio", name=name, exact=True).check()


def send(page: Page, text: str, label: str = "Message") -> None:
    page.get_by_label(label, exact=True).fill(text)
    page.keyboard.press("Enter")


def settings(page: Page, **values: str) -> None:
    page.locator("#settings").evaluate("element => element.open = true")
    for name, value in values.items():
        page.locator(f"#{name.replace('_', '-')}").fill(value)


def ready(page: Page, server: Server) -> None:
    """Open the page, until it has its models (which a phone does not show at first)."""
    page.goto(server.url)
    page.locator("input[value=tiny]").wait_for(state="attached")


def last_text(page: Page) -> str:
    return page.locator(".turn.answer .text").last.evaluate("element => element.textContent")


def served(page: Page, chunks: list[dict[str, Any]], *, end: str = "data: [DONE]\n\n") -> None:
    """Answers chats in the server's place, where a real model cannot be made to say something."""

    def answer(route: Route) -> None:
        body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route("**/v1/chat/completions", answer)


def stream_chunks(text: str) -> list[dict[str, Any]]:
    choice = {"index": 0, "finish_reason": None}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
    return [
        {"choices": [choice | {"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [choice | {"delta": {"content": text}}]},
        {"choices": [choice | {"delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": usage, "bedplate": {"cost_usd": 0.25}},
    ]


def test_it_lists_the_models_and_finds_them(page: Page, page_watch: PageWatch) -> None:
    names = page.get_by_role("radio").evaluate_all("boxes => boxes.map(box => box.value)")
    assert names == ["tiny", *SKINS]
    page.get_by_label("Search models").fill("LORA")
    expect(page.get_by_role("radio")).to_have_count(1)
    page.get_by_label("Search models").fill("nothing like it")
    expect(page.get_by_text("No model matches the search.")).to_be_visible()
    assert {"/", "/web/app.js", "/web/style.css", "/v1/models"} <= set(page_watch.paths)


def test_the_chat_streams_what_the_api_answers(page: Page, server: Server) -> None:
    settings(page, temperature="0", max_tokens="24", system="the answer is yes")
    send(page, "hi there")
    page.locator(".facts").wait_for()
    system = {"role": "system", "content": "the answer is yes"}
    first = [system, {"role": "user", "content": "hi there"}]
    reply = server.chat(messages=first, max_tokens=24, temperature=0).json()
    reply_text = reply["choices"][0]["message"]["content"]
    assert last_text(page) == reply_text
    facts = page.locator(".facts").inner_text()
    assert f"completion {reply['usage']['completion_tokens']} " in facts
    assert f"prompt {reply['usage']['prompt_tokens']} " in facts
    assert all(name in facts for name in NUMBERS)

    send(page, "and then?")  # the second turn carries the first
    expect(page.locator(".facts")).to_have_count(2)
    messages = [*first, {"role": "assistant", "content": reply_text}, {"role": "user", "content": "and then?"}]
    whole = server.chat(messages=messages, max_tokens=24, temperature=0).json()
    assert last_text(page) == whole["choices"][0]["message"]["content"]
    assert f"prompt {whole['usage']['prompt_tokens']} " in page.locator(".facts").last.inner_text()

    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator(".turn.answer")).to_have_count(2)
    expect(page.locator(".facts")).to_have_count(2)
    assert last_text(page) == whole["choices"][0]["message"]["content"]
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".turn")).to_have_count(0)


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of at least 15 ms that choose no end."""
    import time

    import torch
    from tests.tiny import SPECIAL

    from bedplate.inference.engine import runner

    sample = runner.sample

    def slow(logits: Any, rows: Any) -> Any:
        time.sleep(0.015)
        logits[:, : len(SPECIAL)] = -torch.inf
        return sample(logits, rows)

    monkeypatch.setattr(runner, "sample", slow)


@pytest.mark.usefixtures("slowly")
@pytest.mark.parametrize("trigger", [pytest.param("button", marks=pytest.mark.slow), "Escape"])
def test_stop_ends_the_answer_here_and_on_the_server(page: Page, server: Server, trigger: str) -> None:
    settings(page, max_tokens="400", temperature="1.5")
    send(page, "hi")
    expect(page.locator(".turn.answer .text")).to_have_text(re.compile(r"[^\n]{20}"))
    if trigger == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    expect(page.locator(".facts")).to_have_text("stopped")
    assert server.idle(2.0)
    assert len(last_text(page)) >= 20
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"


def test_labels_come_with_their_scores(page: Page, server: Server) -> None:
    choose(page, "tuned")
    send(page, "it broke after a day", "Input review")
    page.locator(".scores").wait_for()
    prediction = server.skins["tuned"].predict(["it broke after a day"])[0]
    assert last_text(page) == prediction.output
    import math

    ranked_scores = sorted(prediction.scores.items(), key=lambda pair: -pair[1])
    shown = page.locator(".scores").inner_text().split("\n")
    assert shown == [part for label, score in ranked_scores for part in (label, f"{100 * math.exp(score):.1f} %")]
    widths = page.locator(".scores .bar").evaluate_all("bars => bars.map(bar => bar.style.width)")
    assert [float(width.rstrip("%")) for width in widths] == [
        round(100 * math.exp(score), 1) for _, score in ranked_scores
    ]


def test_a_skin_of_several_inputs_has_a_field_for_each(page: Page, server: Server) -> None:
    choose(page, "pair")
    page.get_by_label("Input question").fill('is it "good"?')
    send(page, "yes\nor no", "Input answer")
    page.locator(".scores").wait_for()
    assert last_text(page) == server.skins["pair"]({"question": 'is it "good"?', "answer": "yes\nor no"})


def test_a_text_skin_keeps_its_own_settings(page: Page, server: Server) -> None:
    choose(page, "writer")
    send(page, "this product is great", "Input review")
    page.locator(".facts").wait_for()
    assert last_text(page) == server.skins["writer"]("this product is great")


def test_models_are_compared_side_by_side(page: Page, server: Server) -> None:
    page.get_by_role("link", name="Compare").click()
    page.get_by_role("checkbox", name="tiny", exact=True).check()
    page.get_by_role("checkbox", name="prompted", exact=True).check()
    page.get_by_role("checkbox", name="pair", exact=True).check()
    settings(page, temperature="0", max_tokens="12")
    page.get_by_label("Input question").fill("q")
    page.get_by_label("Input answer").fill("a")
    send(page, "works well", "Prompt")
    columns = page.locator(".column")
    expect(columns).to_have_count(3)
    expect(page.locator(".column:has(dd)")).to_have_count(3)
    boxes = [columns.nth(index).bounding_box() for index in (0, 1)]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    base = server.chat(messages=[{"role": "user", "content": "works well"}], max_tokens=12, temperature=0).json()
    texts = [columns.nth(i).locator(".text").evaluate("e => e.textContent") for i in range(3)]
    assert texts[0] == base["choices"][0]["message"]["content"]
    assert texts[1] == server.skins["prompted"]("works well")
    assert texts[2] == server.skins["pair"]({"question": "q", "answer": "a"})
    numbers = dict(
        zip(columns.nth(0).locator("dt").all_inner_texts(), columns.nth(0).locator("dd").all_inner_texts(), strict=True)
    )
    assert tuple(numbers)[: len(NUMBERS)] == NUMBERS
    assert numbers["completion"] == str(base["usage"]["completion_tokens"])
    assert re.fullmatch(r"[\d.]+ (ms|s)", numbers["first token"])
    assert re.fullmatch(r"\d+\.\d|–", numbers["tokens/s"])  # none where all of it came at once
    assert numbers["price"].startswith("$")
    assert float(numbers["price"].lstrip("$")) < USD_PER_HOUR / 3600


def test_a_report_opens_and_can_do_nothing(page: Page, server: Server, page_watch: PageWatch) -> None:
    expect(page.get_by_role("button", name="Report of this skin")).to_be_hidden()
    choose(page, "prompted")
    page.get_by_role("button", name="Report of this skin").click()
    frame = page.frame_locator("iframe")
    expect(frame.get_by_role("heading")).to_have_text("Report of prompted")
    assert frame.get_by_role("heading").evaluate("e => getComputedStyle(e).color") == "rgb(1, 2, 3)"
    page.keyboard.press("Escape")
    expect(page.locator("#report-dialog")).to_be_hidden()
    assert all("script" in error for error in page_watch.errors)  # Chromium says that it ran none
    page_watch.errors.clear()
    choose(page, "writer")
    expect(page.get_by_role("button", name="Report of this skin")).to_be_hidden()
    missing = httpx.get(f"{server.url}/skins/writer/report", trust_env=False)
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "no_report"


def test_errors_are_the_servers_own_message(page: Page, server: Server, page_watch: PageWatch) -> None:
    settings(page, max_tokens="511")
    send(page, "hi there")
    reply = server.chat(messages=[{"role": "user", "content": "hi there"}], max_tokens=511)
    expect(page.locator(".turn .error")).to_have_text(reply.json()["error"]["message"])
    assert reply.status_code == 400
    assert any("400" in error for error in page_watch.errors)  # the console's own line
    page_watch.errors.clear()
    served(page, stream_chunks("half")[:2], end="")
    send(page, "again")
    expect(page.locator(".turn .error").last).to_contain_text("broke off")
    assert last_text(page) == "half"
    page.unroute("**/v1/chat/completions")
    failed = {"error": {"message": "the engine tripped", "type": "server_error", "param": None, "code": "x"}}
    served(page, [*stream_chunks("half")[:2], failed], end="")
    send(page, "and again")
    expect(page.locator(".turn .error").last).to_have_text("the engine tripped")


MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>&amp;</div>"


def test_markup_stays_text(page: Page) -> None:
    served(page, stream_chunks(MARKUP))
    send(page, MARKUP)
    page.locator(".facts").wait_for()
    assert last_text(page) == MARKUP
    assert page.locator(".turn.asked .text").evaluate("e => e.textContent") == MARKUP
    assert page.locator("#turns img, #turns script").count() == 0
    assert page.title() == "Bedplate"
    facts = page.locator(".facts").inner_text()
    assert "prompt 9 · cached 4 · completion 3" in facts
    assert "price $0.2500" in facts


def test_a_long_answer_does_not_freeze_the_page(page: Page) -> None:
    line = "a line of a long answer, with some words in it\n"
    chunks = stream_chunks("")
    body = [{"choices": [{"index": 0, "delta": {"content": line}, "finish_reason": None}]}] * 8000
    served(page, [*chunks[:1], *body, *chunks[2:]])
    page.evaluate(
        "window.longest = 0; let last = performance.now();"
        "setInterval(() => { const now = performance.now(); longest = Math.max(longest, now - last); last = now; }, 10)"
    )
    send(page, "go on")
    page.locator(".facts").wait_for(timeout=20_000)
    assert last_text(page) == line * 8000
    assert page.locator(".turn.answer .text > div").count() > 50
    assert page.evaluate("window.longest") < 2000


def test_a_key_is_asked_for_once_and_kept_by_the_tab(page: Page, page_watch: PageWatch) -> None:
    keys: list[str | None] = []

    def guarded(route: Route) -> None:
        keys.append(route.request.headers.get("authorization"))
        if keys[-1] == "Bearer right":
            route.continue_()
        else:
            error = {"message": "no such key: give another", "type": "authentication_error", "param": None, "code": "k"}
            route.fulfill(status=401, json={"error": error})

    page.route("**/v1/**", guarded)
    page.get_by_role("button", name="Reload the list").click()
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).to_be_visible()
    expect(dialog.locator("#key-reason")).to_be_hidden()  # nothing was wrong yet
    expect(dialog).to_contain_text("Whoever runs it gives keys out")
    for key in ("wrong", "right"):
        dialog.get_by_label("Key of this server").fill(key)
        # It closes before the request is sent, and opens again after the answer to a wrong key.
        with page.expect_response(lambda response: "/v1/" in response.url):
            page.keyboard.press("Enter")
        if key == "wrong":
            expect(dialog).to_be_visible()
            expect(dialog.get_by_label("Key of this server")).to_have_value("")
            expect(dialog.get_by_role("alert")).to_have_text("no such key: give another")
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("radio")).to_have_count(1 + len(SKINS))
    assert page.evaluate("sessionStorage.getItem('bedplate.key')") == "right"
    assert keys == [None, "Bearer wrong", "Bearer right"]
    assert page.evaluate("JSON.stringify(localStorage)") == "{}"
    choose(page, "tuned")
    with page.expect_request(lambda request: request.url.endswith("/skins/tuned/report")) as sent:
        page.get_by_role("button", name="Report of this skin").click()
    assert (sent.value.method, sent.value.post_data) == ("POST", "key=right")
    expect(page.frame_locator("iframe").get_by_role("heading")).to_have_text("Report of tuned")
    page_watch.errors.clear()


@pytest.mark.parametrize("width", [360, pytest.param(1200, marks=pytest.mark.slow)])
def test_long_names_and_small_prices_are_shown_whole(browser: Browser, server: Server, width: int) -> None:
    """Nothing is cut or pushed out of the window, and no price is a power of ten."""
    long = "reviews-sentiment-" + "lora_on_a_base_with_a_long_name." * 4
    models = [{"id": name, "object": "model", "bedplate": {"kind": "base"}} for name in (long, f"{long}2")]
    context = browser.new_context(viewport={"width": width, "height": 740})
    page = context.new_page()
    page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": models}))
    page.goto(server.url)
    page.locator(f"input[value='{long}']").wait_for(state="attached")
    page.locator("#models-panel").evaluate("element => element.open = true")
    chunks = stream_chunks("yes")
    for usd, shown in ((1.2345e-7, "$0.00000012"), (0.00456, "$0.0046"), (0.25, "$0.2500"), (12345.678, "$12,345.68")):
        page.unroute("**/v1/chat/completions")
        served(page, [*chunks[:3], chunks[3] | {"bedplate": {"cost_usd": usd}}])
        send(page, "hi")
        expect(page.locator(".facts").last).to_contain_text(f"price {shown}")
    page.get_by_role("link", name="Compare").click()
    send(page, "hi", "Prompt")
    expect(page.locator(".column:has(dd)")).to_have_count(2)
    for selector in (".model span", ".column h3", ".numbers dd", "#compare-about"):
        for cell in page.locator(selector).all():
            assert cell.evaluate("e => e.scrollWidth <= e.clientWidth + 1"), selector
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    expect(page.locator(".column h3").first).to_have_text(long)
    context.close()


def test_live_numbers_come_from_the_metrics(page: Page, page_watch: PageWatch) -> None:
    readings = iter(range(1000))

    def metrics(route: Route) -> None:
        n = next(readings)
        route.fulfill(
            content_type="text/plain",
            body=f"""# HELP bedplate:num_requests_running Rows.
# TYPE bedplate:num_requests_running gauge
bedplate:num_requests_running{{model_name="a"}} 2
bedplate:num_requests_running{{model_name="b}} 7"}} 1
bedplate:num_requests_waiting 4
bedplate:prefix_cache_queries_total 200
bedplate:prefix_cache_hits_total 50
bedplate:generation_tokens_total {100 * n}
bedplate:time_to_first_token_seconds_sum {0.25 * n}
bedplate:time_to_first_token_seconds_count {n}
bedplate:request_cost_usd_total 1.5
something_else NaN
""",
        )

    settings(page, max_tokens="8")
    send(page, "hi")  # the server's own first
    page.locator(".facts").wait_for()
    page.get_by_text("Live numbers").click()
    live_values = page.locator("#live-numbers dd")
    expect(live_values.first).to_have_text("0")
    expect(live_values.nth(3)).to_have_text(re.compile(r"^\d+ ms$"))
    page.route("**/metrics", metrics)
    page.get_by_text("Live numbers").click()
    page.get_by_text("Live numbers").click()
    live = page.locator("#live-numbers")
    expect(live).to_contain_text("250 ms")
    text = live.inner_text()
    assert re.search(r"Running\s+3\s", text)
    assert re.search(r"Waiting\s+4\s", text)
    assert "25.0 %" in text
    assert "$1.5000" in text
    rate = re.search(r"Tokens/s\s+([\d.]+)", text)
    assert rate is not None
    assert 50 < float(rate[1]) < 101
    page.unroute("**/metrics")
    page.route("**/metrics", lambda route: route.fulfill(status=404, json={"error": {"message": "no route"}}))
    expect(page.locator("#live-note")).to_have_text("This server has no /metrics.")
    page_watch.errors.clear()


def test_files_have_their_types_policies_and_tags(server: Server) -> None:
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        types = {
            "": "text/html",
            "web/style.css": "text/css",
            "web/app.js": "text/javascript",
            "web/icon.svg": "image/svg",
        }
        for path, media_type in types.items():
            reply = client.get(f"/{path}")
            assert reply.headers["content-type"].startswith(media_type)
            assert reply.headers["x-content-type-options"] == "nosniff"
            policy = reply.headers["content-security-policy"]
            assert policy.startswith("default-src 'self';")
            assert "unsafe" not in policy
            revalidated = client.get(f"/{path}", headers={"if-none-match": f'"x", W/{reply.headers["etag"]}'})
            assert (revalidated.status_code, revalidated.content) == (304, b"")
        for path in (
            "web/app.py",
            "web/..%2fpages.py",
            "web/",
            "web/none.js",
            "skins/none/report",
            "skins/tiny/report",
        ):
            missing = client.get(f"/{path}")
            assert missing.status_code == 404, path
            assert set(missing.json()["error"]) == {"message", "type", "param", "code"}
        report = client.get("/skins/prompted/report")
        assert report.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
        assert "unsafe" in client.post("/skins/prompted/report", data={"key": "any"}).headers["content-security-policy"]
        assert client.post("/skins/prompted/report", content=b"x" * 5000).status_code == 413


def test_a_server_that_goes_away_is_named(browser: Browser, server: Server) -> None:
    context = browser.new_context()
    page = context.new_page()
    ready(page, server)
    context.set_offline(True)
    send(page, "hi")
    expect(page.locator(".turn .error")).to_have_text("The server cannot be reached.")
    context.close()
