"""A server's counters and log lines, read back: prometheus_client and the server's own formatter are the writers."""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.core.errors import DataError
from bedplate.economics.costs.amortisation import (
    NO_TENANT,
    MeteredUse,
    combine,
    read_access_logs,
    read_metrics,
    use_between,
)

prometheus = pytest.importorskip("prometheus_client")

OCTOBER = datetime.datetime(2026, 10, 1, tzinfo=datetime.UTC)
NOVEMBER = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)

Counts = Mapping[str, tuple[float, float, float, float]]
"""By skin: calls, prompt tokens, generated tokens, seconds."""


def metrics_text(counts: Counts, busy: float | None = None, usd_per_hour: float | None = 0.4) -> str:
    """As serving/server/prometheus.py makes it, by the library that it uses."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    class Source:
        def collect(self) -> Iterable[object]:
            by_model = ("model_name",)
            prompt = CounterMetricFamily("bedplate:prompt_tokens", "Prompt tokens.", labels=by_model)
            generated = CounterMetricFamily("bedplate:generation_tokens", "Tokens.", labels=by_model)
            cost = CounterMetricFamily("bedplate:request_cost_usd", "Dollars.", labels=by_model)
            success = CounterMetricFamily(
                "bedplate:request_success", "Choices.", labels=("model_name", "finished_reason")
            )
            whole = HistogramMetricFamily("bedplate:e2e_request_latency_seconds", "Seconds.", labels=by_model)
            for name, (calls, prompts, tokens, seconds) in counts.items():
                prompt.add_metric((name,), prompts)
                generated.add_metric((name,), tokens)
                if usd_per_hour is not None:
                    cost.add_metric((name,), seconds * usd_per_hour / 3600)
                success.add_metric((name, "stop"), calls)
                success.add_metric((name, "length"), calls)  # two choices a call
                whole.add_metric((name,), [("1.0", calls / 2), ("+Inf", calls)], seconds)
            yield from (prompt, generated, cost, success, whole)
            if busy is not None:
                steps = CounterMetricFamily("bedplate:engine_step_seconds", "Seconds.", labels=by_model)
                steps.add_metric(("base",), busy)
                yield steps
            running = GaugeMetricFamily("bedplate:num_requests_running", "Now.", labels=by_model)
            running.add_metric(("base",), 1)
            yield running

    registry = prometheus.CollectorRegistry(auto_describe=False)
    registry.register(Source())
    return prometheus.generate_latest(registry).decode()


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_difference_of_two_snapshots(tmp_path: Path) -> None:
    before = write(tmp_path / "a", metrics_text({"x": (10, 100, 50, 9), "y": (5, 70, 30, 4)}, 20))
    after = write(tmp_path / "b", metrics_text({"x": (14, 160, 51, 12), "y": (5, 70, 30, 4), "z": (1, 2, 3, 4)}, 31.5))
    usage = use_between(before, after)
    assert usage.busy_seconds == pytest.approx(11.5)
    assert usage.warnings == ()
    x = usage.by_skin["x"]
    assert (x.calls, x.prompt_tokens, x.generation_tokens) == (4, 60, 1)
    assert x.cost_usd == pytest.approx(3 * 0.4 / 3600)
    assert usage.by_skin["y"] == MeteredUse(0, 0, 0, 0)
    assert usage.by_skin["z"].calls == 1
    alone = use_between(None, after)
    assert alone.by_skin["x"].calls == 14


def test_a_restarted_server_is_counted_from_its_start_and_said(tmp_path: Path) -> None:
    before = write(tmp_path / "a", metrics_text({"x": (10, 100, 50, 9)}, 20))
    after = write(tmp_path / "b", metrics_text({"x": (3, 30, 15, 2)}, 5))
    usage = use_between(before, after)
    assert usage.by_skin["x"].calls == 3
    assert usage.busy_seconds == 5
    assert len(usage.warnings) == 1
    assert "restarted" in usage.warnings[0]
    without_x = write(tmp_path / "c", metrics_text({"y": (30, 300, 150, 12)}, 50))
    assert "restarted" in use_between(before, without_x).warnings[0]


def test_without_a_price_no_cost_is_known(tmp_path: Path) -> None:
    after = write(tmp_path / "b", metrics_text({"x": (3, 30, 15, 2)}, usd_per_hour=None))
    usage = use_between(None, after)
    assert usage.by_skin["x"].cost_usd is None
    assert usage.busy_seconds is None


def test_several_servers_are_added(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / name, metrics_text({"x": (calls, 10, 5, 2)}, busy))
        for name, calls, busy in (("a", 3, 7), ("b", 4, 8))
    ]
    usage = combine(use_between(None, path) for path in paths)
    assert usage.by_skin["x"].calls == 7
    assert usage.busy_seconds == 15
    unknown = write(tmp_path / "c", metrics_text({"x": (1, 1, 1, 1)}))
    assert combine([*(use_between(None, path) for path in paths), use_between(None, unknown)]).busy_seconds is None


@given(
    st.text(
        st.characters(exclude_categories=("Cs",), exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"),
        max_size=30,
    )
)
@settings(deadline=None, max_examples=25)
def test_any_name_survives_as_prometheus_own_parser_reads_it(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    text = metrics_text({name: (3, 30, 15, 2)}, 4)
    path = tmp_path_factory.mktemp("metrics") / "m"
    path.write_bytes(text.encode())
    ours = read_metrics(path)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sample.labels.items())
            assert ours[sample.name.removeprefix("bedplate:")][labels] == sample.value
    assert use_between(None, path).by_skin[name].calls == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no metric of Bedplate's"),
        ("vllm:prompt_tokens_total 3\n", "no metric of Bedplate's"),
        ('bedplate:x{model_name="a" 3\n', "line 1: 'bedplate:x{model_name=\"a\" 3' is not a sample"),
        ('bedplate:x{model_name="a} 3\n', "line 1: 'bedplate:x{model_name=\"a} 3' is not a sample"),
        ("# HELP x y\nbedplate:x many\n", "line 2: could not convert string to float: 'many'"),
        ("bedplate:x\n", "line 1: 'bedplate:x' is not a sample"),
        ("<html>\n", "line 1: '<html>' is not a sample"),
    ],
)
def test_what_is_not_the_format_is_named_by_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_metrics(write(tmp_path / "m", text))
    assert message in str(caught.value)


def test_timestamps_and_spaces_are_part_of_the_format(tmp_path: Path) -> None:
    metrics = read_metrics(
        write(tmp_path / "m", 'bedplate:x_total{a="b", c="d",} 1.5e+3 1700000000000\nbedplate:y 2\n')
    )
    assert metrics == {"x_total": {(("a", "b"), ("c", "d")): 1500.0}, "y": {(): 2.0}}


# --- the access log


def server_line(timestamp: float, facts: dict[str, object], status: int = 200) -> str:
    """One line as the server writes it with `logs: {format: json}`."""
    access, logs = (
        pytest.importorskip("bedplate.serving.server.access"),
        pytest.importorskip("bedplate.serving.settings.server_config"),
    )
    records: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    logger, handler = logging.getLogger("bedplate.access"), Collector()
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        access.write_line(
            access.Exchange(
                id="f" * 32,
                client="10.0.0.1",
                method="POST",
                path="/v1/chat/completions",
                route="/v1/chat/completions",
                status=status,
                began=timestamp,
                seconds=0.5,
                traceparent=None,
                facts=facts,
            )
        )
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    records[0].created = timestamp
    return logs.JsonLines().format(records[0])


def answered(tenant: str, model: str, prompt: int, completion: int, cost: float | None = None) -> dict[str, object]:
    facts: dict[str, object] = {"endpoint": "chat", "key": "k1", "tenant": tenant, "model": model}
    facts |= {"prompt": prompt, "completion": completion, "cached": 0, "finish": "stop"}
    return facts if cost is None else {**facts, "cost_usd": cost}


def test_the_servers_own_lines_are_counted_by_tenant_and_skin(tmp_path: Path) -> None:
    day = OCTOBER.timestamp() + 86_400
    lines = [
        server_line(day, answered("shop", "reviews", 10, 1, 0.25)),
        server_line(day + 9, answered("shop", "tickets", 20, 7, 0.5)),
        server_line(day + 10, answered("press", "reviews", 30, 2, 0.125)),
        server_line(day + 11, answered("", "reviews", 1, 1, 0.0)),
        server_line(day + 12, {"endpoint": "chat", "key": "k1", "tenant": "shop", "error": "model_not_found"}, 404),
        server_line(day + 13, {}),
        server_line(OCTOBER.timestamp() - 1, answered("shop", "reviews", 1000, 1, 1.0)),
        server_line(NOVEMBER.timestamp(), answered("shop", "reviews", 1000, 1, 1.0)),
        "some other program's line",
    ]
    path = write(tmp_path / "access.jsonl", "\n".join(lines) + "\n")
    usage = read_access_logs([path], OCTOBER, NOVEMBER)
    assert usage.by_tenant["shop"] == MeteredUse(2, 30, 8, 0.75)
    assert usage.by_tenant["press"] == MeteredUse(1, 30, 2, 0.125)
    assert usage.by_tenant["k1"] == MeteredUse(1, 1, 1, 0.0)  # the key stands for a tenant that is none
    assert usage.by_skin["reviews"] == MeteredUse(3, 41, 4, 0.375)
    assert usage.outside == 2


def test_a_server_without_keys_has_one_nameless_tenant(tmp_path: Path) -> None:
    line = server_line(OCTOBER.timestamp(), {**answered("", "x", 3, 1), "key": ""})
    usage = read_access_logs([write(tmp_path / "log", line)], OCTOBER, NOVEMBER)
    assert usage.by_tenant == {NO_TENANT: MeteredUse(1, 3, 1, None)}


def test_a_text_log_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "log", "10.0.0.1 POST /v1/chat/completions 200 4.1ms tenant=shop model=x completion=3\n")
    with pytest.raises(DataError, match=r"no answered model call in it; it must be .* JSON lines"):
        read_access_logs([path], OCTOBER, NOVEMBER)


def test_a_line_with_strange_values_counts_what_it_can(tmp_path: Path) -> None:
    fields = {"time": "2026-10-02T00:00:00.000Z", "model": "x", "prompt": "many", "completion": -3, "cost_usd": None}
    usage = read_access_logs([write(tmp_path / "log", json.dumps(fields))], OCTOBER, NOVEMBER)
    assert usage.by_skin == {"x": MeteredUse(1, 0, 0, None)}
