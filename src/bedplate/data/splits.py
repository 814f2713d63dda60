"""Train, valid and test without a leak: duplicates dropped, groups whole, labels in proportion, everything hashed.

Deterministic on every platform and independent of row order: the seed enters through sha256, not through a random
generator. Large groups are drawn, each with the probability of the room that a split has left for its labels, so that
before the draw every one has the same chance of a split, which is its fraction (the shares are a martingale). The
smaller half of the rows then goes where most is missing, by the chi-square distance to the target label counts. Groups
by several columns are connected components (`linked`).
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import sha256_bytes, sha256_json
from bedplate.core.values import Media, Values
from bedplate.data.rows import Row, blank


def normalise(text: str) -> str:
    """The text that decides whether two rows are the same: NFKC, case folded, runs of whitespace as one space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())  # folding can undo the normal form


def row_hash(inputs: Values) -> str:
    """sha256 (hex) of the normalised inputs: the same for a row that was relabelled, respaced or moved. Media stand by
    their own hash."""
    texts = {name: v.sha256 if isinstance(v, Media) else normalise(v) for name, v in sorted(inputs.items())}
    return sha256_json(texts)


@dataclass(frozen=True)
class SplitRecord:
    """What splitting looks at: the row's id, the hash of its inputs, its target, its group and its label (stratum).
    links: the row's `column=value` of each column that makes groups. Where several do, the name of a group changes with
    the rows that come, and these do not."""

    id: str
    row_hash: str
    target: str
    group: str
    stratum: str = ""
    links: tuple[str, ...] = ()


@dataclass(frozen=True)
class Assigned:
    """Rows (by hash) and groups (by their names and links) that are in a split already, by its name."""

    rows: Mapping[str, str]
    groups: Mapping[str, str]

    def splits_of(self, record: SplitRecord) -> set[str]:
        """The split that a row is in, or all those that have rows of its group; none of a row that is new."""
        if record.row_hash in self.rows:
            return {self.rows[record.row_hash]}
        return {self.groups[name] for name in (record.group, *record.links) if name in self.groups}


@dataclass(frozen=True)
class Deduplicated:
    """`records` sorted by row hash; how many repeats were dropped; and the rows whose copies disagree, dropped too."""

    records: tuple[SplitRecord, ...]
    duplicates: int
    contradictory: int
    contradictions: tuple[tuple[SplitRecord, ...], ...]


def deduplicate(records: Sequence[SplitRecord]) -> Deduplicated:
    """One record of each row hash. Copies with different targets are all dropped: nobody knows which one is right."""
    records_by_hash: dict[str, list[SplitRecord]] = defaultdict(list)
    for record in records:
        records_by_hash[record.row_hash].append(record)
    unique: list[SplitRecord] = []
    contradictions: list[tuple[SplitRecord, ...]] = []
    for key in sorted(records_by_hash):
        copies = sorted(records_by_hash[key], key=lambda r: (r.group, r.id, r.target))
        if len({copy.target for copy in copies}) > 1:
            contradictions.append(tuple(copies))
        else:
            unique.append(copies[0])
    contradictory = sum(len(copies) for copies in contradictions)
    return Deduplicated(tuple(unique), len(records) - len(unique) - contradictory, contradictory, tuple(contradictions))


