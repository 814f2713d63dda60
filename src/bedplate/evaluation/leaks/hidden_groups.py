"""Finds groups that a task does not declare: columns whose values repeat and within which rows are alike, near-copies
of texts, rows that are like their neighbours in the file, and targets that drift.

Of declared groups one row each is looked at, so that what they explain is not found again. Each thing that is looked at
is tested on at most MOST rows (whole values, at most MAX_ROWS_PER_VALUE rows of each; near-copies are looked for among
MAX_TEXTS), so the work grows with the columns and hardly with the rows.

Texts become vectors of their words: TF-IDF hashed into few numbers with signs (Weinberger et al. 2009,
https://arxiv.org/abs/0902.2206), so that products of two are, on average, those of their words. Near-copies are found
by MinHash over three words in a row, with numbers kept apart: `row 17` is no copy of `row 18`.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import ConfigError
from bedplate.core.statistics.clusters import Likeness, group_codes, likeness
from bedplate.core.statistics.multiplicity import holm
from bedplate.core.statistics.unequal import worth
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.data.corpus.recipe import MinHashSettings
from bedplate.data.corpus.repeated import MinHash, clusters, word_hashes
from bedplate.data.profile import is_group_name
from bedplate.data.rows import Row, SourceRows, blank
from bedplate.data.splits import linked, normalise
from bedplate.evaluation.task import Task
from bedplate.report.schema_parts import Grouping, HiddenGroups

SOURCE = "source"
MAX_LABELS = 200


SIZE = 64
LEAST_WORDS = 8
"""Texts of fewer words are like another too easily."""
NEAR_COPY_SETTINGS = MinHashSettings(words=3, bands=14, rows=10)
"""Texts that share 8 of 10 shingles are found with a chance of 0.8, those that share half with one of 0.01."""
_DIGITS = str.maketrans("0123456789", "abcdefghij")


def word_vectors(texts: Sequence[str]) -> NDArray[np.float64]:
    """[n, SIZE], of length 1, or 0 for a text that has no word in common with any other."""
    word_ids = [np.unique(word_hashes(text.translate(_DIGITS))) for text in texts]
    rows = np.repeat(np.arange(len(texts)), [len(ids) for ids in word_ids])
    words, places, counts = np.unique(np.concatenate(word_ids), return_inverse=True, return_counts=True)
    weights = np.where(counts > 1, np.log(len(texts) / counts), 0.0)[places]
    signs = np.where(words >> np.uint64(40) & np.uint64(1), 1.0, -1.0)[places]
    vectors = np.zeros((len(texts), SIZE))
    np.add.at(vectors, (rows, (words % np.uint64(SIZE)).astype(np.int64)[places]), weights * signs)
    length = np.sqrt((vectors**2).sum(axis=1, keepdims=True))
    return vectors / np.maximum(length, 1e-12)


def near_copies(texts: Sequence[str]) -> NDArray[np.int64]:
    """For each text [n] the first that is nearly the same, directly or through others; itself where there is none."""
    hashes = MinHash(NEAR_COPY_SETTINGS)
    bands = np.zeros((len(texts), NEAR_COPY_SETTINGS.bands), np.uint64)
    has = np.zeros(len(texts), np.bool_)
    for row, text in enumerate(texts):
        masked = text.translate(_DIGITS)
        text_bands = hashes.bands(masked) if len(word_hashes(masked)) >= LEAST_WORDS else None
        if text_bands is not None:
            bands[row], has[row] = text_bands, True
    return clusters(bands, has)


@dataclass(frozen=True)
class Table:
    """Rows, one of each text: for each its inputs as one text, its target as text, its declared group, and the values
    of the columns that are nothing to the task (None where there is none, or no text, whole number or true or
    false)."""

    texts: tuple[str, ...]
    targets: tuple[str, ...]
    groups: tuple[str, ...]
    columns: Mapping[str, tuple[str | None, ...]]

    @property
    def rows(self) -> int:
        return len(self.texts)

    @cached_property
    def units(self) -> Table:
        """One row of each declared group, in the order of the rows."""
        order = np.random.Generator(np.random.PCG64(0)).permutation(self.rows)
        first: dict[str, int] = {}
        for row in order.tolist():
            first.setdefault(self.groups[row], row)
        unit_rows = sorted(first.values())
        texts, targets, groups = (
            tuple(values[row] for row in unit_rows) for values in (self.texts, self.targets, self.groups)
        )
        columns = {name: tuple(values[row] for row in unit_rows) for name, values in self.columns.items()}
        return Table(texts, targets, groups, columns)

    def target_vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """[rows, d]: labels as 0 and 1; the words of targets where more than MAX_LABELS of them differ, or most do."""
        targets = [self.targets[row] for row in rows.tolist()]
        codes, count = group_codes(targets)
        return np.eye(count)[codes] if count <= min(MAX_LABELS, len(targets) / 2) else word_vectors(targets)


def table_of(task: Task, sources: Mapping[str, SourceRows]) -> Table:
    """The rows of all sources, as they come, without empty ones and copies of a text. Nothing is checked here."""
    used_columns = {spec.column for spec in task.inputs.values()} | {task.data.target, *task.data.group_columns, "id"}
    used_columns |= {task.data.second_label} if task.data.second_label else set[str]()
    used_columns |= {*task.data.sliced, *([task.data.current.column] if task.data.current else [])}
    names = dict.fromkeys(name for rows in sources.values() for name in rows.columns if name not in used_columns)
    several = len(sources) > 1 and task.data.split.files is None and SOURCE not in names
    texts: dict[str, str] = {}
    source_rows: list[tuple[str, Row]] = []
    for rows in sources.values():
        for row in rows.rows:
            text = "\n".join(str(row.get(spec.column) or "") for spec in task.inputs.values())
            if text.strip() and (normalized := normalise(text)) not in texts:
                texts[normalized] = text
                source_rows.append((rows.source, row))
    columns = {name: tuple(_value(row.get(name)) for _, row in source_rows) for name in names}
    if several:
        columns[SOURCE] = tuple(source for source, _ in source_rows)
    targets = tuple(_target(row.get(task.data.target)) for _, row in source_rows)
    groups = tuple(_groups(task.data.group_columns, [row for _, row in source_rows]))
    return Table(tuple(texts.values()), targets, groups, columns)


def _groups(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    if not columns:
        return [str(number) for number in range(len(rows))]
    row_links = [[f"{name}={row[name]}" for name in columns if not blank(row.get(name))] for row in rows]
    return linked([values or [str(number)] for number, values in enumerate(row_links)])


def _value(value: Any) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    return str(value) if isinstance(value, bool | int) else None


def _target(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


MAX_ROWS, MAX_ROWS_PER_VALUE, MAX_TEXTS, MAX_COLUMNS = 2000, 50, 20_000, 40
MIN_ROWS, MIN_VALUES = 60, 20
"""Fewer rows say nothing of groups; a column of fewer values holds kinds of rows, which production has too."""
LEVEL = 0.01
"""Error of all tests together: that a column or an order is called alike where there is nothing."""
STRONG_EFFECT, STRONG_COPIES = 1.1, 0.1
"""From which design effect on, or share of rows with a near-copy, a finding stops a run."""
BLOCK, PIECES, LONGEST_RUN = 4, 20, 20
"""Neighbours that are compared in the file; pieces of it between which targets may drift; rows of one target in a row,
on average, from which on it is sorted by them."""
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ].*)?$")
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class _Looked:
    """Something that was looked at: the sizes of its groups [G], and how alike rows are within them."""

    finding_type: Literal["column", "order", "drift"]
    name: str
    sizes: NDArray[np.float64]
    targets: Likeness | None
    texts: Likeness | None
    may_stop: bool


def hidden_groups(table: Table) -> tuple[list[HiddenGroups], list[str]]:
    """What is found beyond the declared groups, strong findings first, and what was not looked at."""
    limits: list[str] = []
    units = table.units
    if not table.rows:
        return [], []
    findings = [finding for finding in (_copies(table, limits),) if finding is not None]
    if units.rows >= MIN_ROWS:
        columns = [name for name in units.columns if _repeats(units, name)]
        if len(columns) > MAX_COLUMNS:
            limits.append(f"of {len(columns)} columns whose values repeat the first {MAX_COLUMNS} were looked at")
        if units.rows > MAX_ROWS:
            limits.append(f"likeness was measured on {MAX_ROWS:,} rows of {units.rows:,} at most")
        columns = columns[:MAX_COLUMNS]
        dated = [name for name, values in units.columns.items() if _dates(values)]
        # targets and texts of columns and of neighbours, and targets that drift: what no permutation reaches has to
        # stay below LEVEL when it is corrected for all of these tests
        tests = 2 * (len(columns) + 1) + 1 + len(dated)
        permutations = max(999, math.ceil(tests / LEVEL))
        looked = [_column(units, name, permutations) for name in columns]
        looked += [_neighbours(units, permutations), _drift(units, None, permutations)]
        looked += [_drift(units, name, permutations) for name in dated]
        findings += _tested(looked, units.rows)
    return sorted(findings, key=lambda finding: (not finding.strong, -finding.design_effect)), limits


def _repeats(units: Table, name: str) -> bool:
    """Whether a column's values are on several rows and are not the targets in other words."""
    values = [value for value in units.columns[name] if value is not None]
    distinct = len(set(values))
    if distinct < 2 or len(values) < 1.05 * distinct or _dates(units.columns[name]):
        return False
    pairs = len(set(zip(units.columns[name], units.targets, strict=True)))
    return not (pairs == distinct == len(set(units.targets)))


