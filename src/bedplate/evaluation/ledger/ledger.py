"""The test ledger: who opened which test rows for which verdict. Append-only, and apart from every cache.

The j-th verdict on the same rows may spend 6α/(π²j²) (core.statistics.spent_alpha); from the second on, reports say
EXPLORATORY, because what was seen on these rows may have shaped what is judged on them. What ledgers that know of each
other do not agree on counts as a verdict more, and is said; so does an opening that a report alone tells of.

Ledgers lie at home, whatever the data is called, and beside the data, whoever opens it from wherever: there it is
`.bedplate/test-openings.jsonl` in the data file's directory. Data sets of the catalogue have none of their own; theirs
lies beside the task file. A report names the verdict that its test rows were opened for, and the splits of its run,
which lie beside it, the rows.

Each record has its own SHA-256 and that of the record before, so that edits show. What is taken off a file's end does
not show there; ledgers that know of each other tell that, and of all of them the head in `ledger-heads/` of
BEDPLATE_HOME, which has the verdicts of the ledger at home. It is written after the record, so that a kill between the
two leaves a head that is behind, which is no fault. A last line without its end is what a killed writer left.

What a look at a skin gained is kept in a file for each skin, so that a further look continues the same test: looks are
numbered in `ledger/skin-looks.jsonl` at home before anything is asked, and a row is bet on once.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from bedplate.core.errors import DataError
from bedplate.core.files import (
    append_jsonl,
    atomic_write,
    bedplate_home,
    file_lock,
    read_text,
    sha256_bytes,
    sha256_json,
)
from bedplate.core.json import load_json
from bedplate.core.statistics.betting import Gains
from bedplate.data.sources import is_file
from bedplate.evaluation.ledger.row_keys import Keys, matching_rows
from bedplate.evaluation.task import Task

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
    share = record.get("alike", 0.0)
    whole = whole and isinstance(share, int | float) and 0 <= share <= 1
    return record if whole and all(isinstance(values, list) for values in lists) else None


def append(chain: Chain, record: LedgerRecord) -> None:
    """Write the next entry of a chain that was just read, under the lock of its file, and see it on disk. UsageError
    where that is refused."""
    whole = {**record, "before": chain.last}
    append_jsonl(chain.path, [{**whole, "sum": _sum(whole)}])


def _head_of(ledger: Path, notes: list[str]) -> tuple[Path, frozenset[str]]:
    """The head of a ledger at home, and the verdicts that it names: none where it was never written, or is damaged,
    which is noted."""
    home = bedplate_home()
    name = ledger.relative_to(home) if ledger.is_relative_to(home) else ledger.resolve()
    path = home / "ledger-heads" / f"{sha256_json(str(name))[:16]}.json"
    try:
        return path, frozenset(map(str, json.loads(read_text(path))["verdicts"] if path.exists() else ()))
    except (DataError, ValueError, KeyError, TypeError):
        notes.append(f"{path} is damaged: verdicts that were taken off the end of {ledger} cannot be told from it")
        return path, frozenset()


def _sum(record: LedgerRecord) -> str:
    return sha256_json({name: value for name, value in record.items() if name != "sum"})


def merged(chains: Sequence[Chain]) -> dict[str, list[LedgerRecord]]:
    """The entries of several ledgers by their verdict; one that several have is one verdict."""
    records_by_verdict: dict[str, list[LedgerRecord]] = {}
    for chain in chains:
        for record in chain.entries:
            records_by_verdict.setdefault(record["verdict"], []).append(record)
    return records_by_verdict


OPENINGS = "test-openings.jsonl"
_SHOWN = 3


@dataclass(frozen=True)
class Opening:
    """`number` is j: this is the j-th verdict on some of these rows, counted from 1. notes: what is wrong with ledgers,
    or lacking where one should be."""

    verdict_id: str
    number: int
    notes: tuple[str, ...] = ()

    @property
    def exploratory(self) -> bool:
        """Whether these rows had served an earlier verdict."""
        return self.number > 1

    def exploratory_remark(self, rows: str = "rows") -> str:
        """The sentence with which a verdict on rows that served earlier ones begins, else ""."""
        if not self.exploratory:
            return ""
        earlier = f"{self.number - 1} earlier verdict{'s' if self.number > 2 else ''}"
        return f"EXPLORATORY: some of these {rows} were used for {earlier}; only fresh rows can confirm."


@dataclass(frozen=True)
class ReportedOpening:
    """An opening by its verdict. record: its rows as a ledger has them; None where the run is not there any more."""

    verdict: str
    report: Path
    record: LedgerRecord | None


def told_at_home(ledger_verdicts: Collection[str]) -> list[ReportedOpening]:
    """The openings of catalogued reports, by verdict, without those that are known. DataError: a damaged catalogue."""
    if not (bedplate_home() / "catalog.sqlite").is_file():
        return []
    from bedplate.skins.catalog import Catalog  # late, as reading skins loads torch

    with Catalog.open() as catalog:
        reports = [(report.details.get("opened"), report.path) for report in catalog.entries("report")]
    report_paths = {verdict: Path(path) for verdict, path in reports if verdict is not None and path is not None}
    unknown = ((verdict, path) for verdict, path in report_paths.items() if verdict not in ledger_verdicts)
    return [ReportedOpening(verdict, path, _rows(path)) for verdict, path in unknown]


def _rows(report: Path) -> LedgerRecord | None:
    from bedplate.skins.records import SPLITS_FILE

    if not report.is_file():
        return None
    try:
        test: Any = json.loads(read_text(report.parent / SPLITS_FILE))["test"]
        return {"rows": [*map(str, test["rows"])], "exact": [*map(str, test.get("texts", ()))]}
    except (DataError, ValueError, KeyError, TypeError, AttributeError):
        return None


class TestLedger:
    """A file of openings at home, and others beside the data; concurrent writers wait for each other. keep_beside:
    whether those beside the data are written; they are read in any case. told: the openings that reports tell of, but
    for the verdicts given; without it nothing is expected of a ledger that is not there yet."""

    __test__ = False  # the name begins with Test; pytest should not collect it

    def __init__(
        self,
        path: Path | None = None,
        *,
        data_ledgers: Iterable[Path] = (),
        keep_beside: bool = True,
        reported_openings: Callable[[Collection[str]], Sequence[ReportedOpening]] | None = None,
    ) -> None:
        self.path = bedplate_home() / "ledger" / OPENINGS if path is None else path
        self.data_ledgers = tuple(ledger_path for ledger_path in data_ledgers if ledger_path != self.path)
        self.keep_beside = keep_beside
        self._reported_openings = reported_openings

    def open(
        self,
        verdict_id: str,
        rows: Keys | Sequence[str],
        *,
        task: str,
        reason: str,
        announce: Callable[[int], None] | None = None,
    ) -> Opening:
        """Record, before anything is read, that these rows are opened for this verdict. `verdict_id` names the question
        (skins, target, rows): asked again, after an interruption, it keeps its number and spends nothing. rows: the
        keys of rows, or of what else is looked at again, one for each. announce: is told the number of a verdict that
        spends something, before it does. Raises DataError where a ledger cannot be read, UsageError where that at home
        cannot be written."""
        keys = rows if isinstance(rows, Keys) else _plain(rows)
        with ExitStack() as locks:
            notes: list[str] = []
            writable_paths = [self.path, *(path for path in self.data_ledgers if self._writable(path, notes))]
            for path in sorted(writable_paths):  # in one order, whoever asks
                locks.enter_context(file_lock(path.with_name(path.name + ".lock")))
            chains = [read_chain(path) for path in (self.path, *self.data_ledgers)]
            notes += [note for chain in chains for note in chain.notes()]
            verdicts = merged(chains)
            verdict_records = verdicts.pop(verdict_id, [])
            reported, known = list[set[int]](), {*verdicts, verdict_id}
            if self._reported_openings is not None:
                openings = self._reported_openings(known)
                known |= {opening.verdict for opening in openings if opening.record is not None}
                reported = _reported(keys, openings, chains, bool(verdicts), len(writable_paths) > 1, notes)
            head, in_head = _head_of(self.path, notes)
            earlier = max(0, len(in_head - known) - len(chains[0].breaks))  # breaks count by themselves
            if earlier:
                problem = f"lacks {earlier} of the verdicts that it had, which {head} lists and no other ledger has"
                notes.append(f"the ledger {self.path} {problem}; they count as verdicts on these rows")
            earlier += sum(_lost(chains[0], chain, verdict_id, notes) for chain in chains[1:])
            earlier += _earlier(keys, verdicts, reported, chains, notes) + sum(len(chain.breaks) for chain in chains)
            number = max((record["number"] for record in verdict_records), default=1 + earlier)
            if announce is not None and not verdict_records:
                announce(number)
            writable = [chain for chain in chains if chain.path in writable_paths]
            # how many a ledger has besides this verdict, which another home may have written there before
            others = {str(c.path): sum(record["verdict"] != verdict_id for record in c.entries) for c in writable}
            new_record = {
                "verdict": verdict_id,
                "number": number,
                "task": task,
                "reason": reason,
                "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "seen": others,
            }
            for chain in writable:
                if all(record["verdict"] != verdict_id for record in chain.entries):
                    append(chain, {**new_record, **_key_fields(keys, chain)})
            at_home = {verdict_id, *(record["verdict"] for record in chains[0].entries)}
            if not at_home <= in_head:
                atomic_write(head, json.dumps({"verdicts": sorted(at_home | in_head)}) + "\n")
            return Opening(verdict_id, number, tuple(notes))

    def _writable(self, path: Path, notes: list[str]) -> bool:
        """Whether an entry can be written beside the data; where it cannot, that is noted."""
        if not self.keep_beside:
            notes.append(f"no ledger is kept beside the data ({path.parent}): BEDPLATE_DATA_LEDGER is off")
            return False
        try:
            path.parent.mkdir(exist_ok=True)
            writable = os.access(path.parent, os.W_OK | os.X_OK) and (not path.exists() or os.access(path, os.W_OK))
        except OSError:
            writable = False
        if not writable:
            notes.append(f"the ledger beside the data cannot be written ({path}): only that at home has this opening")
        return writable


def _plain(rows: Sequence[str]) -> Keys:
    """Keys of rows that are known by one hash that never changes."""
    distinct = tuple(sorted(set(rows)))
    nothing = (frozenset[str](),) * len(distinct)
    return Keys(distinct, nothing, nothing)


def _key_fields(keys: Keys, chain: Chain) -> dict[str, Any]:
    """What an entry keeps of the keys; where the file has them already, their hash is enough."""
    if not any(keys.exact):
        return {"rows": list(keys.old)}
    if any(record.get("keys") == keys.digest for record in chain.entries):
        return {"rows": [], "keys": keys.digest}
    known_by = {"exact": keys.all_exact, "like": keys.all_weak, "alike": keys.alike}
    return {"rows": sorted(keys.old), "keys": keys.digest, **known_by}


def _earlier(
    keys: Keys,
    verdicts: Mapping[str, Sequence[LedgerRecord]],
    reported: Iterable[Iterable[int]],
    chains: Sequence[Chain],
    notes: list[str],
) -> int:
    """The largest number of earlier verdicts that one of the rows was part of. reported: the rows of further ones."""
    written = {record["keys"]: record for chain in chains for record in chain.entries if "exact" in record}
    at_home = {record["verdict"] for record in chains[0].entries}
    counts: Counter[int] = Counter(row for rows in reported for row in rows)
    elsewhere = 0
    for verdict, entries in verdicts.items():
        whole = (record if "exact" in record else written.get(record.get("keys", ""), record) for record in entries)
        matched_rows = set[int]().union(*(matching_rows(keys, record) for record in whole))
        elsewhere += bool(matched_rows) and verdict not in at_home
        counts.update(matched_rows)
    if elsewhere:
        several = f"{elsewhere} earlier openings of these rows are"
        notes.append(
            f"{'an earlier opening of these rows is' if elsewhere == 1 else several} known from the ledger beside the "
            f"data alone: from another BEDPLATE_HOME, or taken out of {chains[0].path}; they count"
        )
    return max(counts.values(), default=0)


def _reported(
    keys: Keys,
    openings: Sequence[ReportedOpening],
    chains: Sequence[Chain],
    has_verdicts: bool,
    has_data_ledger: bool,
    notes: list[str],
) -> list[set[int]]:
    """The rows of each opening that reports alone tell of. That there are any is said, and that a ledger begins.
    has_verdicts: whether ledgers know of verdicts besides this one; has_data_ledger: whether one is kept beside the
    data."""
    home = chains[0]
    rows = {
        opening.verdict: matches
        for opening in openings
        if opening.record is not None and (matches := matching_rows(keys, opening.record))
    }
    if rows:
        phrase = "an earlier opening of these rows is" if len(rows) == 1 else f"{len(rows)} earlier openings are"
        reports = list(dict.fromkeys(str(opening.report) for opening in openings if opening.verdict in rows))
        places = ", ".join(reports[:_SHOWN]) + (", …" if len(reports) > _SHOWN else "")
        notes.append(f"{phrase} known from reports alone ({places}), and taken out of every ledger; they count")
    unreadable = sum(opening.record is None for opening in openings)
    if openings and not home.entries:
        count_phrase = "a verdict" if len(openings) == 1 else f"{len(openings)} verdicts"
        problem = f"the ledger {home.path} is not there, though the catalogue beside it knows of {count_phrase}"
        unknown = f"; of {unreadable} the rows are not known any more, so that this may be a later verdict than it says"
        notes.append(f"{problem}{unknown if unreadable else ''}")
    elif not openings and not has_verdicts and not any(chain.breaks for chain in chains):
        places = f"at home ({home.path}){' and beside the data' if has_data_ledger else ''}"
        notes.append(f"no earlier verdict on these rows is known: the test ledger begins here, {places}")
    return list(rows.values())


def _lost(home: Chain, data_chain: Chain, verdict_id: str, notes: list[str]) -> int:
    """How many entries a ledger beside the data once had that no ledger has any more; what it lacks is noted."""
    place = str(data_chain.path)
    ours = [record for record in home.entries if place in record.get("seen", {}) and record["verdict"] != verdict_id]
    recorded_verdicts = {record["verdict"] for record in data_chain.entries}
    lacking = sum(record["verdict"] not in recorded_verdicts for record in ours)
    missing = max(lacking, max((record["seen"][place] + 1 for record in ours), default=0) - len(data_chain.entries))
    if missing:
        problem = f"lacks {missing} of the openings that it had" if data_chain.entries else "is not there any more"
        notes.append(
            f"the ledger beside the data ({place}) {problem} by what {home.path} says: they were taken out, or a run "
            "was killed while it wrote; they count"
        )
    return missing - lacking


FOLDER = ".bedplate"
OFF = "BEDPLATE_DATA_LEDGER"
"""Set to `off`, this keeps ledgers from being written beside data; reports then say so."""


def ledger_for(task: Task | None, *files: Path | str, leave: Path | None = None) -> TestLedger:
    """The ledger of a task's test rows, or of the rows in `files`. leave: a directory that a run itself put rows into;
    the task file's counts then."""
    folders = {Path(file).resolve().parent for file in files if is_file(str(file))}
    if task is not None:
        task_folders = set[Path]() if task.path is None else {task.path.resolve().parent}
        for source in task.data.sources:
            place = (task.directory / source).resolve().parent if is_file(source) else None
            folders |= task_folders if place is None or (leave is not None and place == leave.resolve()) else {place}
    paths = (folder / FOLDER / OPENINGS for folder in sorted(folders) if folder.is_dir())
    keep_beside = os.environ.get(OFF, "").lower() != "off"
    return TestLedger(data_ledgers=paths, keep_beside=keep_beside, reported_openings=told_at_home)


