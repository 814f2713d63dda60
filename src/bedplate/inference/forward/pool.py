"""Blocks of memory that sequences share: which are free, which hold zeros, and how many use each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

CLEARED = 16
"""Blocks that are cleared at once."""


class BlockPool:
    """Blocks of the layers of one window, and how many use each. Those that are taken hold zeros: what is masked takes
    part in products, where the infinities and NaN of one request would reach another's, and so would what memory held
    before. clear: makes some blocks so, which is done for `CLEARED` at once, and to none before it is needed."""

    def __init__(self, blocks: int, clear: Callable[[Sequence[int]], None]) -> None:
        self.blocks = blocks
        self._used, self._cleared = list(range(blocks - 1, -1, -1)), list[int]()
        self._uses = [0] * blocks
        self._clear = clear

    @property
    def free(self) -> int:
        """How many nobody uses."""
        return len(self._used) + len(self._cleared)

    def allocate(self) -> int:
        if not self._cleared:
            batch = self._used[-CLEARED:]
            self._clear(batch)
            del self._used[-CLEARED:]
            self._cleared = batch
        block = self._cleared.pop()
        self._uses[block] = 1
        return block

    def share(self, blocks: Sequence[int]) -> None:
        """One user more of each."""
        for block in blocks:
            self._uses[block] += 1

    def let_go(self, blocks: Sequence[int]) -> None:
        """One user less of each."""
        for block in blocks:
            self._uses[block] -= 1
            if self._uses[block] == 0:
                self._used.append(block)
