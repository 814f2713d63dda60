"""API keys: their file, their recognition, their limits and quotas, without a server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import sqlite3
import stat
import tempfile
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.serving.conformance.test_classical import words

from bedplate.cli.main import main
from bedplate.core.endpoint_spec import is_loopback
from bedplate.core.errors import ConfigError, UsageError
from bedplate.serving.callers import api_keys
from bedplate.serving.callers.api_keys import (
    Key,
    KeyLimits,
    KeyQuota,
    KeysFile,
    KeyStore,
    change_keys,
    new_secret,
    read_keys,
)
from bedplate.serving.callers.caller_guard import Caller, CallerGuard, KeyWindows, Spending, SpendLedger, guard_for
from bedplate.serving.schemas.http_errors import LimitError, StatusError
from bedplate.serving.server.app import loaded_server
from bedplate.serving.settings.server_config import BaseConfig, PriceConfig, RouteConfig, ServerConfig

START = datetime(2026, 11, 24, 12, tzinfo=UTC)


def make_key(**fields: Any) -> tuple[Key, str]:
    id_, secret, hash_ = new_secret()
    return Key.model_validate({"id": id_, "name": "test", "hash": hash_, "created": START, **fields}), secret


def write(path: Path, *keys: Key) -> Path:
    change_keys(path, lambda _: KeysFile(keys=keys))
    return path


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def test_keys_are_random_and_kept_as_hashes(tmp_path):
    key, secret = make_key()
    path = write(tmp_path / "keys.yaml", key)
    assert len(secret.split("_")[2]) == 64
    assert len({new_secret()[1] for _ in range(100)}) == 100
    assert secret not in path.read_text()
    assert secret.split("_")[2] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_keys(path) == KeysFile(keys=(key,))


def test_a_file_that_others_may_read_is_refused(tmp_path):
    path = write(tmp_path / "keys.yaml", make_key()[0])
    if os.geteuid() == 0:
        os.chown(path, 10001, 10001)
    for mode in (0o640, 0o604, 0o620, 0o644):
        path.chmod(mode)
        with pytest.raises(ConfigError, match="chmod 600"):
            read_keys(path)
    path.chmod(0o400)
    assert len(read_keys(path).keys) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a file of root's, as root")
def test_a_mounted_secret_may_be_readable_by_the_servers_group(tmp_path):
    path = write(tmp_path / "keys.yaml", make_key()[0])
    for mode, accepted in ((0o440, True), (0o640, True), (0o600, True), (0o660, False), (0o644, False), (0o650, False)):
        path.chmod(mode)
        with contextlib.nullcontext() if accepted else pytest.raises(ConfigError, match="chmod 600"):
            assert len(read_keys(path).keys) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user, as root")
def test_a_changed_file_stays_with_its_user(tmp_path):
    path = write(tmp_path / "keys.yaml", make_key()[0])
    os.chown(path, 10001, 10002)
    path.chmod(0o400)
    key = make_key()[0]
    write(path, key)
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (10001, 10002, 0o400)
    assert read_keys(path) == KeysFile(keys=(key,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"admn": True}, "did you mean 'admin'"),
        ({"hash": "x"}, "hash"),
        ({"limits": {"concurrent": 0}}, "concurrent"),
        ({"quota": {"usd_per_day": -1}}, "usd_per_day"),
        ({"models": "some"}, "models"),
        ({"admin": 3}, "admin"),
    ],
)
def test_wrong_files_name_what_is_wrong(tmp_path, change, message):
    row = json.loads(make_key()[0].model_dump_json(exclude_none=True)) | change
    path = tmp_path / "keys.yaml"
    path.write_text(yaml.safe_dump({"keys": [row]}))
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=message):
        read_keys(path)


def test_two_keys_with_one_id_are_refused():
    key, _ = make_key()
    with pytest.raises(ValueError, match="two keys"):
        KeysFile(keys=(key, key))


def test_only_the_whole_key_is_recognised(tmp_path):
    key, secret = make_key()
    second_key, _ = make_key()
    store = KeyStore(write(tmp_path / "keys.yaml", key, second_key))
    assert store.recognise(secret) == key
    _, id_, tail = secret.split("_")
    wrong = [
        *("", "bp_", secret[:-1], secret + "0", secret.upper(), f" {secret}", f"{secret}\n", tail, id_, key.hash),
        f"bp_{id_}_{'0' * 64}",
        f"bp_{second_key.id}_{tail}",
        f"bp_{'0' * 12}_{tail}",
        f"bp_{id_}_{key.hash}",
        "é" * 80,
    ]
    assert [candidate for candidate in wrong if store.recognise(candidate)] == []


@given(st.text(max_size=100) | st.from_regex(r"bp_[0-9a-f]{12}_[0-9a-f]{64}", fullmatch=True))
def test_no_text_breaks_recognition(text):
    with tempfile.TemporaryDirectory() as directory:
        assert KeyStore(write(Path(directory) / "keys.yaml", make_key()[0])).recognise(text) is None


def test_the_file_is_read_again_when_it_changes(tmp_path, caplog):
    key, secret = make_key()
    path = write(tmp_path / "keys.yaml", key)
    store = KeyStore(path)
    later, later_secret = make_key()
    write(path, key, later)
    assert not store.is_current
    store.refresh()
    assert store.is_current
    assert store.recognise(later_secret) == later
    path.write_text("keys: [")  # a mistake neither opens the server nor shuts everybody out
    store.refresh()
    assert store.recognise(secret) == key
    assert "stay as they were" in caplog.text
    path.unlink()
    store.refresh()
    assert store.recognise(secret) == key
    write(path, later)
    store.refresh()
    assert store.recognise(secret) is None
    assert store.recognise(later_secret) == later


def guard(tmp_path: Path, *keys: Key) -> CallerGuard:
    return CallerGuard(KeyStore(write(tmp_path / "keys.yaml", *keys)))


def test_who_is_let_in_and_as_whom(tmp_path):
    plain, plain_secret = make_key(models=["tiny"], tenant="shop")
    admin, admin_secret = make_key(admin=True)
    disabled, disabled_secret = make_key(disabled=True)
    expired, expired_secret = make_key(expires=START - timedelta(days=400))
    gate = guard(tmp_path, plain, admin, disabled, expired)
    caller = gate.identify(bearer(plain_secret))
    assert caller == Caller(plain.id, "shop", False, frozenset({"tiny"}))
    assert (caller.may_use("tiny"), caller.may_use("other")) == (True, False)
    assert gate.identify({"x-api-key": admin_secret}) == Caller(admin.id, f"key:{admin.id}", True, None)
    assert gate.identify({"authorization": f"bearer {plain_secret}"}) == caller
    gate.identify(bearer(admin_secret)).need_admin()
    with pytest.raises(StatusError, match="admin") as refused:
        caller.need_admin()
    assert refused.value.status == 403
    for headers, message in (
        ({}, "is needed"),
        (bearer("bp_0"), "not one of"),
        ({"authorization": plain_secret}, "must be `Bearer`"),
        ({"authorization": f"Basic {plain_secret}"}, "must be `Bearer`"),
        (bearer(disabled_secret), "disabled"),
        (bearer(expired_secret), "expired"),
    ):
        with pytest.raises(StatusError, match=message) as refused:
            gate.identify(headers)
        assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")
        assert refused.value.headers == {"www-authenticate": "Bearer"}


def test_tenants_of_keys_and_names_of_tenants_do_not_meet(tmp_path):
    key, secret = make_key()
    second_key, other_secret = make_key(tenant=key.id)
    gate = guard(tmp_path, key, second_key)
    assert gate.identify(bearer(secret)).tenant != gate.identify(bearer(other_secret)).tenant


def test_a_revoked_key_ends_what_runs_in_its_name(tmp_path):
    key, secret = make_key()
    gate = guard(tmp_path, key)
    caller = gate.identify(bearer(secret))
    gate.admit(caller, counted=False).end()
    write(tmp_path / "keys.yaml", key.model_copy(update={"disabled": True}))
    asyncio.run(gate.refresh())
    with pytest.raises(StatusError, match="no longer"):
        gate.admit(caller, counted=False)


class Clock:
    """The clock of the limits library and of the ledger."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, start: float = 1_700_000_000.0) -> None:
        self.seconds = start
        monkeypatch.setattr("time.time", lambda: self.seconds)

    def __call__(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)