def split(
    records: Sequence[SplitRecord],
    fractions: Mapping[str, float],
    seed: int,
    assigned: Assigned | None = None,
    labels: Sequence[str] = (),
) -> dict[str, tuple[SplitRecord, ...]]:
    """Assigns whole groups to splits, near their `fractions` of every stratum (they sum to 1). Records come sorted by
    row hash. assigned: groups with a row in a split go there first. A large group exceeds a split's share by half of
    itself at most. labels: strata that the first split, which is learned from, has a row of; where the draw left it
    without, the smallest group with one goes there. A split can be empty where there are fewer groups than splits.
    DataError for a group whose rows are in two splits."""
    if any(not 0 < f < 1 for f in fractions.values()) or not math.isclose(sum(fractions.values()), 1, abs_tol=1e-6):
        raise UsageError(f"split fractions must lie between 0 and 1 and sum to 1, not {dict(fractions)}")
    groups: dict[str, list[SplitRecord]] = defaultdict(list)
    for record in records:
        groups[record.group].append(record)
    totals = Counter(record.stratum for record in records)
    filled: dict[str, Counter[str]] = {name: Counter() for name in fractions}
    split_of: dict[str, str] = {}
    fixed = {} if assigned is None else {group: _fixed(group, rows, assigned) for group, rows in groups.items()}
    order = sorted(groups, key=lambda g: (fixed.get(g) is None, -len(groups[g]), _shuffle_key(seed, g)))
    draw_threshold = _drawn_above([len(groups[group]) for group in order if fixed.get(group) is None])
    for group in order:
        counts = Counter(record.stratum for record in groups[group])
        name = fixed.get(group)
        if name is None and counts.total() > draw_threshold:
            name = _drawn(counts, filled, totals, fractions, _shuffle_key(seed, f"to {group}"))
        if name is None:
            distances = {s: _added_distance(counts, filled[s], totals, fractions[s]) for s in fractions}
            name = min(fractions, key=lambda s: (distances[s], -fractions[s]))
        filled[name].update(counts)
        split_of[group] = name
    first = next(iter(fractions))
    for label in (label for label in labels if label not in filled[first]):
        movable = [g for g in order if fixed.get(g) is None and any(r.stratum == label for r in groups[g])]
        if movable:
            split_of[movable[-1]] = first
            filled[first].update(record.stratum for record in groups[movable[-1]])
    result: dict[str, list[SplitRecord]] = {name: [] for name in fractions}
    for group, name in split_of.items():
        result[name] += groups[group]
    return {name: tuple(sorted(rows, key=lambda r: (r.row_hash, r.id))) for name, rows in result.items()}


def _fixed(group: str, records: Sequence[SplitRecord], assigned: Assigned) -> str | None:
    names = sorted(set[str]().union(*(assigned.splits_of(record) for record in records)))
    if len(names) > 1:
        raise DataError(
            f"the group {group!r} holds rows that are in {names[0]} already and rows that are in {names[1]}, and "
            "groups are kept whole; take the rows of one of them out, or group as before"
        )
    return names[0] if names else None


def _drawn_above(sizes: Sequence[int]) -> int:
    """The size [of groups in descending order] above which groups are drawn: that at which half of the rows is reached.
    The other half evens out what the draw left."""
    reached, half = 0, sum(sizes) / 2
    for size in sizes:
        reached += size
        if reached >= half:
            return size
    return 0


def _drawn(
    counts: Counter[str],
    filled: Mapping[str, Counter[str]],
    totals: Counter[str],
    fractions: Mapping[str, float],
    key: str,
) -> str | None:
    """Where a group with these labels goes: drawn in proportion to the room for them, by the digits of `key` (hex).
    None where it fits nowhere."""
    size, remaining = counts.total(), totals - sum(filled.values(), Counter[str]())
    chances: dict[str, float] = {}
    for name, fraction in fractions.items():
        room = {label: fraction * totals[label] - filled[name][label] for label in totals}
        fits = 2 * sum(room.values()) >= size
        share = sum(added / size * max(room[label], 0.0) / remaining[label] for label, added in counts.items())
        chances[name] = share if fits else 0.0
    place = int(key[:13], 16) / 16**13 * sum(chances.values())
    for name, chance in chances.items():
        place -= chance
        if chance and place < 0:
            return name
    return next((name for name in reversed(chances) if chances[name]), None)


def _added_distance(counts: Counter[str], filled: Counter[str], totals: Counter[str], fraction: float) -> float:
    """How much the chi-square distance to the wanted counts, of each label and of all rows, grows by adding a group."""
    grown = 0.0
    for label, added in [*counts.items(), (None, counts.total())]:
        have, total = (filled.total(), totals.total()) if label is None else (filled[label], totals[label])
        expected = fraction * total
        grown += ((have + added - expected) ** 2 - (have - expected) ** 2) / expected
    return round(grown, 9)  # so that ties are ties on every platform


def subsample(records: Sequence[SplitRecord], limit: int, seed: int) -> tuple[SplitRecord, ...]:
    """At most `limit` records, whole groups in an order drawn by `seed`; groups that no longer fit are passed over."""
    return nested(records, [limit], seed)[0]


