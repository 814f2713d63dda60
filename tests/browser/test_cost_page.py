"""The cost model's pages: what a browser computes is what Python does, and everybody can use them."""

from __future__ import annotations

import itertools
import json
import random
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import yaml
from playwright.sync_api import Browser, Locator, Page, expect
from tests.economics.decisions.builders import MACHINE, PRICES, case_values
from tests.rows import slow_unless

from bedplate.cli.main import main
from bedplate.core.errors import UsageError
from bedplate.economics import plan
from bedplate.economics.costs.decisions import explanation, load_case
from bedplate.economics.costs.decisions.decision import solve
from bedplate.economics.costs.decisions.question import Question, read_question
from bedplate.economics.numbers.money import usd
from bedplate.economics.serving.replica import ReplicaEngine, replicas_of
from bedplate.economics.serving.serving_cost import LatencyTarget, load_curve, plan_cases
from bedplate.economics.serving.simulation import Traffic

from .conftest import PageWatch
from .test_access import CONTRAST, FOCUS, UNNAMED

EXAMPLES = Path(__file__).parents[2] / "examples/decide"
TRAIN = ("llama-3.1-8b", "--tokens", "1T", "--device", "h100", "--devices", "64")
SERVE = (
    *("llama-3.2-1b", "--device", "a100-80gb", "--devices", 2, "--calls-per-day", "5e6", "--prompt-tokens", "100-500"),
    *("--output-tokens", 4, "--skin-tokens", 200, "--max-rows", 24, "--p95-ms", 60),
)
REL_TOLERANCE = 1e-9
QUICK_SCREENS = {
    ("training", "dark", 360),
    ("serving", "light", 360),
    ("decision", "light", 360),
    ("decision", "dark", 1200),
}

Opener = Callable[..., Page]


def written(path: Path, verb: str, *arguments: object) -> Path:
    """A page of the command line."""
    with pytest.raises(SystemExit) as ended:
        main(["plan", verb, *map(str, arguments), "--page", str(path), "--json"])
    assert ended.value.code == 0
    return path


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opener]:
    """Opens a page's file. An error, a warning or a request to anywhere fails the test."""
    page_watch, contexts = PageWatch(""), []

    def opener(path: Path, width: int = 1200, scheme: Any = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        context.set_default_timeout(10_000)
        page = context.new_page()
        page_watch.watch(page)
        page.goto(path.as_uri())
        page.locator("[data-figure]").first.wait_for(state="attached")
        return page

    yield opener
    for context in contexts:
        context.close()
    assert page_watch.errors == []
    assert page_watch.elsewhere == []
    assert all(path.endswith(".html") for path in page_watch.paths)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("pages") / "train.html", "train", *TRAIN)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("pages") / "serve.html", "serve", *SERVE)


@pytest.fixture(scope="module")
def decision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "decide.html"
    return written(path, "decide", EXAMPLES / "open_weights_at_volume.yaml")


# --- moving and reading


def slider(page: Page, name: str) -> Locator:
    return page.locator(f"input[type=range][data-name={json.dumps(name)}]")


def slide(page: Page, name: str, share: float) -> None:
    control = slider(page, name)
    control.fill(str(round(share * int(control.get_attribute("max") or 0))))


def typed(page: Page, name: str) -> str:
    return page.locator(f"input[type=text][data-name={json.dumps(name)}]").input_value()


def enter(page: Page, name: str, text: str) -> Locator:
    field = page.locator(f"input[type=text][data-name={json.dumps(name)}]")
    field.fill(text)
    field.press("Enter")
    drawn(page)  # nobody types the next number before this one is drawn, which would take a complaint about it away
    return field


def drawn(page: Page) -> None:
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def moved(page: Page) -> dict[str, float]:
    """What was moved, with all digits, as the address keeps it."""
    drawn(page)
    return {name: float(value) for name, value in parse_qsl(urlsplit(page.url).fragment)}


def figures(page: Page) -> dict[str, Any]:
    """By name: the number, or (low, number, high) where a figure has a range."""
    values_by_name: dict[str, Any] = page.locator("dd[data-figure]").evaluate_all(
        """all => Object.fromEntries(all.filter((e) => e.querySelector("data")).map((e) => {
          const value = Number(e.querySelector("data").value), { figure, low, high } = e.dataset;
          return [figure, low === undefined ? value : [Number(low), value, Number(high)]];
        }))"""
    )
    return values_by_name


