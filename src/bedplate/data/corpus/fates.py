"""The fate of every document of a corpus, their tally, the funnel (what went in, what each rule removed, what came out)
and the corpus card."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bedplate.core.errors import DataError
from bedplate.core.files import atomic_write, read_text
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.data.corpus.curate.presets import RULES
from bedplate.data.corpus.readers.parts import SKIPPED, UNREADABLE, SourceSettings
from bedplate.data.corpus.recipe import CorpusRecipe
from bedplate.data.corpus.shards import CorpusManifest
from bedplate.report.formatting import cell, table

EXAMPLES = 3
EXAMPLE_CHARACTERS = 400
EDGES = (0, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 1_000_000)
"""Lengths of texts are counted between these, in characters; the last is open."""


@dataclass(frozen=True)
class Fate:
    """rule: what dropped it, else None; detail: why, as `word: more`; changed: the rules that changed its text; split:
    where it went; characters: before the rules; pieces: the characters of each document that it was cut into."""

    id: str
    source: str
    rule: str | None
    detail: str
    characters: int
    changed: tuple[str, ...] = ()
    split: str | None = None
    pieces: tuple[int, ...] = ()

    @property
    def outcome(self) -> str:
        """Whether it was kept, and where or why."""
        outcome = f"kept, in {self.split or 'no split'}" if self.rule is None else f"dropped by {self.rule}"
        return outcome + (f" ({self.detail})" if self.detail else "")

    @property
    def reason(self) -> str:
        """The outcome by the word that a funnel counts under."""
        return replace(self, detail="" if self.rule is None else self.detail.partition(":")[0]).outcome

    @property
    def line(self) -> str:
        """For people, in one line of a terminal: a name may hold line breaks and other controls."""
        outcome = self.outcome
        outcome += f", its text changed by {', '.join(self.changed)}" if self.changed and self.rule is None else ""
        if self.pieces:
            outcome += f", cut into {len(self.pieces):,} documents ({self.id}#1 to #{len(self.pieces)})"
        size = "" if self.rule == SKIPPED else f" ({self.characters:,} characters)"
        summary = f"{self.source}: {self.id}{size}: {outcome}"
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in summary)

    def piece(self, name: str) -> Fate | None:
        """Of the document `NAME#n` that this text was cut into; None where it is no such document's name."""
        text, _, number = name.rpartition("#")
        if not self.is_called(text) or not number.isdecimal() or not 0 < int(number) <= len(self.pieces):
            return None
        start, size = sum(self.pieces[: int(number) - 1]), self.pieces[int(number) - 1]
        detail = f"characters {start + 1:,} to {start + size:,} of {self.id}"
        return replace(self, id=f"{self.id}#{int(number)}", characters=size, detail=detail, pieces=())

    def is_called(self, name: str) -> bool:
        """Whether a name is its id, or what its id ends in."""
        return bool(name) and (self.id == name or self.id.endswith((f"/{name}", f"#{name}")))


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
    texts_cut: int = 0
    pieces: int = 0
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict[str, list[dict[str, str]]])
    before: list[int] = field(default_factory=lambda: [0] * len(EDGES))
    after: list[int] = field(default_factory=lambda: [0] * len(EDGES))

    def saw(self, text: str | None) -> None:
        """A document as its source has it; None: one that was not opened."""
        self.documents += 1
        if text is None:
            return
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
        _add(self.dropped.setdefault(rule, {}), {detail.partition(":")[0]: 1})
        _add(self.dropped_bytes, {rule: size})
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

    def cut(self, pieces: int) -> None:
        """A text that was kept was cut into so many documents; 0: it was not."""
        self.texts_cut += pieces > 0
        self.pieces += pieces

    def add(self, tally: Tally) -> None:
        for name in (counter.name for counter in fields(self) if counter.type == "int"):
            setattr(self, name, getattr(self, name) + getattr(tally, name))
        for rule, reasons in tally.dropped.items():
            _add(self.dropped.setdefault(rule, {}), reasons)
        _add(self.dropped_bytes, tally.dropped_bytes)
        _add(self.changed, tally.changed)
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


