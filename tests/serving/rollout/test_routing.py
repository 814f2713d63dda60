"""Routes: exact shares, sticky callers, what callers may learn, shadows that never come first, and the comparison."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.serving.conftest import Files, Server, running

from bedplate.core.errors import UsageError
from bedplate.core.files import read_jsonl
from bedplate.serving.callers.caller_guard import Caller, CallerGuard
from bedplate.serving.rollout.verdict import AnsweredCall, ShadowPair, compare
from bedplate.serving.server.app import loaded_server, server_config
from bedplate.serving.settings.server_config import FeedbackConfig, KeepRule, RouteConfig, pick, unit_of

WEIGHTS = {"prompted": 0.9, "tuned": 0.1}


class ByHeader(CallerGuard):
    """The bearer token is the tenant; the one called `limited` may use the route only."""

    def identify(self, headers):
        tenant = headers.get("authorization", "").removeprefix("Bearer ")
        return Caller("", tenant, True, frozenset({"sentiment"}) if tenant == "limited" else None)


@contextmanager
def serving(files: Files, directory: Path, retain: bool = False, **routes: dict[str, Any]) -> Iterator[Server]:
    config = server_config(
        files.base,
        state=directory,
        routes={name: RouteConfig(**route) for name, route in routes.items()},
        feedback=FeedbackConfig(keep={"*": KeepRule(requests=True, replies=True)} if retain else {}),
    )
    with loaded_server(config, files.skins) as state:
        state.guard = ByHeader()
        with running(state) as url:
            yield Server(url, state, {})


def post_chat(
    server: Server, model: str = "sentiment", text: str = "great", tenant: str = "us", **fields: Any
) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return server.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {tenant}"})


def report(server: Server, name: str = "sentiment") -> dict[str, Any]:
    with httpx.Client(trust_env=False) as client:
        answer = client.get(f"{server.url}/admin/routes/{name}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def expected(key: tuple[str, ...], weights: dict[str, float]) -> str:
    """The documented rule, written again: sha256 of the keys, its first 53 bits as a fraction, shares in order."""
    whole = hashlib.sha256("\0".join(key).encode()).hexdigest()
    unit = math.floor(int(whole, 16) / 2 ** (256 - 53)) / 2**53
    names = list(weights)
    return names[0] if unit < weights[names[0]] / sum(weights.values()) else names[1]


# --- which version


def test_shares_are_those_of_the_weights():
    """Evenly spaced numbers get versions in exact shares; hashed keys in the counts that the rule gives."""
    counts = Counter(pick({"a": 0.7, "b": 0.2, "c": 0.1}, (i + 0.5) / 1000) for i in range(1000))
    assert counts == {"a": 700, "b": 200, "c": 100}
    assert Counter(pick({"a": 3, "b": 1}, i / 8) for i in range(8)) == {"a": 6, "b": 2}
    keys = [("sentiment", "user", "t", f"u{i}") for i in range(2000)]
    versions = Counter(pick(WEIGHTS, unit_of(*key)) for key in keys)
    assert versions == Counter(expected(key, WEIGHTS) for key in keys)
    assert versions["tuned"] == 220  # these keys; 200 ± 13 (one standard deviation) is what any would give


def test_more_weight_moves_only_as_many_keys():
    units = [unit_of("route", str(i)) for i in range(2000)]
    before = [pick({"old": 0.9, "new": 0.1}, unit) for unit in units]
    after = [pick({"old": 0.8, "new": 0.2}, unit) for unit in units]
    moved = Counter((a, b) for a, b in zip(before, after, strict=True) if a != b)
    assert set(moved) == {("old", "new")}
    assert moved[("old", "new")] == sum(0.8 <= unit < 0.9 for unit in units)


@given(st.dictionaries(st.text(min_size=1), st.floats(0, 1e6), min_size=1), st.floats(0, 1, exclude_max=True))
def test_a_version_without_weight_is_never_picked(weights, unit):
    if sum(weights.values()) > 0:
        assert weights[pick(weights, unit)] > 0


@given(st.lists(st.text(), min_size=1))
def test_units_are_units(keys):
    assert 0 <= unit_of(*keys) < 1


@pytest.mark.parametrize(
    "route",
    [
        {"versions": {}},
        {"versions": {"a": 0}},
        {"versions": {"a": -1}},
        {"versions": {"a": float("inf")}},
        {"versions": {"a": 1}, "sticky": "ip"},
        {"versions": {"a": 1}, "shadow_share": 0},
        {"versions": {"a": 1}, "colour": 1},
    ],
)
def test_routes_that_cannot_work_are_refused(route):
    with pytest.raises(ValidationError):
        RouteConfig(**route)


def test_a_routes_name_is_a_models_name(files):
    config = server_config(files.base, routes={"a:b": RouteConfig(versions={"tiny": 1})})
    with pytest.raises(UsageError, match="cannot be a model name"), loaded_server(config):
        pass


# --- on a live server


def test_callers_stay_with_their_version_and_are_told_which(files, tmp_path):
    routes = {
        "by-user": {"versions": WEIGHTS, "sticky": "user"},
        "by-tenant": {"versions": {"prompted": 1, "tuned": 1}, "sticky": "tenant"},
        "by-call": {"versions": {"prompted": 1, "tuned": 0}},
    }
    with serving(files, tmp_path, **routes) as server:
        for user in [f"u{i}" for i in range(25)] * 2:
            answer = post_chat(server, "by-user", user=user)
            assert answer.headers["x-bedplate-version"] == expected(("by-user", "user", "us", user), WEIGHTS)
            assert answer.json()["model"] == "by-user"
        for tenant in "abcdefgh" * 2:
            version = post_chat(server, "by-tenant", tenant=tenant, user="anyone").headers["x-bedplate-version"]
            assert version == expected(("by-tenant", "tenant", tenant), {"prompted": 1, "tuned": 1})
        assert {post_chat(server, "by-call").headers["x-bedplate-version"] for _ in range(10)} == {"prompted"}
        assert "x-bedplate-version" not in post_chat(server, "prompted").headers
        streamed = post_chat(server, "by-call", stream=True)
        assert streamed.headers["x-bedplate-version"] == "prompted"
        counts = {row["model"]: row["calls"] for row in report(server, "by-user")["versions"]}
        users = Counter(expected(("by-user", "user", "us", f"u{i}"), WEIGHTS) for i in range(25))
        assert counts == {version: 2 * users[version] for version in WEIGHTS}
        assert report(server, "by-call")["versions"][0]["calls"] == 11
        with httpx.Client(trust_env=False) as client:
            metrics = client.get(f"{server.url}/metrics").text
        assert 'bedplate:route_calls_total{route="by-call",version="prompted"} 11.0' in metrics


def test_a_version_answers_as_itself(files, tmp_path):
    with serving(files, tmp_path, sentiment={"versions": {"tuned": 1}}) as server:
        for text in ("great", "it broke after a day"):
            routed, direct = post_chat(server, text=text).json(), post_chat(server, "tuned", text).json()
            assert routed["choices"][0]["message"] == direct["choices"][0]["message"]


def test_a_route_is_a_right_of_its_own(files, tmp_path):
    with serving(files, tmp_path, sentiment={"versions": {"tuned": 1}}, other={"versions": {"tuned": 1}}) as server:
        assert post_chat(server, tenant="limited").status_code == 200
        for name in ("tuned", "other"):
            assert post_chat(server, name, tenant="limited").status_code == 404
        with httpx.Client(trust_env=False, headers={"authorization": "Bearer limited"}) as client:
            assert [model["id"] for model in client.get(f"{server.url}/v1/models").json()["data"]] == ["sentiment"]
            assert client.get(f"{server.url}/v1/models/sentiment").json()["bedplate"] == {"kind": "route"}
            assert client.get(f"{server.url}/v1/models/other").status_code == 404


def test_a_version_that_is_not_served_is_no_fault_of_the_caller(files, tmp_path):
    with serving(files, tmp_path, sentiment={"versions": {"gone": 1}}) as server:
        answer = post_chat(server)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "version_unavailable")
        assert "gone" not in answer.text
        with httpx.Client(trust_env=False) as client:
            assert client.get(f"{server.url}/admin/routes/none").status_code == 404
            listed = client.get(f"{server.url}/admin/routes").json()["data"]
        assert listed == [{"name": "sentiment", "object": "route", "versions": {"gone": 1.0}, "shadow": None}]


# --- weights that change under traffic


def put_weights(server: Server, versions: Any, name: str = "sentiment") -> httpx.Response:
    with httpx.Client(trust_env=False) as client:
        return client.put(f"{server.url}/admin/routes/{name}", json={"versions": versions})


def roll_back(server: Server, name: str = "sentiment") -> httpx.Response:
    with httpx.Client(trust_env=False) as client:
        return client.post(f"{server.url}/admin/routes/{name}/rollback")


def test_weights_change_and_counts_go_on(files, tmp_path):
    route = {"versions": {"prompted": 1, "tuned": 0}, "verdict": {"of": "tuned", "at_least": 0.5}}
    with serving(files, tmp_path, sentiment=route) as server:
        assert roll_back(server).json()["error"]["code"] == "no_previous"
        for _ in range(3):
            assert post_chat(server).headers["x-bedplate-version"] == "prompted"
        changed = put_weights(server, {"tuned": 1})
        assert (changed.status_code, changed.json()["previous"]) == (200, {"prompted": 1, "tuned": 0})
        assert put_weights(server, {"tuned": 1}).json()["previous"] == {"prompted": 1, "tuned": 0}  # sent again
        for _ in range(2):
            assert post_chat(server).headers["x-bedplate-version"] == "tuned"
        counts = {row["model"]: (row["weight"], row["calls"]) for row in report(server)["versions"]}
        assert counts == {"tuned": (1, 2), "prompted": (0, 3)}
        assert report(server)["verdict"]["pending"] == 2
        assert put_weights(server, {"prompted": 0.5, "tuned": 0.5}).status_code == 200
        assert report(server)["verdict"]["pending"] == 0  # a comparison of versions is of one period of weights
        assert roll_back(server).status_code == 200
        assert put_weights(server, {"prompted": 1, "tuned": 0}).status_code == 200
        assert put_weights(server, {"tuned": 1}).status_code == 200
        assert roll_back(server).status_code == 200
        assert post_chat(server).headers["x-bedplate-version"] == "prompted"
        assert report(server)["previous"] == {"tuned": 1}


def test_a_change_moves_few_callers_and_is_taken_back_without_the_version_that_failed(files, tmp_path):
    with serving(files, tmp_path, sentiment={"versions": {"prompted": 0.9, "tuned": 0.1}, "sticky": "user"}) as server:
        changed = put_weights(server, {"tuned": 0.2, "prompted": 0.8})
        assert [row["model"] for row in changed.json()["versions"]] == ["prompted", "tuned"]  # shares stay in order
    with serving(files, tmp_path / "new", sentiment={"versions": {"prompted": 1, "tuned": 0}}) as server:
        assert put_weights(server, {"prompted": 0.5, "tuned": 0.5}).status_code == 200
        with httpx.Client(trust_env=False) as client:
            assert client.delete(f"{server.url}/admin/skins/tuned").status_code == 200
        assert roll_back(server).status_code == 200
        assert post_chat(server).headers["x-bedplate-version"] == "prompted"


@pytest.mark.parametrize(
    ("versions", "status", "code"),
    [
        ({"gone": 1}, 400, "version_not_served"),
        ({"prompted": 0}, 400, "invalid_versions"),
        ({"prompted": 1}, 400, "invalid_versions"),  # the verdict is of the version that is left out
        ({}, 400, "invalid_versions"),
        ({"prompted": -1}, 400, None),
        ("tuned", 400, None),
    ],
)
def test_weights_that_a_route_cannot_have_change_nothing(files, tmp_path, versions, status, code):
    route = {"versions": {"tuned": 1}, "verdict": {"of": "tuned", "at_least": 0.5}}
    with serving(files, tmp_path, sentiment=route) as server:
        answer = put_weights(server, versions)
        assert answer.status_code == status
        assert code in (None, answer.json()["error"]["code"])
        assert "validation" not in answer.json()["error"]["message"]
        if versions == {"prompted": 1}:
            assert "stays in the list with weight 0" in answer.json()["error"]["message"]
        assert put_weights(server, {"tuned": 1}, "none").status_code == 404
        assert roll_back(server, "none").status_code == 404
        assert report(server)["previous"] is None
        assert post_chat(server).headers["x-bedplate-version"] == "tuned"


def test_changed_weights_outlive_a_restart_until_the_file_is_edited(files, tmp_path):
    route = {"versions": {"prompted": 1, "tuned": 0}}
    with serving(files, tmp_path, sentiment=route) as server:
        assert put_weights(server, {"tuned": 1}).status_code == 200
    with serving(files, tmp_path, sentiment=route) as server:
        assert post_chat(server).headers["x-bedplate-version"] == "tuned"
        assert roll_back(server).status_code == 200
    with serving(files, tmp_path, sentiment=route) as server:
        assert post_chat(server).headers["x-bedplate-version"] == "prompted"
        assert put_weights(server, {"tuned": 1}).status_code == 200
    with serving(files, tmp_path, sentiment={"versions": {"prompted": 3, "tuned": 0}}) as server:
        assert post_chat(server).headers["x-bedplate-version"] == "prompted"
        assert report(server)["previous"] is None


# --- shadows


def outcomes(server: Server, count: int, name: str = "sentiment") -> dict[str, Any]:
    """The route's report once so many copies have come to something."""
    end = time.monotonic() + 15
    while True:
        shadow = report(server, name)["shadow"]
        if shadow["compared"] + sum(shadow["not_compared"].values()) >= count:
            return shadow
        assert time.monotonic() < end, shadow
        time.sleep(0.02)