def test_requests_in_any_minute(monkeypatch):
    clock = Clock(monkeypatch)
    windows = KeyWindows()
    key, _ = make_key(limits={"requests_per_minute": 3})
    for second in (0, 20, 20):
        clock.seconds += second
        windows.begin(key)
    with pytest.raises(LimitError) as refused:
        windows.begin(key)
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    assert refused.value.headers["retry-after"] == "20"
    assert windows.headers(key)["x-ratelimit-remaining-requests"] == "0"
    clock.seconds += 20.5  # the first one leaves the window; it is no fixed one
    windows.begin(key)
    with pytest.raises(LimitError):
        windows.begin(key)
    second_key, _ = make_key(limits={"requests_per_minute": 3})
    windows.begin(second_key)
    assert windows.headers(second_key)["x-ratelimit-remaining-requests"] == "2"


def test_tokens_in_any_minute_and_the_debt_of_a_long_answer(monkeypatch):
    clock = Clock(monkeypatch, 1_700_000_040.0)  # the beginning of a minute
    windows = KeyWindows()
    key, _ = make_key(limits={"tokens_per_minute": 100})
    windows.need_tokens(key, 60)
    windows.use_tokens(key, 60)
    with pytest.raises(LimitError):
        windows.need_tokens(key, 50)
    with pytest.raises(LimitError, match="try again in 29 s") as refused:
        windows.need_tokens(key, 47)
    assert refused.value.headers["retry-after"] == "29"
    windows.need_tokens(key, 40)
    windows.use_tokens(key, 240)
    assert windows.headers(key)["x-ratelimit-remaining-tokens"] == "0"
    with pytest.raises(LimitError):
        windows.need_tokens(key, 1)
    clock.seconds += 75  # three quarters of that minute are still in view: 225 of 300
    with pytest.raises(LimitError):
        windows.need_tokens(key, 1)
    clock.seconds += 35  # one sixth: 50
    windows.need_tokens(key, 49)
    with pytest.raises(LimitError):
        windows.need_tokens(key, 60)
    with pytest.raises(LimitError, match="shorter"):
        windows.need_tokens(key, 101)


