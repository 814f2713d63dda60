"""What was begun with a key's rights goes on with those that the key has now."""

from __future__ import annotations

import json
from dataclasses import replace

from bedplate.serving.callers.api_keys import Key, KeysFile, KeyStore, change_keys, new_secret
from bedplate.serving.callers.caller_guard import Caller, CallerGuard

from .test_poison import begin, client, ended, line


def test_a_caller_of_earlier_has_the_rights_of_now(tmp_path):
    id_, _, hash_ = new_secret()
    fields = {"id": id_, "name": "k", "hash": hash_, "created": "2026-01-01", "tenant": "us"}
    path = tmp_path / "keys.yaml"
    change_keys(path, lambda _: KeysFile(keys=(Key.model_validate({**fields, "models": ("small",)}),)))
    guard = CallerGuard(KeyStore(path))
    earlier = Caller(id_, "us", admin=True, models=None)
    current = guard.with_rights_of_now(earlier)
    assert (current.tenant, current.admin, current.models) == ("us", False, frozenset({"small"}))
    assert not current.may_use("large")
    assert CallerGuard().with_rights_of_now(earlier) == earlier


def test_the_rows_of_a_running_batch_have_the_rights_that_its_key_has_now(target, monkeypatch):
    def narrowed_rights(guard: CallerGuard, caller: Caller) -> Caller:
        return replace(caller, models=frozenset({"prompted"})) if caller.tenant == "them" else caller

    monkeypatch.setattr(CallerGuard, "with_rights_of_now", narrowed_rights)
    lost, honest = (begin(target, tenant, line("a")) for tenant in ("them", "us"))
    assert ended(target, "us", honest).request_counts.completed == 1
    [row] = client(target, "them").files.content(ended(target, "them", lost).error_file_id).text.splitlines()
    assert json.loads(row)["response"]["status_code"] == 404
    assert json.loads(row)["response"]["body"]["error"]["code"] == "model_not_found"


def test_what_is_settled_after_a_call_has_ended_counts_for_its_minute(tmp_path):
    id_, _, hash_ = new_secret()
    limits = {"tokens_per_minute": 100, "concurrent": 1}
    key = Key.model_validate({"id": id_, "name": "k", "hash": hash_, "created": "2026-01-01", "limits": limits})
    change_keys(tmp_path / "keys.yaml", lambda _: KeysFile(keys=(key,)))
    guard = CallerGuard(KeyStore(tmp_path / "keys.yaml"))
    call = guard.admit(Caller(id_, "us"))
    call.take_tokens(10)
    call.end()
    call.end()
    call.settle(60, 0.0)
    second_call = guard.admit(Caller(id_, "us"))
    assert second_call.headers()["x-ratelimit-remaining-tokens"] == "40"
    second_call.take_tokens(30)
    second_call.settle(20, 0.0)  # of 30 only 20 were computed
    assert second_call.headers()["x-ratelimit-remaining-tokens"] == "20"
