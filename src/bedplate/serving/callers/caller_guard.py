"""Authenticates callers and admits their calls within rate limits and quotas."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from bedplate.core.endpoint_spec import is_loopback
from bedplate.core.errors import ConfigError, UsageError
from bedplate.serving.callers.api_keys import Key, KeysFile, KeyStore
from bedplate.serving.callers.limits import KeyWindows, SpendLedger
from bedplate.serving.schemas.http_errors import StatusError
from bedplate.serving.settings.server_config import ServerConfig, state_directory

log = logging.getLogger("bedplate.serving")

_CHALLENGE = {"www-authenticate": "Bearer"}


@dataclass(frozen=True)
class Caller:
    """Who asks. key: the id of its API key, "" on a server without keys. tenant: what separates its cached prompts from
    those of others. models: the names it may use, None all."""

    key: str = ""
    tenant: str = ""
    admin: bool = True
    models: frozenset[str] | None = None

    def may_use(self, name: str) -> bool:
        return self.models is None or name in self.models

    def need_admin(self) -> None:
        """StatusError 403 for a caller that may not change or watch the server."""
        if not self.admin:
            raise StatusError(403, "this needs an API key with admin rights", "admin_required")


class AdmittedCall:
    """One call that was let in. End it when the call is over."""

    def __init__(self, guard: CallerGuard, key: Key | None, counted: bool) -> None:
        self._guard, self._key, self._counted = guard, key, counted
        self._running = key is not None and counted
        self._prompt_tokens = 0

    def ask_tokens(self, count: int) -> None:
        """LimitError when a prompt of so many tokens goes over the key's limit."""
        if self._key is not None and self._counted:
            self._guard.windows.need_tokens(self._key, count)

    def take_tokens(self, count: int) -> None:
        """Counts a prompt's tokens as soon as it is queued."""
        self._prompt_tokens += count
        if self._key is not None and self._counted:
            self._guard.windows.use_tokens(self._key, count)

    def settle(self, tokens: int, usd: float) -> None:
        """What was computed in the end, the prompt's tokens included, and its price. Of a prompt that was counted and
        not computed (its request was refused, or its client left before) the tokens are given back."""
        if self._key is None:
            return
        if self._counted:
            self._guard.windows.use_tokens(self._key, tokens - self._prompt_tokens)
        self._prompt_tokens = 0
        if self._guard.ledger is not None and (tokens or usd):
            self._guard.ledger.add(self._key.id, tokens, usd)

    def headers(self) -> dict[str, str]:
        """What is left of the key's limits, for the reply."""
        return self._guard.windows.headers(self._key) if self._key is not None and self._counted else {}

    def end(self) -> None:
        """The call is over; a second time does nothing. What was computed may still be settled."""
        if self._key is not None and self._running:
            self._guard.windows.end(self._key.id)
            self._running = False