def test_calls_at_once():
    windows = KeyWindows()
    key, _ = make_key(limits={"concurrent": 2, "requests_per_minute": 3})
    windows.begin(key)
    windows.begin(key)
    with pytest.raises(LimitError, match="2 calls"):
        windows.begin(key)
    windows.end(key.id)
    windows.begin(key)  # the refused one was not counted as a request
    windows.end(key.id)
    windows.end(key.id)
    assert windows._running[key.id] == 0


def test_what_was_spent_survives_a_restart_and_ends_with_its_period(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, START.timestamp())
    path = tmp_path / "state" / "spending.sqlite"
    key, _ = make_key(quota={"tokens_per_day": 100, "usd_per_month": 1.0})
    ledger = SpendLedger(path, clock)
    ledger.add(key.id, 60, 0.25)
    ledger.need(key)
    ledger.add(key.id, 60, 0.25)
    with pytest.raises(LimitError, match="100 tokens a day") as refused:
        ledger.need(key)
    assert (refused.value.status, refused.value.code) == (429, "insufficient_quota")
    assert refused.value.headers["retry-after"] == str(12 * 3600)
    ledger.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()

    reopened = SpendLedger(path, clock)
    assert reopened.spent(key.id) == (Spending(120, 0.5), Spending(120, 0.5))
    with pytest.raises(LimitError):
        reopened.need(key)
    clock.seconds += 12 * 3600
    reopened.need(key)
    reopened.add(key.id, 1, 0.5)
    with pytest.raises(LimitError, match="1 USD a month") as refused:
        reopened.need(key)
    assert refused.value.headers["retry-after"] == str(6 * 24 * 3600)  # 25 November to 1 December
    clock.seconds += 6 * 24 * 3600
    reopened.need(key)
    reopened.close()


def test_calls_that_end_at_about_the_same_time_are_written_together(tmp_path, monkeypatch):
    """Each had a transaction, which took the interpreter longer than the call's tokens did."""
    ledger = SpendLedger(tmp_path / "spent.sqlite")
    connect, connections = ledger._connect, []
    monkeypatch.setattr(ledger, "_connect", lambda: connections.append(1) or connect())
    for _ in range(100):
        ledger.add("key", 1, 0.0)
        time.sleep(0.001)
    ledger.close()
    assert len(connections) <= 10
    reopened = SpendLedger(tmp_path / "spent.sqlite")
    assert reopened.spent("key")[0].tokens == 100
    reopened.close()


