"""The ways to adapt, cheapest first: RUNGS gives the rungs of `task.rung_table.RUNG_TABLE`, each imported when it is
first asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from bedplate.adaptation.task.rung_table import RUNG_TABLE

if TYPE_CHECKING:
    from bedplate.adaptation.rungs.rung import Role, Rung
    from bedplate.adaptation.task.spec import AdaptSpec


class _Rungs(Mapping[str, "Rung"]):
    def __init__(self) -> None:
        self._loaded: dict[str, Rung] = {}

    def __getitem__(self, name: str) -> Rung:
        path = RUNG_TABLE[name].rung
        if path not in self._loaded:
            module, _, attribute = path.partition(":")
            made = getattr(import_module(module, __name__), attribute)
            self._loaded[path] = made() if isinstance(made, type) else made
        return self._loaded[path]

    def __iter__(self) -> Iterator[str]:
        return iter(RUNG_TABLE)

    def __len__(self) -> int:
        return len(RUNG_TABLE)


RUNGS = _Rungs()


def chosen_rungs(spec: AdaptSpec) -> tuple[str, ...]:
    """The rungs that a task file asks for, cheapest first."""
    return tuple(name for name in RUNGS if spec.includes(name))


def rung_of(candidate: str) -> Rung:
    """The rung of a candidate: its name, without the base's behind it."""
    return RUNGS[candidate.partition("@")[0]]


def in_role(role: Role) -> str:
    """The rung that plays a part which only one plays."""
    return next(name for name, rung in RUNGS.items() if rung.traits.role == role)
