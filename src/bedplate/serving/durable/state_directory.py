"""The server's state directory (batches, feedback): made when needed, locked by one server at a time."""

from __future__ import annotations

import fcntl
import logging
import threading
from pathlib import Path
from typing import BinaryIO

from bedplate.core.errors import UsageError
from bedplate.serving.schemas.http_errors import StatusError
from bedplate.serving.settings.server_config import ServerConfig, state_directory

log = logging.getLogger("bedplate.serving")

STATE_BUSY = "state_unavailable"


class StateDirectory:
    """One directory. A server that was given it by name must get it; the default one may be held by another server of
    this machine, and then only what needs it fails."""

    def __init__(self, config: ServerConfig) -> None:
        self.path = state_directory(config.state)
        self._named = config.state is not None
        self._lock: BinaryIO | None = None
        self._acquiring = threading.Lock()

    @property
    def is_needed(self) -> bool:
        """Whether there is something to hold: a directory that was asked for, or one that an earlier server left."""
        return self._named or self.path.exists()

    def begin(self) -> bool:
        """Holds the directory at the server's start. False where only the default one is taken: that is logged."""
        try:
            self.acquire()
        except StatusError as error:
            if self._named:
                raise UsageError(error.message) from None
            log.warning("%s", error.message)
            return False
        return True

    def acquire(self) -> Path:
        """The directory, from now on this server's alone. StatusError 503 where another server has it."""
        with self._acquiring:  # two at once would each find the other's lock
            if self._lock is None:
                self._lock = self._locked_file()
        return self.path

    def _locked_file(self) -> BinaryIO:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = (self.path / ".lock").open("ab")
        except OSError as error:
            raise StatusError(503, f"the state directory cannot be used: {error.strerror}", STATE_BUSY) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise StatusError(
                503, "another server holds this server's state directory; give each server its own `state`", STATE_BUSY
            ) from None
        return file

    def release(self) -> None:
        """At the server's end; the kernel does it for a killed one."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
