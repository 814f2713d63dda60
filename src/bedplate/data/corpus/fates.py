"""The fate of every document of a corpus, and their tally: written part by part, read by `explain` and by the
funnel."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bedplate.core.errors import DataError
from bedplate.core.files import atomic_write
from bedplate.core.suggestions import did_you_mean, nearest

KEPT = "kept"
EXAMPLES = 3
EXAMPLE_CHARACTERS = 400
EDGES = (0, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 1_000_000)
"""Lengths of texts are counted between these, in characters; the last is open."""


@dataclass(frozen=True)
class Fate:
    """rule: what dropped it, else None; detail: why, as `word: more`; changed: the rules that changed its text; split:
    where it went; characters: before the rules."""

    id: str
    source: str
    rule: str | None
    detail: str
    characters: int
    changed: tuple[str, ...] = ()
    split: str | None = None

    @property
    def line(self) -> str:
        """For people, in one line of a terminal: a name may hold line breaks and other controls."""
        summary = f"{self.source}: {self.id} ({self.characters:,} characters): {self.sentence}"
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in summary)

    @property
    def sentence(self) -> str:
        """For people."""
        if self.rule is not None:
            return f"dropped by {self.rule}" + (f" ({self.detail})" if self.detail else "")
        changed = f", its text changed by {', '.join(self.changed)}" if self.changed else ""
        return f"kept, in {self.split or 'no split'}{changed}"


@dataclass
class Tally:
    """Counts of some documents, made to be added up. dropped: rule → reason → count; examples: rule → the first few;
    before, after: how many texts have a length between EDGES."""

    documents: int = 0
    characters: int = 0
    bytes: int = 0
    kept: int = 0
    kept_characters: int = 0
    kept_bytes: int = 0
    dropped: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    dropped_bytes: dict[str, int] = field(default_factory=dict[str, int])
    changed: dict[str, int] = field(default_factory=dict[str, int])
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict[str, list[dict[str, str]]])
    before: list[int] = field(default_factory=lambda: [0] * len(EDGES))
    after: list[int] = field(default_factory=lambda: [0] * len(EDGES))

    def saw(self, text: str) -> None:
        """A document as its source has it."""
        self.documents += 1
        self.characters += len(text)
        self.bytes += len(text.encode("utf-8", "surrogatepass"))
        self.before[bucket(len(text))] += 1

    def accept(self, text: str) -> None:
        self.kept += 1
        self.kept_characters += len(text)
        self.kept_bytes += len(text.encode("utf-8", "surrogatepass"))
        self.after[bucket(len(text))] += 1

    def drop(self, rule: str, detail: str, size: int, id: str, text: str) -> None:
        """size: bytes of its text."""
        reasons = self.dropped.setdefault(rule, {})
        reason = detail.partition(":")[0]
        reasons[reason] = reasons.get(reason, 0) + 1
        self.dropped_bytes[rule] = self.dropped_bytes.get(rule, 0) + size
        shown = self.examples.setdefault(rule, [])
        if len(shown) < EXAMPLES:
            shown.append({"id": id, "detail": detail, "text": text[:EXAMPLE_CHARACTERS]})

    def unkeep(self, characters: int, size: int, changed: Sequence[str]) -> None:
        """A document that was kept is not, after all. size: bytes; changed: the rules that had changed its text."""
        self.kept -= 1
        self.kept_characters -= characters
        self.kept_bytes -= size
        self.after[bucket(characters)] -= 1
        for rule in changed:
            self.changed[rule] -= 1
            if not self.changed[rule]:
                del self.changed[rule]

    def add(self, tally: Tally) -> None:
        for name in ("documents", "characters", "bytes", "kept", "kept_characters", "kept_bytes"):
            setattr(self, name, getattr(self, name) + getattr(tally, name))
        for rule, reasons in tally.dropped.items():
            mine = self.dropped.setdefault(rule, {})
            for reason, count in reasons.items():
                mine[reason] = mine.get(reason, 0) + count
        for mine, theirs in ((self.dropped_bytes, tally.dropped_bytes), (self.changed, tally.changed)):
            for rule, count in theirs.items():
                mine[rule] = mine.get(rule, 0) + count
        for rule, shown in tally.examples.items():
            have = self.examples.setdefault(rule, [])
            have += shown[: EXAMPLES - len(have)]
        self.before = [a + b for a, b in zip(self.before, tally.before, strict=True)]
        self.after = [a + b for a, b in zip(self.after, tally.after, strict=True)]

    def check(self, part_name: str) -> None:
        """DataError where what was kept and dropped is not what was read."""
        dropped = sum(sum(reasons.values()) for reasons in self.dropped.values())
        if self.documents != self.kept + dropped:
            raise DataError(
                f"{part_name}: {self.documents} documents were read, but {self.kept} were kept and {dropped} dropped; "
                "the counts must agree: remove the work folder and build again"
            )


def bucket(characters: int) -> int:
    """The number of the last of EDGES that is not above."""
    return max(i for i, edge in enumerate(EDGES) if edge <= characters)


def write_fates(path: Path, fates: list[Fate]) -> None:
    """One JSON line each, compressed, the same bytes for the same fates."""
    lines = "".join(json.dumps(_short(fate), ensure_ascii=False) + "\n" for fate in fates)
    atomic_write(path, gzip.compress(lines.encode("utf-8", "surrogatepass"), 6, mtime=0))


def _short(fate: Fate) -> dict[str, Any]:
    values: dict[str, Any] = {"id": fate.id, "source": fate.source, "characters": fate.characters}
    for name in ("rule", "detail", "split"):
        if getattr(fate, name):
            values[name] = getattr(fate, name)
    return {**values, **({"changed": list(fate.changed)} if fate.changed else {})}


def read_fates(path: Path) -> Iterator[Fate]:
    """Reads the fates of one file. DataError where it is damaged."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", errors="surrogatepass") as lines:
            for line in lines:
                values: Mapping[str, Any] = json.loads(line)
                yield Fate(
                    values["id"],
                    values["source"],
                    values.get("rule"),
                    values.get("detail", ""),
                    values["characters"],
                    tuple(values.get("changed", ())),
                    values.get("split"),
                )
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}; build the corpus again") from error


def fates_of(directory: Path, id: str) -> list[Fate]:
    """What became of the documents of this id, or whose id ends in it behind a `/` or `#`; of several sources there may
    be several. DataError where there is none, with the nearest."""
    folder = directory / "fates"
    files = sorted(folder.glob("*.jsonl.gz"))
    if not files:
        raise DataError(f"{directory} has no fates: it is not a corpus made by `bedplate data build`")
    fates: list[Fate] = []
    similar_ids: list[str] = []
    for path in files:
        ids: list[str] = []
        for fate in read_fates(path):
            if fate.id == id or fate.id.endswith((f"/{id}", f"#{id}")):
                fates.append(fate)
            ids.append(fate.id)
        similar_ids += nearest(id, ids, 2) if not fates and len(ids) < 20_000 else []
    exact = [fate for fate in fates if fate.id == id]
    if not fates:
        hint = did_you_mean(nearest(id, similar_ids, 3)) or "`bedplate data funnel` shows ids"
        raise DataError(f"{directory} read no document {id!r}; {hint}")
    return exact or fates
