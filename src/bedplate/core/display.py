"""How an object is shown to a person: one short line for `repr`, a small table for notebooks, everything escaped."""

from __future__ import annotations

import html
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import PurePath

MAX_CHARS = 200
"""Characters of a line."""


def line(type_name: str, *facts: object) -> str:
    """`<kind fact, fact>`, shortened in its middle where it is long. A fact that is None or "" is left out."""
    summary = ", ".join(" ".join(str(fact).split()) for fact in facts if fact is not None and fact != "")
    return f"<{type_name} {shortened(summary)}>"


def shortened(text: str, max_chars: int = MAX_CHARS) -> str:
    """The text without its middle where it is longer than `max_chars` characters."""
    if len(text) <= max_chars:
        return text
    head = max_chars * 2 // 3
    return f"{text[:head]} … {text[head + 3 - max_chars :]}"


def _whole(parts: Sequence[str], max_chars: int) -> str:
    """Parts with commas between them, those in their middle left out where all are too long: none of them is cut."""
    if len(", ".join(parts)) <= max_chars:
        return ", ".join(parts)
    room, head = max_chars, 0
    while head < len(parts) and len(parts[head]) + 2 <= room - max_chars // 3:
        room -= len(parts[head]) + 2
        head += 1
    tail = len(parts)
    while tail > head and len(parts[tail - 1]) + 2 <= room:
        tail -= 1
        room -= len(parts[tail]) + 2
    return ", ".join([*parts[:head], f"… {tail - head} more …", *parts[tail:]])


def chosen(value: float) -> str:
    """A number that a person chose as it was written; one that was computed, which has digits without end, in four."""
    return f"{value:.10g}" if math.isclose(round(value, 6), value, rel_tol=1e-12) else f"{value:.4g}"


def confidence_text(level: float) -> str:
    """Such as `95.0% confidence`, with as many digits as tell it from certainty: `99.95% confidence`."""
    digits = 1 if level >= 1 else max(1, math.ceil(-math.log10(100 * (1 - level)) - 1e-9))
    return f"{level:.{digits}%} confidence"


def join_names(names: Sequence[str], max_names: int = 5) -> str:
    """Names with commas between them, and how many more there are."""
    remainder = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return ", ".join(names[:max_names]) + remainder


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], note: str = "") -> str:
    """An HTML table below its title, for a notebook. Without a header the first cell of each row names it."""
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    first = "td" if header else "th"
    body = "".join(f"<tr>{''.join(_cells(row, first))}</tr>" for row in rows)
    note_html = f"<p>{_text(note)}</p>" if note else ""
    titled = f"<thead><tr>{head}</tr></thead>" if header else ""
    return f"<div><strong>{_text(title)}</strong>{note_html}<table>{titled}<tbody>{body}</tbody></table></div>"


def _cells(row: Sequence[object], first: str) -> Iterator[str]:
    for tag, cell in zip((first, *["td"] * len(row)), row, strict=False):
        yield f"<{tag}>{_text(cell)}</{tag}>"


def _text(value: object) -> str:
    return "" if value is None else html.escape(str(value))


class Displayable(ABC):
    """Something that says of itself what a person wants to know, in a few words each."""

    @property
    @abstractmethod
    def facts(self) -> Mapping[str, str]: ...

    def __repr__(self) -> str:
        return line(type(self).__name__, *self.facts.values())

    def _repr_html_(self) -> str:
        return table(type(self).__name__, (), self.facts.items())


class Brief:
    """A dataclass (with repr=False) of which a person sees the numbers and texts: long parts stand by their names."""

    def __repr__(self) -> str:
        parts = [f"{name}={value}" for name, value in self._facts()]
        return f"<{type(self).__name__} {_whole(parts, 2 * MAX_CHARS)}>"

    def _repr_html_(self) -> str:
        return table(type(self).__name__, (), self._facts())

    def _facts(self) -> list[tuple[str, str]]:
        return [(name, figure) for name, value in vars(self).items() if (figure := _figure(value))]


def _figure(value: object) -> str:
    """A number, a text or a range in few characters; "" for anything else."""
    if isinstance(value, bool | int | Decimal):
        return str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple) and 0 < len(value) <= 3 and all(isinstance(number, int | float) for number in value):
        return " to ".join(f"{number:.4g}" for number in value)
    ends = [getattr(value, name, None) for name in ("low", "central", "high")]
    if all(isinstance(end, int | float) for end in ends):
        return f"{ends[1]:.4g} ({ends[0]:.4g} to {ends[2]:.4g})"
    if isinstance(value, str | PurePath):
        return shortened(str(value), 60)
    return str(getattr(value, "name", ""))
