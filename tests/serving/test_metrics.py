"""/metrics: read with Prometheus' own parser, and compared with what the replies said."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bedplate.serving.server.app import loaded_server
from bedplate.serving.server.monitoring import FALLBACK_LABEL, MAX_MODELS, Metrics
from bedplate.serving.settings.server_config import BaseConfig, PriceConfig, ServerConfig, SkinConfig

from .conftest import Files, Server, running
from .test_bad_requests import HI
from .test_lifecycle import ENDLESS, send, slow_steps, wait_until

__all__ = ["slow_steps"]

NAMES = {
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "prompt_tokens_total",
    "generation_tokens_total",
    "time_to_first_token_seconds_bucket",
    "inter_token_latency_seconds_bucket",
    "e2e_request_latency_seconds_bucket",
    "request_queue_time_seconds_bucket",
    "request_success_total",
    "num_preemptions_total",
    "build_info",
}
"""What dashboards for vLLM ask for, and who we are."""


@pytest.fixture
def priced(files: Files, tmp_path) -> Iterator[Server]:
    config = ServerConfig(
        bases=(BaseConfig(source=str(files.base)),),
        skins=(SkinConfig(source=files.skins[0]),),
        price=PriceConfig(usd_per_hour=3.6, as_of="2026-11-24"),
        state=tmp_path / "state",
    )
    with loaded_server(config) as state, running(state) as url:
        yield Server(url, state, {})


def scrape(server: Server) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    with httpx.Client(trust_env=False, timeout=30) as client:
        response = client.get(f"{server.url}/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(response.text))
    assert len({family.name for family in families}) == len(families)
    return {
        (sample.name.removeprefix("bedplate:"), frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def of(scraped: dict[Any, float], name: str, **labels: str) -> float:
    return sum(
        value
        for (metric, metric_labels), value in scraped.items()
        if metric == name and labels.items() <= dict(metric_labels).items()
    )


def test_every_name_is_there_and_counts_what_the_replies_said(priced):
    replies = [priced.chat(), priced.chat(max_tokens=6, n=2, temperature=1.5), priced.chat(model="prompted")]
    streamed = priced.chat(stream=True, max_tokens=5)
    assert streamed.text.rstrip().endswith("[DONE]")
    assert priced.chat(temperature=9).status_code == 400
    assert priced.chat(model="nobody").status_code == 404
    scraped = scrape(priced)
    assert {name for name, _ in scraped} >= NAMES
    usage = [reply.json()["usage"] for reply in replies]
    assert of(scraped, "prompt_tokens_total", model_name="prompted") == usage[2]["prompt_tokens"]
    prompt = sum(row["prompt_tokens"] for row in usage[:2]) + usage[0]["prompt_tokens"]
    assert of(scraped, "prompt_tokens_total", model_name="tiny") == prompt
    generated = of(scraped, "generation_tokens_total", model_name="tiny")
    assert generated - sum(row["completion_tokens"] for row in usage[:2]) in range(1, 6)
    assert of(scraped, "request_success_total", model_name="tiny") == 4
    assert of(scraped, "time_to_first_token_seconds_count", model_name="tiny") == 4
    assert of(scraped, "e2e_request_latency_seconds_count", model_name="tiny") == 3
    # once for each gap between two tokens of a reply
    assert of(scraped, "inter_token_latency_seconds_count", model_name="tiny") == generated - 4
    spent = sum(reply.json()["bedplate"]["cost_usd"] for reply in replies[:2])
    assert spent < of(scraped, "request_cost_usd_total", model_name="tiny") < spent + 0.01
    route = {"route": "/v1/chat/completions", "method": "POST"}
    assert of(scraped, "http_requests_total", status="200", **route) == 4
    assert of(scraped, "http_requests_total", status="400", **route) == 1
    assert of(scraped, "http_requests_total", status="404", **route) == 1
    assert of(scraped, "request_errors_total", code="model_not_found") == 1
    assert of(scraped, "engine_up", model_name="tiny") == 1
    assert of(scraped, "num_requests_running") == of(scraped, "num_requests_waiting") == 0


def test_histograms_are_cumulative_and_sum_up(priced):
    for _ in range(3):
        priced.chat(max_tokens=4)
    scraped = scrape(priced)
    for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"):
        buckets = [
            (dict(labels)["le"], value) for (metric, labels), value in scraped.items() if metric == f"{name}_bucket"
        ]
        counts = [value for _, value in sorted(buckets, key=lambda pair: float(pair[0]))]
        assert counts == sorted(counts)
        assert counts[-1] == of(scraped, f"{name}_count")
        assert 0 < of(scraped, f"{name}_sum") < 60


def test_a_scrape_does_not_wait_for_the_engine(priced, monkeypatch):
    """Also in the middle of a long step, gauges are said at once."""
    from bedplate.inference.engine.sampler import sample

    inside, leave = threading.Event(), threading.Event()

    def blocking_sample(logits, rows):
        inside.set()
        leave.wait(60)
        return sample(logits, rows)

    with monkeypatch.context() as patch:
        patch.setattr("bedplate.inference.engine.runner.sample", blocking_sample)
        with send(priced, ENDLESS), send(priced, ENDLESS):
            assert inside.wait(60)
            began = time.perf_counter()
            scraped = scrape(priced)
            seconds = time.perf_counter() - began
            leave.set()
    assert seconds < 30  # not when the step is over, which waits for this
    assert of(scraped, "num_requests_running") + of(scraped, "num_requests_waiting") >= 1
    assert priced.idle()


def test_running_and_cached(priced, slow_steps):
    text = [{"role": "user", "content": "this product is great and works well " * 8}]
    for _ in range(2):
        priced.chat(messages=text)
    with send(priced, ENDLESS):
        wait_until(lambda: of(scrape(priced), "num_requests_running", model_name="tiny") == 1)
    scraped = scrape(priced)
    assert of(scraped, "prefix_cache_queries_total") > of(scraped, "prefix_cache_hits_total") > 16
    assert 0 < of(scraped, "kv_cache_usage_perc") <= 1
    wait_until(lambda: of(scrape(priced), "http_requests_total", status="499") == 1)


def test_paths_and_methods_and_names_are_bounded(priced):
    with httpx.Client(trust_env=False) as client:
        for index in range(20):
            client.request(f"X{index}", f"{priced.url}/v1/a{index}")
            client.get(f"{priced.url}/v1/models/absent{index}")
            priced.chat(model=f"absent{index}")
    scraped = scrape(priced)
    assert not any("absent" in str(labels) or "X1" in str(labels) for _, labels in scraped)
    assert of(scraped, "http_requests_total", method=FALLBACK_LABEL) == 20
    assert of(scraped, "http_requests_total", route="/v1/models/{name:path}") == 20

    counted = Metrics(priced.state)
    usage = SimpleNamespace(prompt_tokens=1, completion_tokens=1)
    timing = SimpleNamespace(queued=0.0, first=0.0, total=0.0)
    result, request = SimpleNamespace(usage=usage, timing=timing), SimpleNamespace(choices=1)
    for index in range(2 * MAX_MODELS):
        served = SimpleNamespace(name=f"skin-{index}")
        call: Any = SimpleNamespace(
            served=served, request=request, results=[result], answers=[], seconds=0.1, cost_usd=None
        )
        counted.finished(call)
    families = {family.name: family for family in counted.collect()}
    samples = families["bedplate:prompt_tokens"].samples
    assert len(samples) == MAX_MODELS + 1
    assert next(sample.value for sample in samples if sample.labels["model_name"] == FALLBACK_LABEL) == MAX_MODELS


def test_two_servers_count_apart(server, priced):
    before = of(scrape(server), "request_success_total")
    priced.chat(messages=HI)
    assert of(scrape(server), "request_success_total") == before
