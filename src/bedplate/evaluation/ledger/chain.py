"""An append-only file of records, each with its own SHA-256 and that of the record before, so that edits show.

What is taken off the end does not show in the file itself; ledgers that know of each other tell that. A last line
without its end is what a killed writer left, and no entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bedplate.core.errors import DataError
from bedplate.core.files import append_jsonl, sha256_bytes, sha256_json
from bedplate.core.json import load_json

LedgerRecord = Mapping[str, Any]


@dataclass(frozen=True)
class Chain:
    """The entries of one file that can be read, in order. breaks: the lines (from 1) at which it does not hold. last:
    hash of the last line, "" of none."""

    path: Path
    entries: tuple[LedgerRecord, ...]
    breaks: tuple[int, ...]
    last: str

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
        return Chain(path, (), (), "")
    except OSError as error:
        why = error.strerror or error
        raise DataError(f"{path}: the ledger cannot be read: {why}; restore it, or the right to read it") from error
    entries: list[LedgerRecord] = []
    breaks: list[int] = []
    last, chained, sure = "", False, True
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _parse_record(line)
        if record is None:
            if number < len(lines):
                breaks.append(number)
                last, chained, sure = sha256_bytes(line), True, False
            continue
        changed = "sum" in record and record["sum"] != _sum(record)
        # entries from before there was a chain have no hash, and come before all that have one
        if changed or (sure and (record["before"] != last if "before" in record else chained)):
            breaks.append(number)
        # of a changed one the next has another hash: that is one change, not two
        chained, sure = chained or "before" in record, not changed
        entries.append(record)
        last = sha256_bytes(line)
    return Chain(path, tuple(entries), tuple(breaks), last)


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


def _sum(record: LedgerRecord) -> str:
    return sha256_json({name: value for name, value in record.items() if name != "sum"})


def merged(chains: Sequence[Chain]) -> dict[str, list[LedgerRecord]]:
    """The entries of several ledgers by their verdict; one that several have is one verdict."""
    records_by_verdict: dict[str, list[LedgerRecord]] = {}
    for chain in chains:
        for record in chain.entries:
            records_by_verdict.setdefault(record["verdict"], []).append(record)
    return records_by_verdict