_DIGITS = 9


def looks() -> TestLedger:
    """The ledger of looks at skins: where the test ledger has rows, it has the skin."""
    return TestLedger(bedplate_home() / "ledger" / "skin-looks.jsonl")


@dataclass(frozen=True)
class EarlierLook:
    """Looks before this one. gains: of each, by what was looked at. rows: those that a look had, judged: those that one
    had with their targets, by row hash. largest: rows of a group that are bet on at most; None before the first."""

    gains: tuple[dict[str, Gains], ...]
    rows: frozenset[str]
    judged: frozenset[str]
    largest: int | None
    notes: tuple[str, ...]


def earlier_looks(skin: str, question: str) -> EarlierLook:
    """What is known before the look that asks `question`: asked again, it goes on from where it stood."""
    chain = _chain(skin)
    before = list(itertools.takewhile(lambda record: record["verdict"] != question, chain.entries))
    gains = ({metric: np.array(bets, dtype=float) for metric, bets in record["gains"].items()} for record in before)
    return EarlierLook(
        tuple(gains),
        frozenset(row for record in before for row in record["rows"]),
        frozenset(row for record in before for row in record["judged"]),
        before[0]["largest"] if before else None,
        tuple(chain.notes()),
    )


def remember(
    skin: str,
    question: str,
    number: int,
    *,
    rows: Iterable[str],
    judged: Iterable[str],
    largest: int,
    gains: Mapping[str, Gains],
) -> None:
    """Write down what the look that asked `question` found; once, however often it is asked."""
    path = _chain(skin).path
    with file_lock(path.with_name(path.name + ".lock")):
        chain = _chain(skin)
        if any(earlier["verdict"] == question for earlier in chain.entries):
            return
        record = {
            "verdict": question,
            "number": number,
            "rows": sorted(set(rows)),
            "judged": sorted(set(judged)),
            "largest": largest,
            "gains": {metric: np.round(metric_gains, _DIGITS).tolist() for metric, metric_gains in gains.items()},
        }
        append(chain, record)


def _chain(skin: str) -> Chain:
    return read_chain(bedplate_home() / "ledger" / "looks" / f"{skin}.jsonl")