def test_two_ledgers_on_one_file_add_up(tmp_path):
    path = tmp_path / "spending.sqlite"
    ledgers = [SpendLedger(path) for _ in range(2)]
    for _ in range(50):
        for ledger in ledgers:
            ledger.add("a", 1, 0.5)
    for ledger in ledgers:
        ledger.close()
    last = SpendLedger(path)
    assert last.spent("a")[1] == Spending(100, 50.0)
    last.close()


def test_a_server_that_takes_over_quotas_knows_what_was_spent_until_then(tmp_path):
    first, second = (SpendLedger(tmp_path / "spending.sqlite") for _ in range(2))
    first.acquire()
    first.add("a", 100, 0.5)
    first.close()
    second.acquire()
    assert second.spent("a")[1] == Spending(100, 0.5)
    second.add("a", 1, 0.25)
    second.close()
    last = SpendLedger(tmp_path / "spending.sqlite")
    assert last.spent("a")[1] == Spending(101, 0.75)
    last.close()


def test_calls_the_server_makes_have_a_quota_but_no_rate(tmp_path):
    key, secret = make_key(limits={"requests_per_minute": 1, "tokens_per_minute": 10}, quota={"tokens_per_day": 20})
    ledger = SpendLedger(tmp_path / "spending.sqlite")
    gate = CallerGuard(KeyStore(write(tmp_path / "keys.yaml", key)), ledger)
    caller = gate.identify(bearer(secret))
    for _ in range(2):
        admission = gate.admit(caller, counted=False)
        admission.ask_tokens(1000)
        admission.settle(10, 0.0)
        assert admission.headers() == {}
        admission.end()
    with pytest.raises(LimitError):
        gate.admit(caller, counted=False)
    gate.close()


def config(**settings: Any) -> ServerConfig:
    return ServerConfig(bases=(BaseConfig(source="tiny"),), **settings)


def test_without_keys_only_this_machine_may_ask(tmp_path, caplog):
    assert guard_for(config()).identify({}) == Caller(admin=True)
    with pytest.raises(UsageError, match="--open"):
        guard_for(config(host="0.0.0.0"))
    assert guard_for(config(host="0.0.0.0", open=True)).identify({}) == Caller(admin=False)
    assert "no API keys" in caplog.text
    path = write(tmp_path / "keys.yaml", make_key()[0])
    guarded = guard_for(config(host="0.0.0.0", keys=path, state=tmp_path))
    with pytest.raises(StatusError):
        guarded.identify({})
    guarded.close()
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example")))


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_key_for_a_model_that_is_not_served_is_said(tmp_path, caplog):
    """When the server has loaded its models, and whenever the file is read again."""
    (right, _), (wrong, secret), (disabled, _) = (
        make_key(models=("tiny", "a-route")),
        make_key(),
        make_key(disabled=True),
    )
    path = write(tmp_path / "keys.yaml", right, wrong, disabled.model_copy(update={"models": ("tiny-old",)}))
    settings = ServerConfig(keys=path, state=tmp_path, routes={"a-route": RouteConfig(versions={"tiny": 1.0})})
    with loaded_server(settings, [words("tiny")]) as state:
        assert not warnings_of(caplog)
        write(path, right, wrong.model_copy(update={"models": ("tinny", "xyz", "tiny")}))
        asyncio.run(state.guard.refresh())
        assert state.guard.identify(bearer(secret)).models == {"tinny", "xyz", "tiny"}
    prefix = f"the key {wrong.id} names the model"
    assert warnings_of(caplog) == [
        f"{prefix} 'tinny', which is not served; did you mean 'tiny'?",
        f"{prefix} 'xyz', which is not served; its holder cannot call it",
    ]


def test_no_request_waits_for_the_comparison_of_names(tmp_path, caplog, monkeypatch):
    """And a name that many keys have is compared, and said, once."""
    keys = [make_key(models=("tinny",))[0] for _ in range(50)]
    path = write(tmp_path / "keys.yaml")
    guard = CallerGuard(KeyStore(path))
    guard.compare(lambda: ["tiny"])
    waiting, compared = threading.Event(), list[str]()

    def slow(name, names):
        compared.append(name)
        assert waiting.wait(60)
        return names

    monkeypatch.setattr(api_keys, "nearest", slow)
    write(path, *keys)

    async def refreshed() -> None:
        try:
            await asyncio.wait_for(guard.refresh(), 10)
        finally:
            waiting.set()

    asyncio.run(refreshed())
    assert compared == ["tinny"]
    assert warnings_of(caplog) == [
        f"the key {keys[0].id} and 49 more name the model 'tinny', which is not served; did you mean 'tiny'?"
    ]


