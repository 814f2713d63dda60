"""API keys: the keys file, and how a key is made and recognised.

A key is `bp_<id>_<secret>`: twelve hexadecimal digits that logs and operators may see, and 256 random bits that only
its holder has. The file keeps sha256 of the whole key. A slow hash (scrypt, argon2) protects secrets that can be
guessed; 256 random bits cannot, however fast the hash, and a slow one would let anybody spend the server's time by
sending wrong keys. Hashes are compared in constant time, for an unknown id as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from bedplate.core.config import Strict, dump_config, load_config
from bedplate.core.errors import BedplateError, ConfigError, UsageError
from bedplate.core.files import atomic_write, file_lock
from bedplate.core.memory import without_collections
from bedplate.core.suggestions import did_you_mean, nearest

log = logging.getLogger("bedplate.serving")

_KEY = re.compile(r"bp_([0-9a-f]{12})_[0-9a-f]{64}")
_NOBODY = "0" * 64

Positive = Annotated[int, Field(ge=1)]
Dollars = Annotated[float, Field(gt=0)]


Moment = Annotated[
    datetime, AfterValidator(lambda time: time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC))
]
"""A time; without a zone it is UTC."""


class KeyLimits(Strict):
    """Rate limits of one key; None: unlimited. concurrent: most calls at once."""

    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    concurrent: Positive | None = None


class KeyQuota(Strict):
    """Quotas of one key by day and month (UTC). Quotas in dollars need the server's `price`."""

    usd_per_day: Dollars | None = None
    usd_per_month: Dollars | None = None
    tokens_per_day: Positive | None = None
    tokens_per_month: Positive | None = None

    @property
    def in_dollars(self) -> bool:
        return self.usd_per_day is not None or self.usd_per_month is not None

    @property
    def unlimited(self) -> bool:
        return self == KeyQuota()


class Key(Strict):
    """hash: sha256 of the key. tenant: whose cached prompts it shares (default: nobody's). models: those it may use."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    name: Annotated[str, Field(min_length=1, max_length=100)]
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tenant: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    models: Literal["all"] | tuple[str, ...] = "all"
    admin: bool = False
    limits: KeyLimits = KeyLimits()
    quota: KeyQuota = KeyQuota()
    created: Moment
    expires: Moment | None = None
    disabled: bool = False

    def state(self, current_time: datetime) -> Literal["active", "disabled", "expired"]:
        if self.disabled:
            return "disabled"
        return "expired" if self.expires is not None and self.expires <= current_time else "active"


class KeysFile(Strict):
    keys: tuple[Key, ...] = ()

    @model_validator(mode="after")
    def _ids_are_unique(self) -> KeysFile:
        repeated = next((id_ for id_, count in Counter(key.id for key in self.keys).items() if count > 1), None)
        if repeated is not None:
            raise ValueError(f"two keys have the id {repeated}; revoke or remove one")
        return self


def new_secret(id_: str | None = None) -> tuple[str, str, str]:
    """(id, key, hash) of a new random key; `id_` keeps the id of one that is replaced."""
    id_ = id_ or secrets.token_hex(6)
    key = f"bp_{id_}_{secrets.token_hex(32)}"
    return id_, key, digest(key)


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: Path) -> KeysFile:
    """The file's keys. ConfigError where it does not validate, or where others than its owner may open it; a file of
    root's may be readable by a group, as mounted secrets are (the rule of PostgreSQL for its private key)."""
    try:
        status = path.stat()
    except OSError as error:
        message = f"{path}: the keys file cannot be read: {error.strerror}"
        raise ConfigError(f"{message}; `bedplate keys create NAME --file {path}` begins it") from error
    if stat.S_IMODE(status.st_mode) & (0o037 if status.st_uid == 0 else 0o077):
        raise ConfigError(f"{path}: others than its owner may open the keys file; `chmod 600 {path}`")
    return load_config(path, KeysFile)