def test_a_shadow_is_compared_and_no_client_sees_it(files, tmp_path):
    texts = [f"row {i} {word}" for i in range(4) for word in ("great", "terrible", "works")]
    route = {"versions": {"prompted": 1}, "shadow": "tuned"}
    with serving(files, tmp_path, retain=True, sentiment=route) as server:
        ours = {text: post_chat(server, "prompted", text).json()["choices"][0]["message"]["content"] for text in texts}
        theirs = {text: post_chat(server, "tuned", text).json()["choices"][0]["message"]["content"] for text in texts}
        agreed = sum(ours[text] == theirs[text] for text in texts)
        right: list[tuple[bool, bool]] = []
        for i, text in enumerate(texts):
            answer = post_chat(server, text=text, stream=i % 5 == 4)
            assert answer.status_code == 200
            if i % 5 == 4:
                outcomes(server, i + 1)  # or the next request takes the copy's place
                continue
            assert answer.json()["choices"][0]["message"]["content"] == ours[text]
            if i % 3 == 0:
                feedback = {"rating": "good"} if i % 2 else {"correction": "positive"}
                body = {"id": answer.json()["id"], **feedback}
                assert server.post("/v1/feedback", json=body, headers={"authorization": "Bearer us"}).status_code == 200
                target = ours[text] if i % 2 else "positive"
                right.append((ours[text] == target, theirs[text] == target))
            outcomes(server, i + 1)
        shadow = outcomes(server, len(texts))
        assert shadow["not_compared"] == {}
        assert (shadow["compared"], shadow["agreement"]["rate"]) == (len(texts), pytest.approx(agreed / len(texts)))
        assert shadow["correctness"]["n"] == len(right)
        assert shadow["correctness"]["version"]["rate"] == pytest.approx(sum(a for a, _ in right) / len(right))
        assert shadow["correctness"]["shadow"]["rate"] == pytest.approx(sum(b for _, b in right) / len(right))
        assert shadow["seconds"]["n"] == len(texts)
        assert shadow["compute_seconds"]["version"] > 0
        with httpx.Client(trust_env=False) as client:
            assert f'outcome="agreed",route="sentiment"}} {agreed}.0' in client.get(f"{server.url}/metrics").text
    # Replies are written in groups: all of them lie in the files once the server has stopped.
    stored_rows = [row for path in (tmp_path / "feedback").glob("*/*.jsonl") for row in read_jsonl(path)]
    replies = Counter(row["endpoint"] for row in stored_rows if row["kind"] == "reply")
    assert replies == {"chat": 3 * len(texts)}  # of the copies nothing is kept