def _dates(values: Sequence[str | None]) -> bool:
    present = [value for value in values if value is not None]
    return len(present) == len(values) and len(set(present)) > 1 and all(_DATE.match(value) for value in present)


def _column(units: Table, name: str, permutations: int) -> _Looked:
    values = units.columns[name]
    named = [f"{row}" if value is None else f"={value}" for row, value in enumerate(values)]
    codes, count = group_codes(named)
    sizes = np.bincount(codes, minlength=count).astype(np.float64)
    chosen = _sample_rows(codes, [value is not None for value in values])
    text = not all(_number(value) for value in values if value is not None)
    stops = len(set(values) - {None}) >= MIN_VALUES and (text or is_group_name(name))
    measured = _measured(units, chosen, codes[chosen], permutations)
    return _Looked("column", name, sizes, *measured, may_stop=stops)


def _sample_rows(codes: Codes, has_value: Sequence[bool]) -> Codes:
    """Rows whose likeness is measured: some of each value, until there are MOST."""
    rng = np.random.Generator(np.random.PCG64(0))
    order = rng.permutation(np.flatnonzero(has_value))
    by_value = order[np.argsort(codes[order], kind="stable")]
    _, starts, counts = np.unique(codes[by_value], return_index=True, return_counts=True)
    place = np.arange(by_value.size) - np.repeat(starts, counts)
    candidates, sizes = by_value[place < MAX_ROWS_PER_VALUE], np.minimum(counts, MAX_ROWS_PER_VALUE)
    selected = np.zeros(sizes.size, np.bool_)
    shuffled = rng.permutation(sizes.size)
    selected[shuffled[np.cumsum(sizes[shuffled]) <= MAX_ROWS]] = True
    return np.sort(candidates[np.repeat(selected, sizes)])