class CallerGuard:
    """Tells callers apart and counts what they use. Without keys everybody is `anybody`."""

    def __init__(
        self, store: KeyStore | None = None, ledger: SpendLedger | None = None, anybody: Caller | None = None
    ) -> None:
        self._store, self._anybody = store, anybody or Caller()
        self.ledger = ledger
        self.windows = KeyWindows()
        self._refreshing: asyncio.Future[None] | None = None

    @property
    def has_keys(self) -> bool:
        return self._store is not None

    def compare(self, served: Callable[[], Iterable[str]]) -> None:
        """Logs which keys name a model that is not `served`, now and whenever the keys change."""
        if self._store is not None:
            self._store.compare(served)

    async def refresh(self) -> None:
        """Waits, where the keys file has changed, until it is read, which is done beside the loop. What a key may do is
        then what the file says."""
        if self._store is None or self._store.is_current:
            return
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.ensure_future(self._read_again(self._store))
        await asyncio.shield(self._refreshing)

    async def _read_again(self, store: KeyStore) -> None:
        if await asyncio.to_thread(store.refresh):
            asyncio.get_running_loop().run_in_executor(None, store.warn_of_names)  # no request waits for it

    def identify(self, headers: Mapping[str, str]) -> Caller:
        """The caller of a request with these headers. StatusError 401 without a right key."""
        if self._store is None:
            return self._anybody
        api_key = _key_of(headers)
        key = self._store.recognise(api_key)
        if key is None:
            raise _refused("the API key is not one of this server's")
        if (state := key.state(datetime.now(UTC))) != "active":
            refusal = _refused(f"the API key {key.id} is {state}")
            refusal.facts["key"] = key.id
            raise refusal
        return _caller(key, key.tenant or f"key:{key.id}")

    def with_rights_of_now(self, caller: Caller) -> Caller:
        """The same caller with what its key may do now; what becomes of a key that is gone is `admit`'s to say."""
        key = None if self._store is None else self._store.get(caller.key)
        return caller if key is None else _caller(key, caller.tenant)

    def admit(self, caller: Caller, counted: bool = True) -> AdmittedCall:
        """Lets a call in, or raises LimitError. counted: False for a call that the server makes in the caller's name,
        which has a quota but no rate."""
        if self._store is None or not caller.key:
            return AdmittedCall(self, None, False)
        key = self._store.get(caller.key)
        if key is None or key.state(datetime.now(UTC)) != "active":
            raise _refused("the API key is no longer one of this server's")
        if self.ledger is not None:
            self.ledger.need(key)
        if counted:
            self.windows.begin(key)
        return AdmittedCall(self, key, counted)

    def headers(self, caller: Caller) -> dict[str, str]:
        """What is left of the limits of a caller's key, for the reply to a call that was not let in."""
        key = None if self._store is None else self._store.get(caller.key)
        return {} if key is None else self.windows.headers(key)

    def close(self) -> None:
        if self.ledger is not None:
            self.ledger.close()


def _caller(key: Key, tenant: str) -> Caller:
    """Who a key stands for, with what it may do."""
    return Caller(key.id, tenant, key.admin, None if key.models == "all" else frozenset(key.models))


def _refused(message: str) -> StatusError:
    return StatusError(401, message, "invalid_api_key", headers=_CHALLENGE)


def _key_of(headers: Mapping[str, str]) -> str:
    """The key in `Authorization: Bearer`, or in x-api-key."""
    authorization = headers.get("authorization")
    if authorization is None:
        api_key = headers.get("x-api-key")
        if api_key is None:
            raise _refused("an API key is needed: send the header `Authorization: Bearer bp_…` or `x-api-key: bp_…`")
        return api_key.strip()
    scheme, _, api_key = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise _refused("the Authorization header must be `Bearer` and an API key")
    return api_key.strip()


def check_open(config: ServerConfig) -> None:
    """UsageError for a server that would be open to other machines without saying so."""
    if config.keys is None and not config.open and not is_loopback(config.host):
        raise UsageError(
            f"{config.host} can be reached from other machines, and there are no API keys; give a keys file "
            "(`bedplate keys create`, then --keys or `keys:` in the server's file), or say --open"
        )


def guard_for(config: ServerConfig) -> CallerGuard:
    """The guard of a server. UsageError for one that would be open to other machines without saying so."""
    check_open(config)
    if config.keys is None:
        local = is_loopback(config.host)
        if not local:
            log.warning("open to every machine that reaches %s: there are no API keys", config.host)
        # Whoever reaches an open server may use its models; changing it stays with this machine's users.
        return CallerGuard(anybody=Caller(admin=local))

    ledger = SpendLedger(state_directory(config.state) / "spending.sqlite")

    def check(file: KeysFile) -> None:
        dear = next((key for key in file.keys if key.quota.in_dollars), None)
        if dear is not None and config.price is None:
            message = f"{config.keys}: the key {dear.id} has a quota in dollars, but the server has no `price`"
            raise ConfigError(f"{message}; add it")
        if not all(key.quota.unlimited for key in file.keys):
            ledger.hold()

    try:
        return CallerGuard(KeyStore(config.keys, check), ledger)
    except BaseException:
        ledger.close()
        raise
