"""What was begun with a key's rights goes on with those that the key has now."""

from __future__ import annotations

from bedplate.serving.callers.guard import Caller, CallerGuard
from bedplate.serving.callers.keys import Key, KeysFile, KeyStore, change_keys, new_secret


def test_a_caller_of_earlier_has_the_rights_of_now(tmp_path):
    id_, _, hash_ = new_secret()
    fields = {"id": id_, "name": "k", "hash": hash_, "created": "2026-01-01", "tenant": "us"}
    path = tmp_path / "keys.yaml"
    change_keys(path, lambda _: KeysFile(keys=(Key.model_validate({**fields, "models": ("small",)}),)))
    guard = CallerGuard(KeyStore(path))
    earlier = Caller(id_, "us", admin=True, models=None)
    now = guard.with_rights_of_now(earlier)
    assert (now.tenant, now.admin, now.models) == ("us", False, frozenset({"small"}))
    assert not now.may_use("large")
    assert CallerGuard().with_rights_of_now(earlier) == earlier


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
    again = guard.admit(Caller(id_, "us"))
    assert again.headers()["x-ratelimit-remaining-tokens"] == "40"
    again.take_tokens(30)
    again.settle(20, 0.0)  # of 30 only 20 were computed
    assert again.headers()["x-ratelimit-remaining-tokens"] == "20"