def _measured(units: Table, rows: Codes, codes: Codes, permutations: int) -> tuple[Likeness | None, Likeness | None]:
    """How alike targets and texts of the rows are within the groups that `codes` [rows] name."""
    if rows.size < MIN_ROWS:
        return None, None
    texts = likeness(word_vectors([units.texts[row] for row in rows.tolist()]), codes, permutations=permutations)
    return likeness(units.target_vectors(rows), codes, permutations=permutations), texts


def _neighbours(units: Table, permutations: int) -> _Looked:
    """Rows that stand together in the file: their texts, without what rows of one target have in common, and their
    targets, without what drifts over the file; where it is sorted by them only the texts. A file that is sorted by its
    labels is no file of groups."""
    blocks = units.rows // BLOCK
    starts = np.unique(np.linspace(0, blocks - 1, min(blocks, MAX_ROWS // BLOCK)).astype(np.int64)) * BLOCK
    rows = (starts[:, None] + np.arange(BLOCK)).ravel()
    texts = word_vectors([units.texts[row] for row in rows.tolist()])
    labels, count = group_codes([units.targets[row] for row in rows.tolist()])
    if count < rows.size / 2:
        texts = _without_means(texts, labels)
    codes = np.repeat(np.arange(starts.size), BLOCK)
    targets, runs = None, 1 + sum(a != b for a, b in itertools.pairwise(units.targets))
    if runs * LONGEST_RUN >= units.rows:
        pieces = np.arange(rows.size) * PIECES // rows.size
        targets = likeness(_without_means(units.target_vectors(rows), pieces), codes, permutations=permutations)
    sizes = np.full(units.rows // BLOCK, float(BLOCK))
    return _Looked("order", "order", sizes, targets, likeness(texts, codes, permutations=permutations), may_stop=True)


def _without_means(vectors: NDArray[np.float64], codes: Codes) -> NDArray[np.float64]:
    """What is left of vectors [n, d] without the means of their groups."""
    sums = np.zeros((int(codes.max()) + 1, vectors.shape[1]))
    np.add.at(sums, codes, vectors)
    return vectors - (sums / np.maximum(np.bincount(codes), 1)[:, None])[codes]


def _drift(units: Table, column: str | None, permutations: int) -> _Looked:
    """Targets between pieces of the file, in its order or in that of a column of dates (of one date in none, or the
    order of the file would be told as that of the dates)."""
    order = np.arange(units.rows)
    if column is not None:
        shuffled = np.random.Generator(np.random.PCG64(0)).permutation(units.rows).tolist()
        order = np.array(sorted(shuffled, key=lambda row: units.columns[column][row] or ""))
    rows = order[np.unique(np.linspace(0, units.rows - 1, min(units.rows, MAX_ROWS)).astype(np.int64))]
    codes = np.arange(rows.size) * PIECES // rows.size
    target_likeness = likeness(units.target_vectors(rows), codes, permutations=permutations)
    sizes = np.full(PIECES, units.rows / PIECES)
    return _Looked("drift", column or "the order of the file", sizes, target_likeness, None, may_stop=False)


def _number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def _tested(looked: Sequence[_Looked], rows: int) -> list[HiddenGroups]:
    """Corrected for all tests; what is not alike is told of columns alone."""
    measured = [(place, result) for place, item in enumerate(looked) for result in (item.targets, item.texts)]
    tests = [(place, result) for place, result in measured if result is not None]
    corrected: dict[int, float] = {}
    for (place, _), p_value in zip(tests, holm([measurement.p_value for _, measurement in tests]), strict=True):
        corrected[place] = min(corrected.get(place, 1.0), p_value)
    findings: list[HiddenGroups] = []
    for place, inspection in enumerate(looked):
        significant = corrected.get(place, 1.0) <= LEVEL
        if significant or inspection.finding_type == "column":
            findings.append(_finding(inspection, rows, corrected.get(place), significant))
    return findings


def _finding(inspection: _Looked, rows: int, p_value: float | None, significant: bool) -> HiddenGroups:
    targets, texts = (_or_none(measurement) for measurement in (inspection.targets, inspection.texts))
    max_icc = max(0.0, targets or 0.0, texts or 0.0)
    effect = 1.0
    if significant and inspection.may_stop:
        effect = 1 + (float((inspection.sizes**2).sum() / inspection.sizes.sum()) - 1) * max_icc
    if inspection.finding_type == "column":
        sentence = _column_sentence(inspection, targets, texts, p_value, significant)
    elif inspection.finding_type == "order":
        sentence = f"rows that stand together in the file are alike ({max_icc:.2f}): rows of one document, user or "
        sentence += "template seem to follow each other"
    else:
        sentence = f"targets drift over {inspection.name}: a random split judges by rows from between those it learns"
    strong, sizes = effect >= STRONG_EFFECT, inspection.sizes
    measured = {"alike_targets": targets, "alike_texts": texts, "p_value": p_value}
    return _build_finding(inspection.finding_type, inspection.name, strong, rows, sizes, effect, sentence, **measured)


def _column_sentence(
    inspection: _Looked, targets: float | None, texts: float | None, p_value: float | None, significant: bool
) -> str:
    values = f"{inspection.name} has {inspection.sizes.size:,} values on {int(inspection.sizes.sum()):,} rows"
    measured = {"targets": targets, "texts": texts}
    numbers = ", ".join(f"{measure} {icc:.2f}" for measure, icc in measured.items() if icc is not None)
    if not numbers or p_value is None:
        return f"{values}, too few of which repeat to tell whether rows of one value are alike"
    if not significant:
        return f"{values}; rows of one value are not measurably alike ({numbers}, p = {p_value:.2g})"
    kinds = "; these are kinds or numbers, which new rows have too, and not counted as groups"
    note = "" if inspection.may_stop else kinds
    return f"{values}, and rows of one value are alike ({numbers}, p = {p_value:.2g}){note}"


def _copies(table: Table, limits: list[str]) -> HiddenGroups | None:
    """Nearly equal texts in different declared groups. Their scores are taken to be the same."""
    rows = np.arange(table.rows)
    if table.rows > MAX_TEXTS:
        rows = np.sort(np.random.Generator(np.random.PCG64(0)).permutation(table.rows)[:MAX_TEXTS])
        limits.append(f"near-copies were looked for among {MAX_TEXTS:,} rows of {table.rows:,}")
    first = near_copies([table.texts[row] for row in rows.tolist()])
    groups = [table.groups[row] for row in rows.tolist()]
    pairs = [(f"g{group}", f"t{copy}") for group, copy in zip(groups, first.tolist(), strict=True)]
    together, count = group_codes(linked(pairs))
    group_ids, before = group_codes(groups)
    whole: list[set[int]] = [set() for _ in range(count)]
    for cluster, group in zip(together.tolist(), group_ids.tolist(), strict=True):
        whole[cluster].add(group)
    several = np.array([len(members) > 1 for members in whole])
    copies = Counter(first.tolist())
    with_copy = sum(several[c] and copies[row] > 1 for c, row in zip(together.tolist(), first.tolist(), strict=True))
    if not with_copy:
        return None
    sizes = np.bincount(together).astype(np.float64)
    alone = np.bincount(group_ids, minlength=before).astype(np.float64)
    effect = float((sizes**2).sum() / (alone**2).sum())
    strong = bool(with_copy >= STRONG_COPIES * rows.size or effect >= STRONG_EFFECT**2)
    sentence = f"{with_copy:,} of {rows.size:,} rows have nearly the text of a row in another group"
    return _build_finding("near_duplicates", "near_duplicates", strong, rows.size, sizes, effect, sentence)


def _build_finding(
    finding_type: Literal["column", "near_duplicates", "order", "drift"],
    name: str,
    strong: bool,
    rows: int,
    sizes: NDArray[np.float64],
    effect: float,
    sentence: str,
    *,
    alike_targets: float | None = None,
    alike_texts: float | None = None,
    p_value: float | None = None,
) -> HiddenGroups:
    if effect > 1.005:
        sentence += f"; if their scores were as alike, {rows:,} rows would count as {rows / effect:,.0f}"
    return HiddenGroups(
        kind=finding_type,
        name=name,
        strong=strong,
        rows=rows,
        groups=sizes.size,
        worth=worth(sizes),
        alike_targets=alike_targets,
        alike_texts=alike_texts,
        p_value=p_value,
        design_effect=effect,
        effective_rows=rows / effect,
        wider=math.sqrt(effect),
        says=sentence,
        answer=None,
    )


def _or_none(measurement: Likeness | None) -> float | None:
    return None if measurement is None or math.isnan(measurement.icc) else measurement.icc


# --- whether a task that is judged answers what was found
# Rows that belong together and are split as if they did not let skins that are at the bar pass far too often, and no
# number of the report shows it. So a task file declares its groups, or declines them with a reason; and what looks like
# groups all the same stops the run until it is declared or declined too.

NON_COLUMN_FINDINGS = ("near_duplicates", "order")
"""What may stand under `not_groups` beside columns."""


def grouping_of(task: Task, sources: Mapping[str, SourceRows]) -> Grouping:
    """What a task says of its groups and what its rows say. ConfigError where it says nothing, or does not answer what
    was found."""
    data = task.data
    columns = dict.fromkeys(name for rows in sources.values() for name in rows.columns)
    for name in data.not_groups:
        if name not in columns and name not in (*NON_COLUMN_FINDINGS, SOURCE):
            names = [*columns, *NON_COLUMN_FINDINGS]
            hint = did_you_mean(nearest(name, names), f"the columns are {', '.join(columns)}")
            raise ConfigError(f"{task.path}: data.not_groups: there is no column {name!r}; {hint}")
    findings, limits = hidden_groups(table_of(task, sources))
    answered = tuple(finding.model_copy(update={"answer": data.not_groups.get(finding.name)}) for finding in findings)
    grouping = Grouping(
        columns=data.group_columns, ungrouped_because=data.ungrouped_because, found=answered, limits=tuple(limits)
    )
    if not data.group_columns and data.ungrouped_because is None:
        raise ConfigError(_unsaid(task, grouping))
    if grouping.unanswered:
        raise ConfigError(_unanswered(task, grouping.unanswered))
    return grouping


def _unsaid(task: Task, grouping: Grouping) -> str:
    evidence = "; ".join(finding.says for finding in grouping.found)
    evidence = evidence or "no column repeats, and no rows were found to be alike"
    problem = "is null without a reason" if "group_by" in task.data.model_fields_set else "is not said"
    return (
        f"{task.path}: data.group_by {problem}: rows of one user, document or template that stand in train and in test "
        "make a verdict say more than it knows. Name the column (group_by: review_id), or several ([user, product]: "
        "rows that share any value stay together), or write group_by: null, ungrouped_because: "
        f'"each row is from another user". In the data: {evidence}'
    )


def _unanswered(task: Task, findings: Sequence[HiddenGroups]) -> str:
    evidence = "; ".join(f"{finding.says} ({_answer(finding)})" for finding in findings)
    reasons = json.dumps(dict.fromkeys((finding.name for finding in findings), "..."), ensure_ascii=False)
    return (
        f"{task.path}: the rows look as if some belong together that may be split: {evidence}. Where it was looked at "
        f"and they do not, say why: data.not_groups: {reasons}"
    )


def _answer(finding: HiddenGroups) -> str:
    if finding.kind == "column":
        return f"declare it: data.group_by: {finding.name}"
    if finding.kind == "order":
        return "give the rows a column that names what they come from, and declare it"
    return "take copies out, or give the rows a column that names what they come from, and declare it"