def test_copies_are_no_requests_of_clients(files, tmp_path, caplog):
    """An alert on the server's statuses would fire for nobody."""
    caplog.set_level("INFO", "bedplate.access")
    routes = {
        "copied": {"versions": {"prompted": 1}, "shadow": "tuned"},
        "misspelt": {"versions": {"prompted": 1}, "shadow": "tunned"},
    }
    with serving(files, tmp_path, **routes) as server:
        for name in routes:
            for count in (1, 2):
                assert post_chat(server, name).status_code == 200
                outcomes(server, count, name)
        assert outcomes(server, 2, "misspelt")["not_compared"] == {"not_served": 2}
        metrics = server.request("GET", "/metrics").text.splitlines()
    counted = [line for line in metrics if line.startswith("bedplate:http_requests_total") and "chat" in line]
    labels = 'method="POST",route="/v1/chat/completions",status="200"'
    assert counted == [f"bedplate:http_requests_total{{{labels}}} 4.0"]
    assert " 404 " not in caplog.text


def test_a_row_of_a_batch_says_which_version_answered(files, tmp_path):
    with serving(files, tmp_path, sentiment={"versions": WEIGHTS}) as server:
        client = server.client
        body = {"model": "sentiment", "messages": [{"role": "user", "content": "great"}]}
        names = {"routed": body, "direct": {**body, "model": "tuned"}}
        path = "/v1/chat/completions"
        rows = [{"custom_id": name, "method": "POST", "url": path, "body": row} for name, row in names.items()]
        content = "\n".join(map(json.dumps, rows)).encode()
        file = client.files.create(file=("rows.jsonl", content), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint=path, completion_window="24h")
        end = time.monotonic() + 20
        while (batch := client.batches.retrieve(batch.id)).status != "completed":
            assert time.monotonic() < end, batch
            time.sleep(0.05)
        lines = map(json.loads, client.files.content(batch.output_file_id).text.splitlines())
        responses = {line["custom_id"]: line["response"] for line in lines}
        calls = {row["model"]: row["calls"] for row in report(server)["versions"]}
        assert calls[responses["routed"]["version"]] == 1
        assert "version" not in responses["direct"]
        metrics = server.request("GET", "/metrics").text
    assert 'bedplate:http_requests_total{method="POST",route="/v1/chat/completions"' not in metrics


