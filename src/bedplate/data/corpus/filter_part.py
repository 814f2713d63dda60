"""Reads one part of a build and sends every document through the rules: it is kept, or its fate says why not."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedplate.core.files import atomic_directory, atomic_write
from bedplate.data.corpus.curate.draft import DraftDocument, Judge, Rule, Together, Tools
from bedplate.data.corpus.curate.presets import rules_of
from bedplate.data.corpus.fates import Fate, Tally, read_fates, write_fates
from bedplate.data.corpus.readers import READERS
from bedplate.data.corpus.readers.parts import (
    SKIPPED,
    UNREADABLE,
    RawDocument,
    Read,
    SourcePart,
    SourceSettings,
    Unread,
)
from bedplate.data.corpus.readers.text import PROSE
from bedplate.data.corpus.recipe import CorpusRecipe
from bedplate.data.corpus.repeated import Contamination, MinHash, text_hash
from bedplate.data.corpus.shards import save_array

CONTAMINATED = "contaminated"
_TOGETHER = 64
"""Documents that a rule may see at once."""


def sift(
    work: str,
    directory: str,
    recipe: Mapping[str, Any],
    part: Mapping[str, Any],
    key: str,
    judges: Mapping[str, Judge] | None = None,
) -> str:
    """A job. Writes `parts/NAME` below the work folder, whole or not at all; returns its name. directory: what the
    recipe's paths are relative to; key: what decides the part's content, kept with it."""
    plan, unit = CorpusRecipe.model_validate(recipe), SourcePart.from_json(part)
    source = next(candidate for candidate in plan.sources if candidate.name == unit.source)
    contamination = Path(work) / "contamination.npz"
    sifter = _Sifter(plan, source, Contamination.load(contamination), judges or {})
    with atomic_directory(Path(work) / "parts" / unit.name, replace=True) as out:
        sifter.run(islice(READERS[source.kind].read(source, unit), source.limit), out, unit.name, key)
    return unit.name


class _Sifter:
    def __init__(
        self, recipe: CorpusRecipe, source: SourceSettings, contamination: Contamination, judges: Mapping[str, Judge]
    ) -> None:
        self._source, self._contamination = source, contamination
        settings = recipe.dedup.minhash
        self._minhash = None if settings is None else MinHash(settings)
        self._bands = 0 if settings is None else settings.bands
        self._preset, self._recipes = source.preset or recipe.preset, recipe.preset
        self._tools = Tools(recipe.language, judges, cuts=recipe.cut is not None)
        self._over = recipe.rules
        self._rules: dict[str, list[tuple[str, Rule]]] = {}

    def run(self, documents: Iterator[Read], out: Path, name: str, key: str) -> None:
        tally, fates, digest = Tally(), list[Fate](), hashlib.sha256()
        hashes: list[tuple[int, int]] = []
        sizes: list[tuple[int, int]] = []
        bands: list[NDArray[np.uint64] | None] = []
        with gzip.GzipFile(out / "kept.jsonl.gz", "wb", 1, mtime=0) as text_file:
            for read, draft in self._drafts(documents):
                fate = self._settled(read, draft, tally)
                fates.append(fate)
                raw_hash = text_hash(read.text) if isinstance(read, RawDocument) else None
                digest.update(f"{read.id}\0{raw_hash or ''}\n".encode())
                if fate.rule is None and draft is not None:
                    text = draft.text
                    text_file.write(json.dumps({"id": read.id, "text": text}, ensure_ascii=False).encode() + b"\n")
                    hashes.append(text_hash(text) if draft.changed or raw_hash is None else raw_hash)
                    sizes.append((len(text), len(text.encode())))
                    bands.append(None if self._minhash is None else self._minhash.bands(text))
        tally.check(name)
        write_fates(out / "fates.jsonl.gz", fates)
        none = np.zeros(self._bands, np.uint64)
        table = [none if band is None else band for band in bands]
        save_array(out / "hashes.npy", np.array(hashes, np.uint64).reshape(-1, 2))
        save_array(out / "sizes.npy", np.array(sizes, np.int64).reshape(-1, 2))
        save_array(out / "bands.npy", np.array(table, np.uint64).reshape(len(table), self._bands))
        save_array(out / "has.npy", np.array([band is not None for band in bands], bool))
        summary = {"key": key, "content": digest.hexdigest(), "tally": asdict(tally)}
        atomic_write(out / "part.json", json.dumps(summary, ensure_ascii=False, indent=1))

    def _drafts(self, documents: Iterator[Read]) -> Iterator[tuple[Read, DraftDocument | None]]:
        """Every document, and its draft with what the rules said: those of some documents rule by rule, so that what is
        faster together can be. None for what could not be read."""
        while batch := list(islice(documents, _TOGETHER)):
            drafts = [self._draft(read) for read in batch]
            by_preset: defaultdict[str, list[DraftDocument]] = defaultdict(list)
            for draft in filter(None, drafts):
                by_preset[self._preset_of(draft)].append(draft)
            for preset, mine in by_preset.items():
                for name, rule in self._rules_of(preset):
                    _apply(name, rule, [draft for draft in mine if draft.rule is None])
            yield from zip(batch, drafts, strict=True)

    def _draft(self, read: Read) -> DraftDocument | None:
        """None for what is no text, or none of Unicode."""
        if isinstance(read, Unread) or (not read.text.isascii() and any("\ud800" <= c <= "\udfff" for c in read.text)):
            return None
        return DraftDocument(read.text, read.about, self._tools)

    def _settled(self, read: Read, draft: DraftDocument | None, tally: Tally) -> Fate:
        """What becomes of a document, counted."""
        name, text = self._source.name, read.text if isinstance(read, RawDocument) else ""
        rule = read.rule if isinstance(read, Unread) else UNREADABLE
        tally.saw(None if rule == SKIPPED else text)
        if draft is None or isinstance(read, Unread):
            lone = "lone_surrogate: not Unicode text"
            detail = f"{read.why}: {read.detail}" if isinstance(read, Unread) else lone
            tally.drop(rule, detail, len(text.encode("utf-8", "surrogatepass")), read.id, "")
            return Fate(read.id, name, rule, detail, len(text))
        rule, detail = draft.rule, draft.detail
        if rule is None:
            hit = self._contamination.found_in(draft.text)
            rule, detail = (None, "") if hit is None else (CONTAMINATED, hit)
        if rule is not None:
            tally.drop(rule, detail, len(text.encode()), read.id, text)
            return Fate(read.id, name, rule, detail, len(text), tuple(draft.changed))
        for rule_name in draft.changed:
            tally.changed[rule_name] = tally.changed.get(rule_name, 0) + 1
        tally.accept(draft.text)
        return Fate(read.id, name, None, "", len(text), tuple(draft.changed))

    def _preset_of(self, draft: DraftDocument) -> str:
        if self._preset != "mixed":
            return self._preset
        return "code" if draft.about.get("language", "Markdown") not in PROSE else "prose"

    def _rules_of(self, preset: str) -> list[tuple[str, Rule]]:
        if preset not in self._rules:
            self._rules[preset] = rules_of(preset, self._over, self._tools, recipes=preset == self._recipes)
        return self._rules[preset]


def _apply(name: str, rule: Rule, drafts: list[DraftDocument]) -> None:
    before = [draft.text for draft in drafts]
    reasons = (rule.apply_batch(drafts) if drafts else ()) if isinstance(rule, Together) else map(rule, drafts)
    for draft, text, reason in zip(drafts, before, reasons, strict=True):
        if reason is not None:
            draft.rule, draft.detail = name, reason
        elif draft.text is not text and draft.text != text:
            draft.changed.append(name)


class SiftedPart:
    """What `sift` wrote of a part."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        summary = json.loads((directory / "part.json").read_text("utf-8"))
        self.key, self.content = str(summary["key"]), str(summary["content"])
        self.tally = Tally(**summary["tally"])

    def array(self, name: str) -> NDArray[Any]:
        """hashes [K, 2], sizes [K, 2] (characters, bytes), bands [K, B] or has [K], of the documents that were kept."""
        return np.load(self.directory / f"{name}.npy", allow_pickle=False)

    def texts(self) -> Iterator[tuple[str, str]]:
        """Id and text of those that were kept, in order."""
        with gzip.open(self.directory / "kept.jsonl.gz", "rt", encoding="utf-8", newline="\n") as lines:
            for line in lines:
                values = json.loads(line)
                yield values["id"], values["text"]

    def fates(self) -> list[Fate]:
        return list(read_fates(self.directory / "fates.jsonl.gz"))


def finished(work: Path, name: str, key: str) -> SiftedPart | None:
    """A part that was done before, of the same content."""
    directory = work / "parts" / name
    if not (directory / "part.json").is_file():
        return None
    part = SiftedPart(directory)
    return part if part.key == key else None
