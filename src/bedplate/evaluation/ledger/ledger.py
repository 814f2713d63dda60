"""The test ledger: who opened which test rows for which verdict. Append-only, and apart from every cache.

The j-th verdict on the same rows may spend 6α/(π²j²) (core.statistics.spent_alpha); from the second on, reports say
EXPLORATORY, because what was seen on these rows may have shaped what is judged on them. What ledgers that know of each
other do not agree on counts as a verdict more, and is said; so does an opening that a report alone tells of.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedplate.core.files import bedplate_home, file_lock
from bedplate.evaluation.ledger.chain import Chain, Entry, append, merged, read_chain
from bedplate.evaluation.ledger.keys import Keys, known
from bedplate.evaluation.ledger.told import Told

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


class Ledger:
    """A file of openings at home, and others beside the data; concurrent writers wait for each other.

    keep_beside: whether those beside the data are written; they are read in any case. told: the openings that reports
    tell of, but for the verdicts given; without it nothing is expected of a ledger that is not there yet.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        beside: Iterable[Path] = (),
        keep_beside: bool = True,
        told: Callable[[Collection[str]], Sequence[Told]] | None = None,
    ) -> None:
        self.path = bedplate_home() / "ledger" / OPENINGS if path is None else path
        self.beside = tuple(one for one in beside if one != self.path)
        self.keep_beside = keep_beside
        self._told = told

    def open(self, verdict_id: str, rows: Keys | Sequence[str], *, task: str, reason: str) -> Opening:
        """Record, before anything is read, that these rows are opened for this verdict.

        `verdict_id` names the question (skins, target, rows): asked again, after an interruption, it keeps its number
        and spends nothing. rows: the keys of rows, or of what else is looked at again, one for each. Raises DataError
        where a ledger cannot be read, UsageError where that at home cannot be written.
        """
        keys = rows if isinstance(rows, Keys) else _plain(rows)
        with ExitStack() as locks:
            notes: list[str] = []
            kept = [self.path, *(one for one in self.beside if self._writable(one, notes))]
            for path in sorted(kept):  # in one order, whoever asks
                locks.enter_context(file_lock(path.with_name(path.name + ".lock")))
            chains = [read_chain(path) for path in (self.path, *self.beside)]
            notes += [note for chain in chains for note in chain.notes()]
            verdicts = merged(chains)
            own = verdicts.pop(verdict_id, [])
            told = [] if self._told is None else self._told({*verdicts, verdict_id})
            reported = [] if self._told is None else _reported(keys, told, chains, bool(verdicts), len(kept) > 1, notes)
            lost = sum(_lost(chains[0], chain, verdict_id, notes) for chain in chains[1:])
            earlier = (
                _earlier(keys, verdicts, reported, chains, notes) + lost + sum(len(chain.breaks) for chain in chains)
            )
            number = max((entry["number"] for entry in own), default=1 + earlier)
            # how many a ledger has besides this verdict, which another home may have written there before
            besides = {
                str(chain.path): sum(one["verdict"] != verdict_id for one in chain.entries)
                for chain in chains
                if chain.path in kept
            }
            entry = {
                "verdict": verdict_id,
                "number": number,
                "task": task,
                "reason": reason,
                "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "seen": besides,
            }
            for chain in chains:
                if chain.path in kept and all(one["verdict"] != verdict_id for one in chain.entries):
                    append(chain, {**entry, **_kept(keys, chain)})
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
    """Of what is known by one key that never changes."""
    distinct = tuple(sorted(set(rows)))
    nothing = (frozenset[str](),) * len(distinct)
    return Keys(distinct, nothing, nothing)


def _kept(keys: Keys, chain: Chain) -> dict[str, Any]:
    """What an entry keeps of the keys; where the file has them already, their hash is enough."""
    if not any(keys.exact):
        return {"rows": list(keys.old)}
    if any(entry.get("keys") == keys.digest for entry in chain.entries):
        return {"rows": [], "keys": keys.digest}
    return {"rows": sorted(keys.old), "keys": keys.digest, "exact": keys.all_exact, "like": keys.all_weak}