def test_quotas_in_dollars_need_a_price(tmp_path):
    path = write(tmp_path / "keys.yaml", make_key(quota={"usd_per_day": 1})[0])
    with pytest.raises(ConfigError, match="price"):
        guard_for(config(keys=path, state=tmp_path))
    guard_for(config(keys=path, state=tmp_path, price=PriceConfig(usd_per_hour=1, as_of="2026-11-24"))).close()


def test_no_two_servers_grant_one_quota(tmp_path):
    """Whichever of them comes second, or has a key whose quota comes later, is told to keep its state elsewhere."""
    free, counted = make_key()[0], make_key(quota={"tokens_per_day": 1})[0]
    free_path, counted_path = write(tmp_path / "free.yaml", free), write(tmp_path / "counted.yaml", counted)
    first = guard_for(config(keys=counted_path, state=tmp_path / "state"))
    with pytest.raises(UsageError, match="give each server its own `state`"):
        guard_for(config(keys=counted_path, state=tmp_path / "state"))
    guard_for(config(keys=counted_path, state=tmp_path / "elsewhere")).close()
    second = guard_for(config(keys=free_path, state=tmp_path / "state"))
    write(free_path, free, counted)
    asyncio.run(second.refresh())
    with pytest.raises(StatusError, match="no longer"):
        second.admit(Caller(counted.id, "t"))
    first.close()
    write(free_path, counted, free)
    asyncio.run(second.refresh())
    second.admit(Caller(counted.id, "t")).end()
    second.close()


def test_a_second_server_is_refused_before_it_looks_for_its_base(tmp_path):
    path = write(tmp_path / "keys.yaml", make_key(quota={"tokens_per_day": 1})[0])
    settings = config(keys=path, state=tmp_path / "state")  # of a base that does not exist
    first = guard_for(settings)
    with pytest.raises(UsageError, match="give each server its own `state`"), loaded_server(settings):
        pass
    first.close()


def test_keys_are_revoked_also_by_a_file_that_the_server_cannot_serve(tmp_path):
    counted = make_key(quota={"tokens_per_day": 1})[0]
    (same, right), (gone, _), (disabled, _), (replaced, _) = (make_key() for _ in range(4))
    first = guard_for(config(keys=write(tmp_path / "first.yaml", counted), state=tmp_path))
    path = write(tmp_path / "keys.yaml", same, gone, disabled, replaced)
    second = guard_for(config(keys=path, state=tmp_path))
    disabled = disabled.model_copy(update={"disabled": True})
    write(path, counted, same, disabled, replaced.model_copy(update={"hash": "0" * 64}))
    asyncio.run(second.refresh())
    second.admit(second.identify(bearer(right))).end()
    for key in (counted, gone, disabled, replaced):
        with pytest.raises(StatusError, match="no longer"):
            second.admit(Caller(key.id, "t"))
    first.close()
    second.close()


def test_limits_and_quotas_are_open_by_default():
    key, _ = make_key()
    assert key.limits == KeyLimits()
    assert key.quota.unlimited
    assert not KeyQuota(tokens_per_day=1).unlimited


@pytest.mark.parametrize(
    ("words", "models"),
    [
        ((), "all"),
        (("all",), "all"),
        (("a,b",), ("a", "b")),
        (("a", "b"), ("a", "b")),
        (("a, b", "c"), ("a", "b", "c")),
    ],
)
def test_models_of_a_new_key_are_words_or_a_list(tmp_path, isolated_home, capsys, words, models):
    with pytest.raises(SystemExit) as stop:
        main(["keys", "create", "shop", *words, "--file", str(tmp_path / "keys.yaml")])
    assert not stop.value.code
    assert read_keys(tmp_path / "keys.yaml").keys[0].models == models
    warned = capsys.readouterr().err
    assert all(f"'{name}'" in warned for name in models) if words and models != "all" else not warned