def change_keys(path: Path, change: Callable[[KeysFile], KeysFile]) -> None:
    """Rewrites the file under a lock, whole or not at all; a missing one is begun. Its owner, group and mode stay, as
    far as this user may set them: the server that reads it may be another user."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.with_name(f".{path.name}.lock")):  # beside it: the file itself is replaced
        status = path.stat() if path.exists() else None
        changed = change(KeysFile() if status is None else read_keys(path))
        before = os.umask(0o077)
        try:
            atomic_write(path, dump_config(KeysFile.model_validate(changed.model_dump())))
        finally:
            os.umask(before)
        if status is not None:
            with contextlib.suppress(PermissionError):
                os.chown(path, status.st_uid, status.st_gid)
                path.chmod(stat.S_IMODE(status.st_mode))


def key_of(file: KeysFile, id_: str, path: Path) -> Key:
    """The key with this id. UsageError for an id that is not there."""
    key = next((key for key in file.keys if key.id == id_), None)
    if key is None:
        named = [key.id for key in file.keys if key.name == id_ and not key.disabled]
        hint = f"the key called {id_!r} has the id {' or '.join(named)}; " if named else ""
        raise UsageError(f"there is no key with the id {id_!r}; {hint}`bedplate keys list --file {path}` shows them")
    return key


def replace_key(file: KeysFile, id_: str, path: Path, **changes: object) -> KeysFile:
    """The file with one key changed. UsageError for an id that is not there."""
    key_of(file, id_, path)
    keys = tuple(Key.model_validate({**key.model_dump(), **changes}) if key.id == id_ else key for key in file.keys)
    return KeysFile(keys=keys)


class KeyStore:
    """The keys of a file, read again by `refresh` when it has changed.

    A file that went missing or wrong keeps the keys of before and is logged: a typing mistake must neither open the
    server nor shut everybody out. check: raises BedplateError for keys that this server cannot serve; then the keys of
    before stay, but for those that the file has replaced, disabled or has no more.
    """

    def __init__(self, path: Path, check: Callable[[KeysFile], None] = lambda _: None) -> None:
        self._path, self._check, self._reading = path, check, threading.Lock()
        self._served: Callable[[], Iterable[str]] | None = None
        self._last_stamp = self._stamp()
        self._keys: dict[str, Key] = {}
        self._keys = self._read()

    def compare(self, served: Callable[[], Iterable[str]] | None) -> None:
        """Logs which keys name a model that is not `served`, now and whenever the file is read again."""
        self._served = served
        self.warn_of_names()

    def warn_of_names(self) -> None:
        """Logs each name that keys have for a model that is not served. Hundreds of names take seconds."""
        if self._served is None:
            return
        served, current_time = list(self._served()), datetime.now(UTC)
        ids_by_name: dict[str, list[str]] = {}
        for key in self._keys.values():
            for name in () if key.models == "all" or key.state(current_time) != "active" else key.models:
                ids_by_name.setdefault(name, []).append(key.id)
        for name, (first, *others) in ids_by_name.items():
            if name in served:
                continue
            keys = f"the key {first} and {len(others)} more name" if others else f"the key {first} names"
            hint = did_you_mean(nearest(name, served)) or "its holder cannot call it"
            log.warning("%s the model %r, which is not served; %s", keys, name, hint)

    def _read(self) -> dict[str, Key]:
        file = read_keys(self._path)
        try:
            self._check(file)
        except BedplateError:
            active = {key.id: key.hash for key in file.keys if key.state(datetime.now(UTC)) == "active"}
            self._keys = {id_: key for id_, key in self._keys.items() if active.get(id_) == key.hash}
            raise
        return {key.id: key for key in file.keys}

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode, status.st_uid, status.st_gid

    @property
    def is_current(self) -> bool:
        """Whether the file is the one that was read."""
        return self._stamp() == self._last_stamp

    def refresh(self) -> bool:
        """Reads the file again if it is another than before. Thousands of keys take seconds. Returns whether there are
        new keys, whose names `warn_of_names` compares."""
        with self._reading:
            stamp = self._stamp()
            if stamp == self._last_stamp:
                return False
            before = self._keys
            try:
                with without_collections():
                    self._keys = self._read()
            except BedplateError as error:
                log.error("the keys stay as they were: %s", error)
            else:
                log.info("read %d keys from %s", len(self._keys), self._path)
            self._last_stamp = stamp
            return self._keys is not before

    def get(self, id_: str) -> Key | None:
        """The key as it was last read."""
        return self._keys.get(id_)

    def recognise(self, api_key: str) -> Key | None:
        """The key that was given, whatever its state; None for a wrong one."""
        match = _KEY.fullmatch(api_key)
        key = self.get(match[1]) if match else None
        right = hmac.compare_digest(digest(api_key), _NOBODY if key is None else key.hash)
        return key if right else None
