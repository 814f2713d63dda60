"""Which of the processor's instructions the native kernel uses."""

from __future__ import annotations

from bedplate.inference.native.library import Library, load


def level_of(library: Library) -> str:
    """The level that a loaded kernel runs at."""
    return library.instructions().decode()


def levels_here() -> tuple[str, ...]:
    """The levels that this processor has, best first; none where there is no kernel."""
    library = load()
    return () if isinstance(library, str) else (level_of(library),)