def test_the_share_of_the_shadow_is_exact(files, tmp_path):
    route = {"versions": {"prompted": 1}, "shadow": "tuned", "shadow_share": 0.5}
    with serving(files, tmp_path, sentiment=route) as server:
        expected_count = 0
        for _ in range(12):
            id_ = post_chat(server).json()["id"].rpartition("-")[2]
            expected_count += unit_of("shadow", id_) < 0.5
            outcomes(server, expected_count)
        assert outcomes(server, expected_count)["compared"] == expected_count


def test_a_shadow_that_is_not_served_fails_alone(files, tmp_path):
    with serving(files, tmp_path, sentiment={"versions": {"prompted": 1}, "shadow": "gone"}) as server:
        assert post_chat(server).status_code == 200
        assert outcomes(server, 1)["not_compared"] == {"not_served": 1}


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    from bedplate.inference.engine.sampler import sample

    def slowly(*arguments: Any) -> Any:
        time.sleep(seconds)
        return sample(*arguments)

    monkeypatch.setattr("bedplate.inference.engine.runner.sample", slowly)


def test_copies_wait_for_an_idle_engine_and_too_many_are_dropped(files, tmp_path, monkeypatch):
    from bedplate.serving.request.server_state import ServerState
    from bedplate.serving.rollout import version_router

    monkeypatch.setattr(version_router, "MAX_WAITING_COPIES", 2)
    monkeypatch.setattr(version_router, "WAIT_SECONDS", 1.0)
    idle = [True]
    monkeypatch.setattr(ServerState, "has_free_rows", property(lambda state: idle[0]))
    with serving(files, tmp_path, sentiment={"versions": {"prompted": 1}, "shadow": "tuned"}) as server:
        idle[0] = False
        for _ in range(6):  # one is being sent, two wait
            assert post_chat(server).status_code == 200
        assert report(server)["shadow"]["not_compared"]["queue_full"] >= 3
        shadow_report = outcomes(server, 6)
        assert shadow_report["compared"] == 0
        assert shadow_report["not_compared"]["busy"] + shadow_report["not_compared"]["queue_full"] == 6
        idle[0] = True
        assert post_chat(server).status_code == 200
        assert outcomes(server, 7)["compared"] == 1