def _earlier(
    keys: Keys,
    verdicts: Mapping[str, Sequence[Entry]],
    reported: Iterable[Iterable[int]],
    chains: Sequence[Chain],
    notes: list[str],
) -> int:
    """The largest number of earlier verdicts that one of the rows was part of. reported: the rows of further ones."""
    written = {entry["keys"]: entry for chain in chains for entry in chain.entries if "exact" in entry}
    at_home = {entry["verdict"] for entry in chains[0].entries}
    counted = [0] * len(keys.old)
    elsewhere = 0
    for verdict, entries in verdicts.items():
        whole = (entry if "exact" in entry else written.get(entry.get("keys", ""), entry) for entry in entries)
        found = set[int]().union(*(known(keys, entry) for entry in whole))
        elsewhere += bool(found) and verdict not in at_home
        for row in found:
            counted[row] += 1
    for rows in reported:
        for row in rows:
            counted[row] += 1
    if elsewhere:
        those = (
            "an earlier opening of these rows is"
            if elsewhere == 1
            else f"{elsewhere} earlier openings of these rows are"
        )
        notes.append(
            f"{those} known from the ledger beside the data alone: from another BEDPLATE_HOME, or taken "
            f"out of {chains[0].path}; they count"
        )
    return max(counted, default=0)


def _reported(
    keys: Keys, told: Sequence[Told], chains: Sequence[Chain], others: bool, beside: bool, notes: list[str]
) -> list[set[int]]:
    """The rows of each opening that reports alone tell of. That there are any is said, and that a ledger begins.
    others: whether ledgers know of verdicts besides this one; beside: whether one is kept beside the data."""
    home = chains[0]
    rows = {one.verdict: found for one in told if one.entry is not None and (found := known(keys, one.entry))}
    if rows:
        those = "an earlier opening of these rows is" if len(rows) == 1 else f"{len(rows)} earlier openings are"
        reports = list(dict.fromkeys(str(one.report) for one in told if one.verdict in rows))
        places = ", ".join(reports[:_SHOWN]) + (", …" if len(reports) > _SHOWN else "")
        notes.append(f"{those} known from reports alone ({places}), and taken out of every ledger; they count")
    gone = sum(one.entry is None for one in told)
    if told and not home.entries:
        many = "a verdict" if len(told) == 1 else f"{len(told)} verdicts"
        what = f"the ledger {home.path} is not there, though the catalogue beside it knows of {many}"
        unknown = f"; of {gone} the rows are not known any more, so that this may be a later verdict than it says"
        notes.append(f"{what}{unknown if gone else ''}")
    elif not told and not others and not any(chain.breaks for chain in chains):
        places = " and beside the data" if beside else ""
        notes.append(
            f"the ledger begins here, at home ({home.path}){places}: nothing else says that no verdict on these rows "
            "went before"
        )
    return list(rows.values())


def _lost(home: Chain, beside: Chain, verdict_id: str, notes: list[str]) -> int:
    """How many entries a ledger beside the data once had that no ledger has any more; what it lacks is noted."""
    place = str(beside.path)
    ours = [entry for entry in home.entries if place in entry.get("seen", {}) and entry["verdict"] != verdict_id]
    there = {entry["verdict"] for entry in beside.entries}
    lacking = sum(entry["verdict"] not in there for entry in ours)
    missing = max(lacking, max((entry["seen"][place] + 1 for entry in ours), default=0) - len(beside.entries))
    if missing:
        what = f"lacks {missing} of the openings that it had" if beside.entries else "is not there any more"
        notes.append(
            f"the ledger beside the data ({place}) {what} by what {home.path} says: they were taken out, or a run was "
            "killed while it wrote; they count"
        )
    return missing - lacking