def _add(counts: dict[str, int], more: Mapping[str, int]) -> None:
    for name, count in more.items():
        counts[name] = counts.get(name, 0) + count


def bucket(characters: int) -> int:
    """The number of the last of EDGES that is not above."""
    return max(i for i, edge in enumerate(EDGES) if edge <= characters)


def write_fates(path: Path, fates: list[Fate]) -> None:
    """One JSON line each, compressed, the same bytes for the same fates."""
    lines = "".join(json.dumps(_short(fate), ensure_ascii=False) + "\n" for fate in fates)
    atomic_write(path, gzip.compress(lines.encode("utf-8", "surrogatepass"), 6, mtime=0))


def _short(fate: Fate) -> dict[str, Any]:
    """What is not said is left out."""
    names = ("id", "source", "characters", "rule", "detail", "split", "changed", "pieces")
    return {name: value for name in names if (value := getattr(fate, name)) or name in names[:3]}


def read_fates(path: Path) -> Iterator[Fate]:
    """Reads the fates of one file. DataError where it is damaged."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", errors="surrogatepass") as lines:
            for line in lines:
                values: dict[str, Any] = {"rule": None, "detail": "", **json.loads(line)}
                values |= {name: tuple(values.get(name, ())) for name in ("changed", "pieces")}
                yield Fate(**values)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}; build the corpus again") from error


def fates_of(directory: Path, id: str) -> list[Fate]:
    """What became of the documents of this id, or whose id ends in it behind a `/` or `#`, or of those in the folder or
    source of this name; of several sources there may be several. DataError where there is none, with the nearest."""
    folder = directory / "fates"
    files = sorted(folder.glob("*.jsonl.gz"))
    if not files:
        raise DataError(f"{directory} has no fates: it is not a corpus made by `bedplate data build`")
    fates: list[Fate] = []
    inside: list[Fate] = []
    texts: list[Fate] = []
    similar_ids: list[str] = []
    for path in files:
        ids: list[str] = []
        for fate in read_fates(path):
            piece = fate.piece(id)
            if piece is not None or fate.is_called(id):
                fates.append(piece or fate)
            elif f"/{id.strip('/')}/" in f"/{fate.id}" or id.strip("/") == fate.source:
                inside.append(fate)
            elif re.fullmatch(r".+#\d+", id) and fate.is_called(id.rpartition("#")[0]):
                texts.append(fate)
            ids.append(fate.id)
        similar_ids += nearest(id, ids, 2) if not fates and len(ids) < 20_000 else []
    exact = [fate for fate in fates if fate.id == id]
    if not fates and not inside and texts:
        raise DataError(f"{directory} has no piece {id!r}: {texts[0].line}")
    if not fates and not inside:
        hint = did_you_mean(nearest(id, similar_ids, 3)) or "`bedplate data funnel` shows ids"
        raise DataError(f"{directory} read no document {id!r}; {hint}")
    return exact or fates or inside


def _order() -> list[str]:
    """What drops documents, in the order in which it is applied."""
    return [SKIPPED, UNREADABLE, *RULES, "contaminated", "exact_duplicate", "near_duplicate"]


def funnel_of(recipe: CorpusRecipe, tallies: Mapping[str, Tally], manifest: CorpusManifest) -> dict[str, Any]:
    """The funnel of all sources together and of each."""
    total = Tally()
    for tally in tallies.values():
        total.add(tally)
    total.check(recipe.corpus)
    return {
        "version": 1,
        "corpus": recipe.corpus,
        "recipe": manifest.recipe,
        "tokens": sum(source.tokens for source in manifest.sources),
        **_tally_json(total),
        "sources": {
            source.name: {
                "tokens": source.tokens,
                # end tokens are no part of a text
                "bytes_per_token": source.bytes / max(1, source.tokens - source.documents),
                "splits": {split: sum(s.documents for s in shards) for split, shards in source.splits.items()},
                "licence": source.licence,
                **_tally_json(tallies.get(source.name, Tally()), examples=False),
            }
            for source in manifest.sources
        },
        "edges": list(EDGES),
    }


def _tally_json(tally: Tally, examples: bool = True) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    remaining = tally.documents
    for rule in sorted(tally.dropped, key=_order().index):
        reasons = dict(sorted(tally.dropped[rule].items(), key=lambda pair: (-pair[1], pair[0])))
        dropped = sum(reasons.values())
        step = {"rule": rule, "in": remaining, "dropped": dropped, "out": remaining - dropped}
        step |= {"bytes": tally.dropped_bytes.get(rule, 0), "reasons": reasons}
        steps.append(step | ({"examples": tally.examples.get(rule, [])} if examples else {}))
        remaining -= dropped
    return {
        **{name: getattr(tally, name) for name in ("documents", "bytes", "kept", "kept_bytes")},
        "changed": dict(sorted(tally.changed.items())),
        "cut": {"texts": tally.texts_cut, "documents": tally.pieces},
        "steps": steps,
        "before": tally.before,
        "after": tally.after,
    }


def read_funnel(directory: Path) -> dict[str, Any]:
    """DataError where the directory has none."""
    path = directory / "funnel.json"
    if not path.is_file():
        raise DataError(f"{directory} has no funnel.json: it is not a corpus made by `bedplate data build`")
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}; build the corpus again") from error


def card(recipe: CorpusRecipe, funnel: Mapping[str, Any], manifest: CorpusManifest) -> str:
    """Markdown."""
    left_out = [] if funnel["steps"] else ["Nothing."]
    for step in funnel["steps"]:
        reasons = ", ".join(f"{cell(reason)} {count:,}" for reason, count in step["reasons"].items())
        left_out.append(f"- {step['rule']}: {step['dropped']:,} of {step['in']:,} ({reasons})")
    for rule, count in funnel["changed"].items():
        left_out.append(f"- {rule} changed the text of {count:,} documents that were kept")
    against = ", ".join(recipe.decontaminate.against)
    near = "kept" if recipe.dedup.minhash is None else "dropped (MinHash)"
    cuts = [funnel["cut"]] if recipe.cut is not None else []
    lines = [
        f"# {recipe.corpus}\n",
        f"{funnel['tokens']:,} tokens of {funnel['kept']:,} documents ({funnel['kept_bytes'] / 1e6:,.1f} MB of text), "
        f"kept of {funnel['documents']:,} ({funnel['bytes'] / 1e6:,.1f} MB).\n",
        "## Sources\n",
        *table(
            ("source", "kind", "licence", "documents read", "kept", "tokens", "bytes per token", "train / valid"),
            (_source(source, funnel["sources"][source.name]) for source in recipe.sources),
        ),
        "\n## What was left out\n",
        *left_out,
        "\n## How it was made\n",
        f"- preset {recipe.preset}, language {cell(recipe.language)}",
        f"- copies: exact {'dropped' if recipe.dedup.exact else 'kept'}, near {near}",
        *(
            f"- long texts: cut at about {recipe.cut}: {cut['texts']:,} into {cut['documents']:,} documents"
            for cut in cuts
        ),
        f"- evaluations looked for: {cell(against) or 'none'}"
        + (f" ({recipe.decontaminate.words} words in a row)" if against else ""),
        f"- tokenizer: {manifest.tokenizer.vocab_size:,} ids, {manifest.tokenizer.tokenizer_id}",
        f"- recipe and content: {manifest.recipe}\n",
        "`recipe.yaml` makes it again; `bedplate data explain` tells what became of a document.\n",
    ]
    return "\n".join(lines)


def _source(source: SourceSettings, read: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (f"{read[name]:,}" for name in ("documents", "kept", "tokens"))
    splits = f"{read['splits'].get('train', 0):,} / {read['splits'].get('valid', 0):,}"
    about = source.name, source.kind, source.licence or "not stated"
    return *about, *counts, f"{read['bytes_per_token']:.2f}", splits
