"""A shuffled order that is computed where it is asked for, in no memory: a Feistel network over the numbers below the
next power of four, walked until the result is below n (Black & Rogaway, "Ciphers with arbitrary finite domains", 2002).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6


class Permutation:
    """A bijection of the numbers 0 to n − 1 that its names decide. ValueError for n < 1 or above 2⁶²."""

    def __init__(self, n: int, *names: object) -> None:
        if not 1 <= n <= 1 << 62:
            raise ValueError(f"there is no order of {n} things")
        self.n = n
        self._half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        digest = hashlib.sha256("\0".join(map(str, (n, *names))).encode()).digest()
        second_digest = hashlib.sha256(digest).digest()
        self._keys = np.frombuffer(digest + second_digest, dtype="<u8")[:_ROUNDS]

    def __call__(self, numbers: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Where each number goes; of any shape. IndexError for one that is not below n."""
        indices = np.asarray(numbers)
        if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < self.n:
            raise IndexError(f"{int(indices.max())} is not below {self.n}")
        permuted = self._walk(indices.astype(np.uint64).reshape(-1))
        return permuted.astype(np.int64).reshape(indices.shape)

    def _walk(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        permuted = self._feistel(numbers)
        out = np.flatnonzero(permuted >= self.n)
        while out.size:
            permuted[out] = self._feistel(permuted[out])
            out = out[permuted[out] >= self.n]
        return permuted

    def _feistel(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = numbers >> self._half, numbers & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._mask)
        return (left << self._half) | right


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele, Lea & Flood, 2014), modulo 2⁶⁴."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