def test_a_key_needs_no_catalogue(tmp_path, isolated_home, capsys):
    (isolated_home / "catalog.sqlite").write_text("no database")
    with pytest.raises(SystemExit) as stop:
        main(["keys", "create", "shop", "tiny", "--file", str(tmp_path / "keys.yaml")])
    assert not stop.value.code, capsys.readouterr().err
    assert read_keys(tmp_path / "keys.yaml").keys[0].models == ("tiny",)


def test_all_stands_alone_and_names_of_the_catalogue_are_not_warned_of(tmp_path, isolated_home, capsys):
    for names, message in ((("all", "a"), "includes every model"), ((",",), "MODEL is empty")):
        with pytest.raises(SystemExit) as stop:
            main(["keys", "create", "shop", *names, "--file", str(tmp_path / "keys.yaml")])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "keys.yaml").exists()
    with pytest.raises(SystemExit):
        main(["keys", "create", "shop", "smollm2-135m", "--file", str(tmp_path / "keys.yaml")])
    assert not capsys.readouterr().err


def test_the_command_creates_lists_rotates_and_revokes(tmp_path, isolated_home, capsys):
    def keys_command(*arguments: str, code: int = 0) -> dict[str, Any]:
        with pytest.raises(SystemExit) as stop:
            main(["keys", *arguments, "--json"])
        captured = capsys.readouterr()
        assert (stop.value.code or 0) == code, captured.err
        return json.loads(captured.out)

    path = tmp_path / "keys.yaml"
    on = ("--file", str(path))
    created = keys_command(
        *("create", "shop", "tiny", *on, "--tenant", "shop", "--requests-per-minute", "5"),
        *("--tokens-per-day", "1250000", "--expires", "2099-01-01"),
    )
    store = KeyStore(path)
    key = store.recognise(created["key"])
    assert key is not None
    assert (key.name, key.tenant, key.models, key.admin) == ("shop", "shop", ("tiny",), False)
    assert (key.limits.requests_per_minute, key.quota.tokens_per_day) == (5, 1_250_000)
    assert key.expires == datetime(2099, 1, 1, tzinfo=UTC)
    listed = keys_command("list", *on)["keys"]
    assert [(key_row["id"], key_row["state"]) for key_row in listed] == [(created["id"], "active")]
    assert "hash" not in listed[0]
    with pytest.raises(SystemExit):
        main(["keys", "list", *on])
    assert "tokens_per_day=1,250,000" in capsys.readouterr().out
    rotated = keys_command("rotate", created["id"], *on)
    assert rotated["id"] == created["id"]
    store.refresh()
    assert store.recognise(created["key"]) is None
    assert store.recognise(rotated["key"]) is not None
    keys_command("revoke", created["id"], *on)
    assert [key_row["state"] for key_row in keys_command("list", *on)["keys"]] == ["disabled"]
    assert "no key with the id" in keys_command("revoke", "000000000000", *on, code=2)["error"]["message"]
    assert "expires" in keys_command("create", "x", *on, "--expires", "soon", code=2)["error"]["message"]
    assert "in the past" in keys_command("create", "x", *on, "--expires", "2020-01-01", code=2)["error"]["message"]
    with pytest.raises(SystemExit):
        main(["keys", "create", "said", *on])
    assert f"--keys {path}" in capsys.readouterr().out
    keys_command("create", "by default")
    # what is easily done by mistake is said
    for arguments, message in (
        (("create", "said", *on), rf"is called 'said' as well; `bedplate keys revoke \w+ --file {path}` ends it"),
        (("rotate", created["id"], *on), rf"{created['id']} is disabled, so the new secret is refused"),
        (("revoke", "said", *on), r"no key with the id 'said'; the key called 'said' has the id \w+ or \w+; `bedplate"),
        (("revoke", "000000000000", *on), rf"`bedplate keys list --file {path}` shows them"),
        (("list", "--file", str(tmp_path / "none.yaml")), "does not exist"),
    ):
        with pytest.raises(SystemExit):
            main(["keys", *arguments])
        assert re.search(message, capsys.readouterr().err), arguments
    with pytest.raises(ConfigError, match=r"keys create NAME --file .*none\.yaml"):
        api_keys.read_keys(tmp_path / "none.yaml")
    with pytest.raises(SystemExit):
        main(["keys", "create", "--help"])
    assert re.search(r"--usd-per-day\W+USD", capsys.readouterr().out)
    assert stat.S_IMODE((isolated_home / "keys.yaml").stat().st_mode) == 0o600