def test_a_copy_is_given_up_when_clients_wait(files, tmp_path, monkeypatch):
    slow(monkeypatch, 0.02)
    routes = {"sentiment": {"versions": {"tiny": 1}, "shadow": "tiny"}}
    config = server_config(
        files.base, state=tmp_path, max_rows=1, routes={name: RouteConfig(**route) for name, route in routes.items()}
    )
    with loaded_server(config) as state, running(state) as url:
        server = Server(url, state, {})
        fields = {"max_tokens": 60, "temperature": 1.9, "top_k": 200}
        first = post_chat(server, **fields)
        assert first.status_code == 200
        end = time.monotonic() + 5
        while state.registry.engines[0].running == 0:  # the copy
            assert time.monotonic() < end
            time.sleep(0.002)
        clients = [
            threading.Thread(target=post_chat, args=(server, "tiny"), kwargs={"max_tokens": 2}) for _ in range(3)
        ]
        for thread in clients:
            thread.start()
        assert outcomes(server, 1)["not_compared"] == {"preempted": 1}
        for thread in clients:
            thread.join()


# --- the comparison


def pair(i: int, ours: str, shadow: str, tenant: str = "t", seconds: float = 0.0) -> ShadowPair:
    return ShadowPair(str(i), tenant, "v", AnsweredCall((ours,), 1.0, 0.5), AnsweredCall((shadow,), 1.0 + seconds, 0.5))


