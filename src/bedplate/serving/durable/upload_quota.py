"""Counts what arrives of uploads against a tenant's part of the disk, before it is stored."""

from __future__ import annotations

import threading
from collections import Counter

from bedplate.serving.schemas.http_errors import StatusError


class Arriving:
    """One upload. Leave the context when its bytes have been entered, or given up."""

    def __init__(self, tenant: str, stored_bytes: int, quota: int, all_: Counter[str], lock: threading.Lock) -> None:
        """stored_bytes: bytes that the tenant has on the disk already. all_: what arrives of each tenant."""
        self.tenant, self.bytes = tenant, 0
        self._stored_bytes, self._quota, self._all, self._lock = stored_bytes, quota, all_, lock

    def add(self, size: int) -> None:
        """So many bytes more. StatusError 413 where the tenant would have more than its part."""
        with self._lock:
            if self._stored_bytes + self._all[self.tenant] + size > self._quota:
                raise full(self._quota)
            self._all[self.tenant] += size
            self.bytes += size

    def __enter__(self) -> Arriving:
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._all[self.tenant] -= self.bytes
            self._all += Counter()  # in place: those that have nothing left are gone
            self.bytes = 0


def full(quota: int) -> StatusError:
    """What is answered where a tenant's part is taken."""
    message = f"your files and batches would take more than {quota:,} bytes here; delete some"
    return StatusError(413, message, "storage_full")