def lines(page: Page, figure: str) -> list[str]:
    return page.locator(f"[data-figure={figure}] li").evaluate_all("all => all.map((e) => e.textContent)")


def terminal(page: Page) -> list[str]:
    """The command that the page says does the same."""
    drawn(page)
    return shlex.split(page.get_by_label("Command").inner_text(), comments=True)[2:]


def answered(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> dict[str, Any]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--json"])
    assert ended.value.code == 0
    return json.loads(capsys.readouterr().out)


# --- training


def trained(values: Mapping[str, float]) -> plan.TrainingPlan:
    overrides = {name: values[name] for name in ("overhead", "usd_per_hour", "usd_per_kwh") if name in values}
    return plan.train(
        "llama-3.1-8b",
        values.get("tokens", 1e12),
        plan.device("h100"),
        int(values.get("devices", 64)),
        mfu_share=values.get("mfu"),
        **overrides,
    )


def check_training(page: Page, values: Mapping[str, float]) -> None:
    expected, shown = trained(values), figures(page)
    for name in ("mfu", "gpu_hours", "days", "usd", "kwh", "energy_usd"):
        figure = getattr(expected, name)
        assert shown[name] == pytest.approx([figure.low, figure.central, figure.high], rel=REL_TOLERANCE), (
            name,
            values,
        )
    for name in ("parameters", "flops", "tokens_per_second_per_device", "global_batch_tokens", "bytes_per_device"):
        assert shown[name] == pytest.approx(getattr(expected, name), rel=REL_TOLERANCE), (name, values)
    assert page.locator("[data-figure=layout]").inner_text() == expected.as_json()["layout"]["text"]
    assert page.locator("#headline").inner_text().count(usd(expected.usd.central)) == 1  # pyright: ignore


def test_training_is_computed_as_python_does(opened: Opener, training: Path) -> None:
    page = opened(training)
    check_training(page, {})
    rng = random.Random(1)
    for trial in range(2):
        names = ["tokens", "devices", "overhead", "usd_per_hour", "usd_per_kwh", "mfu"]
        for name in names if trial % 2 else rng.sample(names, 2):
            slide(page, name, rng.random())
        check_training(page, moved(page))
    page.get_by_role("button", name="Back to what was stated").click()
    assert moved(page) == {}
    check_training(page, {})


def test_the_terminal_says_the_same(opened: Opener, training: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = opened(training)
    enter(page, "tokens", "300B")
    enter(page, "devices", "128")
    enter(page, "mfu", "41 %")
    enter(page, "usd_per_hour", "$2.25")
    assert moved(page) == {"tokens": 3e11, "devices": 128, "mfu": 0.41, "usd_per_hour": 2.25}
    printed = answered(capsys, ["plan", *terminal(page)])
    assert (printed["tokens"], printed["devices"], printed["mfu"]) == (3e11, 128, 0.41)
    assert figures(page)["usd"] == pytest.approx([printed["usd"]] * 3, rel=REL_TOLERANCE)


def test_an_address_with_what_was_moved_opens_as_it_was(opened: Opener, training: Path) -> None:
    page = opened(training)
    slide(page, "tokens", 0.3)
    slide(page, "usd_per_hour", 0.9)
    values, shown = moved(page), figures(page)
    page.reload()
    assert moved(page) == values
    assert figures(page) == shown
    page.goto(f"{training.as_uri()}#tokens=many&devices=&nothing=1")
    page.reload()
    assert moved(page) == {}


def test_the_loss_is_that_of_the_fit(opened: Opener, training: Path) -> None:
    from bedplate.economics.training.scaling_laws import EPOCH, compute_optimal

    page = opened(training)
    training_plan = trained({})
    best = compute_optimal(training_plan.flops)
    chosen = page.locator("[data-figure=chosen]").inner_text()
    assert f"loss {EPOCH.loss(training_plan.parameters, 1e12):.3f}" in chosen
    optimum = page.locator("[data-figure=optimum]").inner_text()
    assert f"{best.parameters / 1e9:.3g} B parameters on {best.tokens / 1e9:.3g} B tokens" in optimum
    assert f"loss {best.loss:.3f}" in optimum


def test_where_no_layout_fits_the_page_says_why(opened: Opener, tmp_path: Path) -> None:
    from bedplate.economics.training.layout_search import DoesNotFit

    big = ("llama-3.1-70b", "--tokens", "1T", "--device", "a100-80gb", "--devices", "64")
    page = opened(written(tmp_path / "big.html", "train", *big))
    enter(page, "devices", "4")
    assert moved(page) == {"devices": 4}
    with pytest.raises(DoesNotFit) as refused:
        plan.train("llama-3.1-70b", 1e12, plan.device("a100-80gb"), 4)
    assert page.locator("[data-figure=layout]").inner_text() == str(refused.value)
    assert "does not fit" in page.locator("#headline").inner_text()
    assert "bytes_per_device" not in figures(page)


def test_without_a_price_there_are_no_dollars_until_one_is_given(opened: Opener, tmp_path: Path) -> None:
    from bedplate.economics.hardware.devices import DEVICES

    name = next(name for name, device in DEVICES.items() if device.rental is None)
    page = opened(written(tmp_path / "p.html", "train", "smollm2-135m", "--tokens", "1B", "--device", name))
    assert "no price" in page.locator("#headline").inner_text()
    assert "usd" not in figures(page)
    enter(page, "usd_per_hour", "1")  # where the slider stands already
    hours = figures(page)["gpu_hours"]
    assert moved(page) == {"usd_per_hour": 1}
    assert figures(page)["usd"] == pytest.approx(hours, rel=REL_TOLERANCE)


# --- serving


def check_serving(page: Page, values: Mapping[str, float]) -> None:
    device = plan.device("a100-80gb")
    traffic = Traffic(plan.lengths("100-500"), plan.lengths("4"), 200)
    price = values.get("usd_per_hour")
    replicas = replicas_of(
        "llama-3.2-1b",
        traffic,
        device,
        2,
        engine=ReplicaEngine(24, 4096),
        usd_per_hour=None if price is None else price / 2,
    )
    shown = {name: typed(page, f"{name}_seconds") for name in ("total", "first_token")}
    total = None if shown["total"] == "none" else values.get("total_seconds", 0.06)
    first = None if shown["first_token"] == "none" else values["first_token_seconds"]
    arguments = (replicas, traffic, values.get("calls_per_day", 5e6))
    keywords = {
        "peak_factor": values.get("peak_factor", 3.0),
        "spare": int(values.get("spare", 0)),
        "target": LatencyTarget(total, first),
    }
    displayed = figures(page)
    trouble = page.locator("[data-figure=trouble]").inner_text()
    if trouble:
        assert "replicas" not in displayed
        with pytest.raises(UsageError, match="no number of replicas helps"):
            plan_cases(*arguments, **keywords)
        return
    plans = plan_cases(*arguments, **keywords)
    central = plans["central"]
    assert displayed["replicas"] == central.replicas, values
    assert displayed["capacity"] == pytest.approx(central.capacity_calls_per_second, rel=REL_TOLERANCE)
    for name in ("usd_per_call", "usd_per_million_tokens", "usd_per_day", "floor_usd_per_call"):
        assert displayed[name] == pytest.approx(getattr(central, name), rel=REL_TOLERANCE), (name, values)
    shown = page.locator("dd[data-figure=usd_per_call] small").all_inner_texts()
    ends = sorted(fleet.usd_per_call for name, fleet in plans.items() if name != "central")  # pyright: ignore
    if len(ends) == 1:
        assert shown == [f"{usd(ends[0])} to never"]
    elif ends and ends[0] != ends[-1]:
        assert shown == [f"{usd(ends[0])} to {usd(ends[-1])}"]
    for name, load_point in (("at_peak", central.at_peak), ("at_mean", central.at_mean)):
        place = load_point.calls_per_second / central.saturated_calls_per_second * 128
        below = min(127, int(place))
        loads = [part / 128 for part in (below, below + 1) if part]
        low, high = [central.alone, *load_curve(replicas["central"], traffic, central, loads=loads)][-2:]
        expected = low.total_p95 + (place - below) * (high.total_p95 - low.total_p95)
        assert displayed[name] == pytest.approx(expected, rel=1e-6), (name, values)
        assert displayed[name] == pytest.approx(load_point.total_p95, rel=1e-6), (name, values)


def test_serving_is_computed_as_python_does(opened: Opener, serving: Path) -> None:
    page = opened(serving)
    check_serving(page, {})
    rng = random.Random(2)
    names = ["calls_per_day", "peak_factor", "total_seconds", "first_token_seconds", "usd_per_hour", "spare"]
    for trial in range(2):
        for name in names if trial % 2 else rng.sample(names, 2):
            slide(page, name, rng.random())
        check_serving(page, moved(page))
    enter(page, "total_seconds", "none")
    enter(page, "first_token_seconds", "none")
    check_serving(page, moved(page))
    enter(page, "total_seconds", "1 ms")
    assert "A number from" in page.locator(".control .hint.error").inner_text()


def test_the_fleet_of_the_terminal_is_the_page_s(
    opened: Opener, serving: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = opened(serving)
    enter(page, "calls_per_day", "20M")
    enter(page, "total_seconds", "180 ms")
    enter(page, "usd_per_hour", "7")
    enter(page, "spare", "1.5")
    assert "A whole number" in page.locator(".control .hint.error").inner_text()
    enter(page, "spare", "2")
    drawn(page)
    printed = answered(capsys, ["plan", *terminal(page)])
    shown = figures(page)
    assert (printed["calls_per_day"], printed["usd_per_hour"]) == (20e6, 7)
    assert shown["replicas"] == printed["replicas"]
    assert shown["usd_per_call"] == pytest.approx(printed["usd_per_call"], rel=REL_TOLERANCE)


# --- decisions


def check_decision(page: Page, question: Question, values: Mapping[str, float]) -> None:
    expected = solve(question.moved(values))
    flips = [explanation.flips(row) for flips in (True, False) for row in expected.sensitivities if row.flips == flips]
    assert page.locator("[data-figure=answer]").inner_text() == explanation.answer(expected), values
    assert lines(page, "reasons") == explanation.reasons(expected), values
    assert lines(page, "break-evens") == [explanation.break_even(point) for point in expected.break_evens], values
    assert [*lines(page, "flips"), *lines(page, "steady")] == flips, values
    rows_by_option: dict[str, Any] = page.locator("tr[data-option]").evaluate_all(
        """all => Object.fromEntries(all.map((row) => [row.dataset.option, row.dataset]))"""
    )
    for outcome in expected.outcomes:
        row = rows_by_option.pop(outcome.name)
        assert row["feasible"] == str(outcome.feasible).lower(), (outcome.name, values)
        low, high = outcome.total_interval
        numbers = {"total": outcome.total_usd, "net": outcome.net_usd, "low": low, "high": high}
        for name, number in {**numbers, "bestIn": outcome.best_in}.items():
            assert float(row[name]) == pytest.approx(number, rel=1e-8, abs=1e-9), (outcome.name, name, values)
    assert not rows_by_option


def test_decisions_are_made_as_python_makes_them(opened: Opener, tmp_path: Path) -> None:
    path = EXAMPLES / "hosted_at_low_volume.yaml"
    page, question = opened(written(tmp_path / "page.html", "decide", path)), read_question(*load_case(path))
    check_decision(page, question, {})
    rng = random.Random(3)
    names = page.locator("input[type=range]").evaluate_all("all => all.map((e) => e.dataset.name)")
    assert names[:2] == ["traffic.calls_per_day", "traffic.horizon_days"]
    menu = page.get_by_label("Move another number").locator("option")
    chosen = rng.choice([choice for choice in menu.evaluate_all("all => all.map((e) => e.value)") if choice])
    page.get_by_label("Move another number").select_option(chosen)
    for control_names in ([chosen], rng.sample(names, 3)):
        page.get_by_role("button", name="Back to what was stated").evaluate("e => e.click()")
        for control_name in control_names:
            slide(page, control_name, rng.uniform(0.1, 0.9))
        check_decision(page, question, moved(page))


def test_a_decision_s_command_says_what_was_moved(
    opened: Opener, decision: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = opened(decision)
    enter(page, "traffic.calls_per_day", "50,000")
    drawn(page)
    printed = answered(capsys, ["plan", *terminal(page)])
    assert printed["sentence"] == page.locator("[data-figure=answer]").inner_text()
    assert "traffic.calls_per_day=50000" in page.get_by_label("Command").inner_text()


# --- any page

EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> & \"q\" {{ 7 * 7 }} \u2028"


def test_names_of_a_file_are_text(opened: Opener, tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text(PRICES.replace("large:", json.dumps(EVIL) + ":"))
    options = {EVIL: {"model": EVIL}, "<b>box</b>": MACHINE}
    values = {**case_values(options), "case": EVIL, "prices": "prices.yaml", "constraints": {"latency": EVIL}}
    (tmp_path / "case.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    path = written(tmp_path / "page.html", "decide", tmp_path / "case.yaml")
    page = opened(path)
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 2
    assert page.locator("img, b").count() == 0
    assert page.locator("h1").evaluate("e => e.textContent") == EVIL
    assert page.title().startswith("</script><script>window.hacked = 1</script><img src=x")
    page.locator("details").evaluate_all("all => all.forEach((e) => { e.open = true; })")
    assert "<b>box</b>" in page.locator("main").inner_text()
    assert page.evaluate("window.hacked") is None


@pytest.mark.browser  # its pages stand for those that the others open, and take seconds to write
@pytest.mark.parametrize("page_fixture", ["training", "serving", "decision"])
def test_nothing_is_fetched_and_nothing_may_be(page_fixture: str, request: pytest.FixtureRequest) -> None:
    html = request.getfixturevalue(page_fixture).read_text("utf-8")
    assert re.findall(r'(?:src|href|action)="(?!#|data:,")', html) == []
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy[1]
    assert len(html) < 400_000


@pytest.mark.parametrize(
    ("page_fixture", "scheme", "width"),
    slow_unless(
        QUICK_SCREENS.__contains__,
        itertools.product(("training", "serving", "decision"), ("light", "dark"), (360, 1200)),
    ),
)
def test_it_fits_and_can_be_read(
    opened: Opener, page_fixture: str, scheme: Any, width: int, request: pytest.FixtureRequest
) -> None:
    page = opened(request.getfixturevalue(page_fixture), width, scheme)
    page.locator("details").evaluate_all("all => all.forEach((e) => { e.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(UNNAMED) == []
    worst = page.evaluate(CONTRAST)
    assert min(worst)[0] >= 4.5, min(worst)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 28)")
    for svg in page.locator("figure > svg").all():
        box = svg.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


@pytest.mark.parametrize(
    "page_fixture",
    ["training", pytest.param("serving", marks=pytest.mark.slow), pytest.param("decision", marks=pytest.mark.slow)],
)
def test_everything_is_reached_and_moved_by_keys(
    opened: Opener, page_fixture: str, request: pytest.FixtureRequest
) -> None:
    page = opened(request.getfixturevalue(page_fixture))
    reached: set[str] = set()
    for _ in range(120):
        page.keyboard.press("Tab")
        name, tag, outlined = page.evaluate(FOCUS)
        if tag == "BODY":
            break
        assert outlined, name
        reached.add(page.evaluate("document.activeElement.dataset.name ?? document.activeElement.tagName"))
    names = page.locator("input[type=range]").evaluate_all("all => all.map((e) => e.dataset.name)")
    assert {*names, "svg"} <= reached
    first = slider(page, names[0])
    before = page.locator("#headline").inner_text()
    first.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    drawn(page)
    assert page.locator("#headline").inner_text() != before
    value = page.locator("input[type=text]").first.input_value()
    assert first.get_attribute("aria-valuetext") == value
    expect(page.locator("#said")).not_to_have_text("")
    plot = page.locator("figure svg[tabindex]").first
    plot.focus()
    texts = []
    for key in ("Home", "ArrowRight", "End"):
        page.keyboard.press(key)
        texts.append(plot.get_attribute("aria-valuetext"))
    assert len(set(texts)) == 3
    page.keyboard.press("Escape")


def test_what_is_no_number_is_refused_beside_its_field(opened: Opener, training: Path) -> None:
    page = opened(training)
    for text in ("many", "-1", "1e99", "", "0"):
        field = enter(page, "tokens", text)
        assert field.get_attribute("aria-invalid") == "true", text
        hint = page.locator(f"#{field.get_attribute('aria-describedby')}")
        assert "A number from" in hint.inner_text()
    assert moved(page) == {}
    enter(page, "tokens", "1 T")
    assert page.locator("[aria-invalid=true]").count() == 0
    check_training(page, {})


def test_a_move_is_drawn_at_once(opened: Opener, decision: Path) -> None:
    page = opened(decision)
    spent: float = page.evaluate(
        """async () => {
          const slider = document.querySelector("input[type=range]"), frame = () => new Promise(requestAnimationFrame);
          let most = [];
          for (let n = 100; n < 110; n++) {
            const begin = performance.now();
            slider.value = n;
            slider.dispatchEvent(new Event("input"));
            await frame(); await frame();
            most.push(performance.now() - begin);
          }
          return most.sort((a, b) => a - b)[4];
        }"""
    )
    assert spent < 1000
