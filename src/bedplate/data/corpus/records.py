"""What is written beside the shards when a build ends: fates, funnel, card, recipe, and last the manifest, which makes
a corpus of the directory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bedplate.core.config import dump_config
from bedplate.core.files import atomic_write, sha256_json
from bedplate.data.corpus.card import card
from bedplate.data.corpus.encode import COPY, entry_of
from bedplate.data.corpus.fates import Fate, Tally, write_fates
from bedplate.data.corpus.funnel import funnel_of
from bedplate.data.corpus.manifest import MANIFEST, SPLITS, Manifest, ShardEntry, SourceEntry
from bedplate.data.corpus.readers.part import Part
from bedplate.data.corpus.recipe import Recipe, Source
from bedplate.data.corpus.repeated.duplicates import EXACT
from bedplate.data.corpus.shards import INDEX, Corpus
from bedplate.data.corpus.sift import SiftedPart
from bedplate.text.tokenizer import Tokenizer

RECORD = "build.json"


_OWN = ("shards/*.ds", f"shards/*.ds{INDEX}", "shards/*.ds*.part", "fates/*.jsonl.gz", "fates/.*.jsonl.gz.*.tmp")
"""What builds write below the directory, beside the work folder and the records."""


@dataclass(frozen=True)
class Ended:
    """All that was done. splits: of each part, where the documents go that its rules kept; entries: by source, its
    groups' shards by split; fate, of: as `copies` gives them."""

    parts: Sequence[Part]
    sifted: Mapping[str, SiftedPart]
    splits: Mapping[str, NDArray[np.int8]]
    entries: Mapping[str, Sequence[Mapping[str, ShardEntry]]]
    fate: NDArray[np.int8]
    of: NDArray[np.int64]


def write_records(recipe: Recipe, out: Path, ended: Ended, record: Mapping[str, object]) -> Corpus:
    """record: what a later build is compared with."""
    _remove_others(out, ended)
    tallies = _fates(out, ended)
    sources = tuple(_source(source, ended.entries.get(source.name, ())) for source in recipe.sources)
    read = [[part.name, ended.sifted[part.name].content] for part in ended.parts]
    tokenizer = entry_of(Tokenizer.from_directory(out))
    manifest = Manifest(
        recipe=sha256_json([recipe.model_dump(mode="json"), read]),
        tokenizer=tokenizer,
        dtype=tokenizer.dtype,
        sources=sources,
    )
    funnel = funnel_of(recipe, tallies, manifest)
    atomic_write(out / "funnel.json", json.dumps(funnel, ensure_ascii=False, indent=1) + "\n")
    atomic_write(out / "recipe.yaml", dump_config(recipe))
    atomic_write(out / "card.md", card(recipe, funnel, manifest))
    atomic_write(out / RECORD, json.dumps(record, indent=1) + "\n")
    atomic_write(out / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
    return Corpus.open(out)


def _remove_others(out: Path, ended: Ended) -> None:
    """What builds of another recipe left in the directory is no part of this corpus. Nothing else is removed."""
    files = [entry.file for groups in ended.entries.values() for group in groups for entry in group.values()]
    kept = {out / name for file in files for name in (file, file + INDEX)}
    kept |= {_fates_file(out, part.name) for part in ended.parts}
    for pattern in _OWN:
        for path in set(out.glob(pattern)) - kept:
            path.unlink()
    for layout in out.glob("rows/*/layout.json"):  # what training laid out of the shards before
        shutil.rmtree(layout.parent, ignore_errors=True)


def _fates_file(out: Path, part: str) -> Path:
    return out / "fates" / f"{part}.jsonl.gz"


def _source(source: Source, groups: Sequence[Mapping[str, ShardEntry]]) -> SourceEntry:
    splits = {split: tuple(one[split] for one in groups if split in one) for split in SPLITS}
    shards = [shard for some in splits.values() for shard in some]
    return SourceEntry(
        name=source.name,
        weight=source.weight,
        licence=source.licence,
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
        splits=splits,  # pyright: ignore[reportArgumentType]
    )


def _fates(out: Path, ended: Ended) -> dict[str, Tally]:
    """Writes every document's fate; what was counted, by source, copies among it."""
    kept_ids = (fate.id for part in ended.parts for fate in ended.sifted[part.name].fates() if fate.rule is None)
    named = set(ended.of[ended.fate != 0].tolist())  # only what others are copies of
    ids = {place: id for place, id in enumerate(kept_ids) if place in named}
    tallies: dict[str, Tally] = {}
    at = 0
    for part in ended.parts:
        done, splits = ended.sifted[part.name], ended.splits[part.name]
        tally, sizes, written = done.tally, done.array("sizes"), list[Fate]()
        places = iter(range(len(sizes)))
        for one in done.fates():
            if one.rule is not None:
                written.append(one)
                continue
            within = next(places)
            if splits[within] != COPY:
                written.append(replace(one, split=SPLITS[int(splits[within])]))
                continue
            rule = "exact_duplicate" if ended.fate[at + within] == EXACT else "near_duplicate"
            detail = f"copy: of {ids[int(ended.of[at + within])]}"
            tally.unkeep(int(sizes[within, 0]), int(sizes[within, 1]), one.changed)
            tally.drop(rule, detail, int(sizes[within, 1]), one.id, "")
            written.append(replace(one, rule=rule, detail=detail))
        at += len(sizes)
        tally.check(part.name)
        write_fates(_fates_file(out, part.name), written)
        tallies.setdefault(part.source, Tally()).add(tally)
    return tallies