def nested(records: Sequence[SplitRecord], sizes: Sequence[int], seed: int) -> list[tuple[SplitRecord, ...]]:
    """For each of `sizes` (ascending) at most so many records, each set within the next: whole groups in an order drawn
    by `seed`; one that does not fit is passed over until it does."""
    groups: dict[str, list[SplitRecord]] = defaultdict(list)
    for record in records:
        groups[record.group].append(record)
    waiting = sorted(groups, key=lambda g: _shuffle_key(seed, g))
    selected: list[SplitRecord] = []
    subsets: list[tuple[SplitRecord, ...]] = []
    for size in sizes:
        skipped: list[str] = []
        for group in waiting:
            if len(selected) + len(groups[group]) <= size:
                selected += groups[group]
            else:
                skipped.append(group)
        waiting = skipped
        subsets.append(tuple(sorted(selected, key=lambda r: (r.row_hash, r.id))))
    return subsets


def _shuffle_key(seed: int, group: str) -> str:
    return sha256_bytes(f"{seed}\0{group}".encode("utf-8", "surrogatepass"))


def split_hash(records: Sequence[SplitRecord]) -> str:
    """sha256 (hex) of a split: its rows, targets and groups, whatever their order."""
    return sha256_json(sorted([r.row_hash, r.target, r.group] for r in records))


def check_leaks(splits: Mapping[str, Sequence[SplitRecord]], *, groups: bool = True) -> None:
    """Raise DataError where two splits share a text (after normalisation) or, with `groups`, a group."""
    owners: dict[tuple[str, str], tuple[str, SplitRecord]] = {}
    for name, records in splits.items():
        for record in records:
            for key_type, value in (("text", record.row_hash), ("group", record.group))[: 2 if groups else 1]:
                owner, first = owners.setdefault((key_type, value), (name, record))
                if owner != name:
                    overlap = "the same text" if key_type == "text" else f"the group {value!r}"
                    raise DataError(
                        f"{overlap} stands in {owner} (row {first.id}) and in {name} (row {record.id}): "
                        "the score would be read off rows that were trained on; remove it from one of them"
                    )


def check_unseen(parts: Mapping[str, Sequence[SplitRecord]], assigned: Assigned) -> None:
    """What was learned from is not judged by, where files say what is in which split. parts: from what is learned from
    first to what is judged by. DataError."""
    for place, name in enumerate(parts):
        for record in parts[name]:
            before = next((split for split in list(parts)[:place] if split in assigned.splits_of(record)), None)
            if before is not None:
                raise DataError(
                    f"row {record.id} of {name}, or its group, was in {before} when the parent was made: it would be "
                    "judged by what it has seen; move such rows there"
                )


def linked(rows: Sequence[Sequence[str]]) -> list[str]:
    """Group name of each row, given its values (at least one): the least value of the group, so that it does not depend
    on the order of the rows."""
    parents: dict[str, str] = {}

    def top(value: str) -> str:
        while parents.setdefault(value, value) != value:
            parents[value] = parents[parents[value]]
            value = parents[value]
        return value

    for values in rows:
        for value in values[1:]:
            root, merged_root = sorted((top(values[0]), top(value)))
            parents[merged_root] = root
    return [top(values[0]) for values in rows]


def links_of(row: Row, columns: Sequence[str], location: str) -> tuple[str, ...]:
    """What a row has of the columns that make groups, as `column=value`. Of several columns some may be empty: by these
    it belongs to no other row. DataError, with `location`, for a row that has none."""
    links: list[str] = []
    for column in columns:
        value = row.get(column)
        if blank(value):
            if len(columns) == 1:
                raise DataError(f"{location}: the group ({column}) is {value!r}; every row needs one")
        elif isinstance(value, str | int) and not isinstance(value, bool):
            links.append(f"{column}={value}")
        else:
            raise DataError(f"{location}: the group ({column}) is {value!r}; it must be a text or a whole number")
    if columns and not links:
        raise DataError(f"{location}: none of the groups ({', '.join(columns)}) has a value; every row needs one")
    return tuple(links)
