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
