"""The table of an engine's adapters and soft prompts, which are loaded, updated and unloaded while requests run.

A key names one version of an adapter at a time. Unloading or updating takes the key away at once; weights and cached
prefixes are freed when the last request that uses them has ended, on the version that it began with.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from bedplate.core.errors import RequestError, UsageError
from bedplate.inference.forward.batch import LoadedAdapter


class Adapters:
    """The loaded adapters by key. `free` is called in the computing thread with each retired adapter once it is
    unused."""

    def __init__(self, free: Callable[[LoadedAdapter], None]) -> None:
        self.base = LoadedAdapter(None)
        self._by_key: dict[str, LoadedAdapter] = {}
        self._leaving: list[LoadedAdapter] = []
        self._free = free
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: str) -> bool:
        return key in self._by_key

    def get(self, key: str | None) -> LoadedAdapter:
        """The adapter of this key; UsageError where there is none."""
        loaded = self.base if key is None else self._by_key.get(key)
        if loaded is None:
            raise UsageError(f"no adapter {key!r} is loaded")
        return loaded

    def acquire(self, key: str | None) -> LoadedAdapter:
        """The adapter of this key, in use until `release`. RequestError where there is none."""
        with self._lock:
            loaded = self.base if key is None else self._by_key.get(key)
            if loaded is None:
                raise RequestError(f"no adapter {key!r} is loaded; load it first", param="model")
            loaded.users += 1
            return loaded

    def release(self, loaded: LoadedAdapter) -> None:
        """Ends one use of an adapter."""
        with self._lock:
            loaded.users -= 1

    def check_new(self, key: str) -> None:
        """UsageError where the key is taken."""
        if key in self._by_key:
            raise UsageError(f"an adapter {key!r} is loaded already; unload it first, or use another key")

    def add(self, loaded: LoadedAdapter) -> None:
        """Makes a loaded adapter available under its key."""
        assert loaded.key is not None
        with self._lock:
            self.check_new(loaded.key)
            self._by_key[loaded.key] = loaded

    def replace(self, older: LoadedAdapter, updated: LoadedAdapter) -> None:
        """Gives the key of a loaded adapter to its next version. Call `sweep` to free the older one once unused.
        UsageError where the older one was unloaded meanwhile, since unloading takes no compute lock."""
        assert updated.key is not None
        with self._lock:
            if self._by_key.get(updated.key) is not older:
                raise UsageError(f"the adapter {updated.key!r} was unloaded during its update; load the new weights")
            self._by_key[updated.key] = updated
            older.retired = True
            self._leaving.append(older)

    def has_children(self, loaded: LoadedAdapter) -> bool:
        """Whether a soft prompt depends on this adapter."""
        with self._lock:
            return any(adapter.parent is loaded for adapter in (*self._by_key.values(), *self._leaving))

    def retire(self, key: str) -> LoadedAdapter:
        """Takes the key away. Call `sweep` in the computing thread to free unused adapters."""
        with self._lock:
            loaded = self._by_key.pop(key, None)
            if loaded is None:
                raise UsageError(f"no adapter {key!r} is loaded")
            loaded.retired = True
            self._leaving.append(loaded)
            return loaded

    @property
    def leaving(self) -> bool:
        """Whether `sweep` would free an adapter. Those that requests or a soft prompt still use may stay for long."""
        return any(adapter.users == 0 for adapter in tuple(self._leaving))

    @property
    def retired_in_use(self) -> bool:
        """Whether requests or soft prompts still use adapters whose keys are gone."""
        return any(adapter.users > 0 for adapter in tuple(self._leaving))

    def sweep(self) -> None:
        """Frees the retired adapters that are unused."""
        while True:
            with self._lock:
                unused = next((adapter for adapter in self._leaving if adapter.users == 0), None)
                if unused is None:
                    return
                self._leaving.remove(unused)
            try:
                self._free(unused)
            finally:
                if unused.parent is not None:
                    self.release(unused.parent)
                unused.freed.set()

    def close(self) -> None:
        """Drops all adapters, in use or not, and wakes the threads that wait for one to be freed."""
        with self._lock:
            leaving, self._leaving = [*self._leaving, *self._by_key.values()], []
            self._by_key, self._free = {}, lambda loaded: None
        for adapter in leaving:
            adapter.freed.set()
