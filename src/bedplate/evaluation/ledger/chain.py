"""A ledger's file: a chain of entries, and its head, by which what is taken off the chain's end shows.

Each entry has its own SHA-256 and that of the line before, so that edits show. What a ledger at home once had, and the
hash of its last line, is kept in `ledger-heads/` of BEDPLATE_HOME. The head is written after the entry, so that a kill
between the two leaves a head that is behind, which is no fault. A last line without its end is what a killed writer
left.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bedplate.core.errors import DataError
from bedplate.core.files import append_jsonl, atomic_write, bedplate_home, read_text, sha256_bytes, sha256_json
from bedplate.core.json import load_json

LedgerRecord = Mapping[str, Any]


@dataclass(frozen=True)
class Chain:
    """The entries of one file that can be read, in order. breaks: the lines (from 1) at which it does not hold. hashes:
    of all whole lines."""

    path: Path
    entries: tuple[LedgerRecord, ...]
    breaks: tuple[int, ...]
    hashes: tuple[str, ...]

    @property
    def last(self) -> str:
        """Hash of the last line, "" of none."""
        return self.hashes[-1] if self.hashes else ""

    def notes(self) -> list[str]:
        """What is wrong with it, as sentences."""
        if not self.breaks:
            return []
        lines = ", ".join(map(str, self.breaks))
        return [
            f"the ledger {self.path} is damaged at line {lines}: entries were changed or taken out there, which counts "
            f"as {len(self.breaks)} further verdict{'s' if len(self.breaks) > 1 else ''} on every row; restore the file"
        ]


def read_chain(path: Path) -> Chain:
    """The file as it is; of one that is not there, no entries. DataError for one that cannot be read at all."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Chain(path, (), (), ())
    except OSError as error:
        why = error.strerror or error
        raise DataError(f"{path}: the ledger cannot be read: {why}; restore it, or the right to read it") from error
    entries: list[LedgerRecord] = []
    breaks: list[int] = []
    hashes: list[str] = []
    chained, sure = False, True
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _parse_record(line)
        if record is None:
            if number < len(lines):
                breaks.append(number)
                hashes.append(sha256_bytes(line))
                chained, sure = True, False
            continue
        changed = "sum" in record and record["sum"] != _sum(record)
        # entries from before there was a chain have no hash, and come before all that have one
        last = hashes[-1] if hashes else ""
        if changed or (sure and (record["before"] != last if "before" in record else chained)):
            breaks.append(number)
        # of a changed one the next has another hash: that is one change, not two
        chained, sure = chained or "before" in record, not changed
        entries.append(record)
        hashes.append(sha256_bytes(line))
    return Chain(path, tuple(entries), tuple(breaks), tuple(hashes))


def _parse_record(line: bytes) -> LedgerRecord | None:
    try:
        parsed = load_json(line.decode("utf-8"))
    except ValueError:  # UnicodeDecodeError is one
        return None
    if not isinstance(parsed, dict):
        return None
    record = cast("dict[str, Any]", parsed)
    lists = (record.get(name, []) for name in ("rows", "exact", "like", "judged"))
    whole = isinstance(record.get("verdict"), str) and isinstance(record.get("number"), int)
    return record if whole and all(isinstance(values, list) for values in lists) else None


def append(chain: Chain, record: LedgerRecord) -> None:
    """Write the next entry of a chain that was just read, under the lock of its file, and see it on disk. UsageError
    where that is refused."""
    whole = {**record, "before": chain.last}
    append_jsonl(chain.path, [{**whole, "sum": _sum(whole)}])


@dataclass(frozen=True)
class Head:
    """What a ledger at home had when it was last written to. lines: whole ones; last: hash of the last of them;
    rewritten: how often it was found to be another ledger."""

    path: Path
    verdicts: frozenset[str] = frozenset()
    lines: int = 0
    last: str = ""
    rewritten: int = 0

    @classmethod
    def of(cls, ledger: Path) -> Head:
        """The head of a ledger; an empty one where none was written, as by versions before there was any."""
        home = bedplate_home()
        name = ledger.relative_to(home) if ledger.is_relative_to(home) else ledger.resolve()
        path = home / "ledger-heads" / f"{sha256_json(str(name))[:16]}.json"
        try:
            fields: Any = json.loads(read_text(path))
            numbers = int(fields["lines"]), str(fields["last"]), int(fields["rewritten"])
            return cls(path, frozenset(map(str, fields["verdicts"])), *numbers)
        except (DataError, ValueError, KeyError, TypeError):
            return cls(path)

    def lost(self, home: Chain, known: Collection[str], notes: list[str]) -> tuple[int, int]:
        """How many of its verdicts nothing knows of any more, and how often the ledger was rewritten; what is wrong is
        noted."""
        missing = max(0, len(self.verdicts.difference(known)) - len(home.breaks))  # which count by themselves
        ends_elsewhere = 0 < self.lines <= len(home.hashes) and home.hashes[self.lines - 1] != self.last
        rewritten = self.rewritten + (ends_elsewhere and not home.breaks)
        if missing or rewritten:
            problem = f"lacks {missing} of the verdicts that it had" if missing else "was rewritten"
            notes.append(f"the ledger {home.path} {problem}, by {self.path}, and no other knows them; they count")
        return missing, rewritten

    def write(self, home: Chain, rewritten: int) -> None:
        """What the ledger has now, and the verdicts that it once had."""
        if self.lines == len(home.hashes) and self.last == home.last:
            return
        verdicts = sorted(self.verdicts.union(record["verdict"] for record in home.entries))
        values = {"verdicts": verdicts, "lines": len(home.hashes), "last": home.last, "rewritten": rewritten}
        atomic_write(self.path, json.dumps(values) + "\n")


def _sum(record: LedgerRecord) -> str:
    return sha256_json({name: value for name, value in record.items() if name != "sum"})
