"""One part of a build: every document read, sent through the rules, and either kept or its fate written down."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedplate.core.files import atomic_directory, atomic_write
from bedplate.data.corpus.curate.draft import Draft, Judge, Rule, Tools
from bedplate.data.corpus.curate.presets import rules_of
from bedplate.data.corpus.fates import Fate, Tally, read_fates, write_fates
from bedplate.data.corpus.readers.part import Part, RawDocument, Read, Unread
from bedplate.data.corpus.readers.table import READERS
from bedplate.data.corpus.recipe import Recipe, Source
from bedplate.data.corpus.repeated.contamination import Contamination
from bedplate.data.corpus.repeated.duplicates import text_hash
from bedplate.data.corpus.repeated.minhash import MinHash

UNREADABLE, CONTAMINATED = "unreadable", "contaminated"
_PROSE = frozenset(("Markdown", "reStructuredText"))
"""Languages of a tree of code that are prose."""


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
    plan, unit = Recipe.model_validate(recipe), Part.from_json(part)
    source = next(one for one in plan.sources if one.name == unit.source)
    contamination = Path(work) / "contamination.npz"
    sifter = _Sifter(plan, source, Contamination.load(contamination), judges or {})
    with atomic_directory(Path(work) / "parts" / unit.name, replace=True) as out:
        sifter.run(islice(READERS[source.kind].read(source, unit), source.limit), out, unit.name, key)
    return unit.name


class _Sifter:
    def __init__(
        self, recipe: Recipe, source: Source, contamination: Contamination, judges: Mapping[str, Judge]
    ) -> None:
        self._source, self._contamination = source, contamination
        settings = recipe.dedup.minhash
        self._minhash = None if settings is None else MinHash(settings)
        self._bands = 0 if settings is None else settings.bands
        self._preset = source.preset or recipe.preset
        self._tools = Tools(recipe.language, judges)
        self._over = recipe.rules
        self._rules: dict[str, list[tuple[str, Rule]]] = {}

    def run(self, documents: Iterator[Read], out: Path, name: str, key: str) -> None:
        tally, fates, digest = Tally(), list[Fate](), hashlib.sha256()
        hashes: list[tuple[int, int]] = []
        sizes: list[tuple[int, int]] = []
        bands: list[NDArray[np.uint64] | None] = []
        with gzip.GzipFile(out / "kept.jsonl.gz", "wb", 1, mtime=0) as kept:
            for read in documents:
                draft, fate = self._fate(read, tally)
                fates.append(fate)
                digest.update(f"{read.id}\0{text_hash(read.text) if isinstance(read, RawDocument) else ''}\n".encode())
                if draft is not None:
                    text = draft.text
                    kept.write(json.dumps({"id": read.id, "text": text}, ensure_ascii=False).encode() + b"\n")
                    hashes.append(text_hash(text))
                    sizes.append((len(text), len(text.encode())))
                    bands.append(None if self._minhash is None else self._minhash.bands(text))
        tally.check(name)
        write_fates(out / "fates.jsonl.gz", fates)
        none = np.zeros(self._bands, np.uint64)
        table = [none if one is None else one for one in bands]
        np.save(out / "hashes.npy", np.array(hashes, np.uint64).reshape(-1, 2))
        np.save(out / "sizes.npy", np.array(sizes, np.int64).reshape(-1, 2))
        np.save(out / "bands.npy", np.array(table, np.uint64).reshape(-1, self._bands))
        np.save(out / "has.npy", np.array([one is not None for one in bands], bool))
        summary = {"key": key, "content": digest.hexdigest(), "tally": asdict(tally)}
        atomic_write(out / "part.json", json.dumps(summary, ensure_ascii=False, indent=1))

    def _fate(self, read: Read, tally: Tally) -> tuple[Draft | None, Fate]:
        """What becomes of a document; its draft where it is kept."""
        name, text = self._source.name, read.text if isinstance(read, RawDocument) else ""
        tally.saw(text)
        if isinstance(read, Unread):
            detail = f"{read.why}: {read.detail}"
            tally.drop(UNREADABLE, detail, 0, read.id, "")
            return None, Fate(read.id, name, UNREADABLE, detail, 0)
        size = len(text.encode("utf-8", "surrogatepass"))
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            detail = "lone_surrogate: not Unicode text"
            tally.drop(UNREADABLE, detail, size, read.id, "")
            return None, Fate(read.id, name, UNREADABLE, detail, len(text))
        draft, changed = Draft(text, read.about, self._tools), list[str]()
        for rule, judge in self._rules_for(read):
            before = draft.text
            reason = judge(draft)
            if reason is not None:
                tally.drop(rule, reason, size, read.id, text)
                return None, Fate(read.id, name, rule, reason, len(text), tuple(changed))
            if draft.text != before:
                changed.append(rule)
        hit = self._contamination.found_in(draft.text)
        if hit is not None:
            tally.drop(CONTAMINATED, hit, size, read.id, text)
            return None, Fate(read.id, name, CONTAMINATED, hit, len(text), tuple(changed))
        for rule in changed:
            tally.changed[rule] = tally.changed.get(rule, 0) + 1
        tally.keep(draft.text)
        return draft, Fate(read.id, name, None, "", len(text), tuple(changed))

    def _rules_for(self, read: RawDocument) -> list[tuple[str, Rule]]:
        preset = self._preset
        if preset == "mixed":
            preset = "code" if read.about.get("language", "Markdown") not in _PROSE else "prose"
        if preset not in self._rules:
            self._rules[preset] = rules_of(preset, self._over, self._tools)
        return self._rules[preset]


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
