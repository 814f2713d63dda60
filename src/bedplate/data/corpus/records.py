"""Writes the records of a finished build: fates, funnel, card, recipe, and last the manifest, which makes the directory
a corpus."""

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
from bedplate.data.corpus.encode import COPY, entry_of
from bedplate.data.corpus.fates import Fate, Tally, write_fates
from bedplate.data.corpus.filter_part import SiftedPart
from bedplate.data.corpus.funnel import card, funnel_of
from bedplate.data.corpus.manifest import MANIFEST, SPLITS, CorpusManifest, ShardEntry, SourceEntry
from bedplate.data.corpus.readers.part import SourcePart
from bedplate.data.corpus.recipe import CorpusRecipe, Source
from bedplate.data.corpus.repeated.minhash import EXACT
from bedplate.data.corpus.shards import INDEX, Corpus
from bedplate.text.tokenizer import Tokenizer

RECORD = "build.json"


_OUTPUT_PATTERNS = (
    "shards/*.ds",
    f"shards/*.ds{INDEX}",
    "shards/*.ds*.part",
    "fates/*.jsonl.gz",
    "fates/.*.jsonl.gz.*.tmp",
)
"""What builds write below the directory, beside the work folder and the records."""


@dataclass(frozen=True)
class BuildRecords:
    """All that was done. splits: of each part, where the documents go that its rules kept; entries: by source, its
    groups' shards by split; fate, of: as `copies` gives them."""

    parts: Sequence[SourcePart]
    sifted: Mapping[str, SiftedPart]
    splits: Mapping[str, NDArray[np.int8]]
    entries: Mapping[str, Sequence[Mapping[str, ShardEntry]]]
    fate: NDArray[np.int8]
    of: NDArray[np.int64]


def write_records(recipe: CorpusRecipe, out: Path, ended: BuildRecords, record: Mapping[str, object]) -> Corpus:
    """record: what a later build is compared with."""
    _remove_others(out, ended)
    tallies = _fates(out, ended)
    sources = tuple(_source(source, ended.entries.get(source.name, ())) for source in recipe.sources)
    read = [[part.name, ended.sifted[part.name].content] for part in ended.parts]
    tokenizer = entry_of(Tokenizer.from_directory(out))
    manifest = CorpusManifest(
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


def _remove_others(out: Path, ended: BuildRecords) -> None:
    """What builds of another recipe left in the directory is no part of this corpus. Nothing else is removed."""
    files = [shard.file for groups in ended.entries.values() for group in groups for shard in group.values()]
    expected_files = {out / name for file in files for name in (file, file + INDEX)}
    expected_files |= {_fates_file(out, part.name) for part in ended.parts}
    for pattern in _OUTPUT_PATTERNS:
        for path in set(out.glob(pattern)) - expected_files:
            path.unlink()
    for layout in out.glob("rows/*/layout.json"):  # what training laid out of the shards before
        shutil.rmtree(layout.parent, ignore_errors=True)


def _fates_file(out: Path, part: str) -> Path:
    return out / "fates" / f"{part}.jsonl.gz"


def _source(source: Source, groups: Sequence[Mapping[str, ShardEntry]]) -> SourceEntry:
    splits = {split: tuple(group[split] for group in groups if split in group) for split in SPLITS}
    shards = [shard for split_shards in splits.values() for shard in split_shards]
    return SourceEntry(
        name=source.name,
        weight=source.weight,
        licence=source.licence,
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
        splits=splits,  # pyright: ignore[reportArgumentType]
    )


def _fates(out: Path, ended: BuildRecords) -> dict[str, Tally]:
    """Writes every document's fate; what was counted, by source, copies among it."""
    kept_ids = (fate.id for part in ended.parts for fate in ended.sifted[part.name].fates() if fate.rule is None)
    named = set(ended.of[ended.fate != 0].tolist())  # only what others are copies of
    ids = {place: id for place, id in enumerate(kept_ids) if place in named}
    tallies: dict[str, Tally] = {}
    at = 0
    for part in ended.parts:
        sifted_part, splits = ended.sifted[part.name], ended.splits[part.name]
        tally, sizes, written = sifted_part.tally, sifted_part.array("sizes"), list[Fate]()
        places = iter(range(len(sizes)))
        for document_fate in sifted_part.fates():
            if document_fate.rule is not None:
                written.append(document_fate)
                continue
            offset = next(places)
            if splits[offset] != COPY:
                written.append(replace(document_fate, split=SPLITS[int(splits[offset])]))
                continue
            rule = "exact_duplicate" if ended.fate[at + offset] == EXACT else "near_duplicate"
            detail = f"copy: of {ids[int(ended.of[at + offset])]}"
            tally.unkeep(int(sizes[offset, 0]), int(sizes[offset, 1]), document_fate.changed)
            tally.drop(rule, detail, int(sizes[offset, 1]), document_fate.id, "")
            written.append(replace(document_fate, rule=rule, detail=detail))
        at += len(sizes)
        tally.check(part.name)
        write_fates(_fates_file(out, part.name), written)
        tallies.setdefault(part.source, Tally()).add(tally)
    return tallies