def test_a_comparison_against_independent_numbers():
    """McNemar's exact p-value and the t interval from scipy's own tests."""
    from scipy.stats import binomtest, ttest_1samp

    pairs = [pair(i, "a" if i < 30 else "b", "a" if i < 22 or i >= 38 else "b", seconds=i / 100) for i in range(40)]
    targets: dict[str, str | None] = {str(i): "a" for i in range(40)}
    comparison = compare(pairs, targets)
    assert comparison["agreement"]["rate"] == pytest.approx(30 / 40)
    correct = comparison["correctness"]
    assert (correct["version"]["rate"], correct["shadow"]["rate"]) == (30 / 40, 24 / 40)
    assert (correct["test"], correct["unit"], correct["n"]) == ("mcnemar_exact", "call", 40)
    assert correct["p_value"] == pytest.approx(binomtest(2, 10).pvalue)
    interval = ttest_1samp([i / 100 for i in range(40)], 0).confidence_interval(0.95)
    assert comparison["seconds"]["interval"] == pytest.approx([interval.low, interval.high])
    assert comparison["seconds"]["p_value"] < 0.001
    assert comparison["compute_seconds"]["difference"] == 0
    assert comparison["compute_seconds"]["p_value"] == 1


def test_tenants_count_as_one_where_there_are_enough():
    pairs = [pair(i, "a", "b" if i % 50 < 25 else "a", tenant=f"t{i % 50}") for i in range(200)]
    correct = compare(pairs, {str(i): None for i in range(200)})["correctness"]
    assert (correct["unit"], correct["test"]) == ("tenant", "clustered_sign_flip")
    assert (correct["version"]["rate"], correct["shadow"]["rate"]) == (1.0, 0.5)
    assert compare(pairs[:60], {})["correctness"] is None
    assert compare([], {}) == {
        "compared": 0,
        "agreement": None,
        "seconds": None,
        "compute_seconds": None,
        "correctness": None,
    }
