"""Builds a corpus from its recipe.

1. Sources are planned as parts, and each part is read and filtered (filter_part.py, readers/, curate/).
2. Copies are found among all parts (repeated/), and documents are split into train and valid.
3. A tokenizer is trained or loaded, and shards of token ids are written (encode.py, shards.py).
4. The fates of documents, the funnel, the card and last the manifest are written (records.py).

Finished steps stay when a build is killed: the same call continues.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import BedplateError, DataError, UsageError
from bedplate.core.executor import Executor, Job, LocalExecutor, ProcessExecutor
from bedplate.core.files import atomic_write, file_lock, sha256_bytes, sha256_file, sha256_json
from bedplate.core.processor import processor
from bedplate.core.progress import Progress
from bedplate.core.version import __version__
from bedplate.data.corpus.curate.draft import Judge
from bedplate.data.corpus.curate.presets import checked
from bedplate.data.corpus.encode import COPY, TRAIN, VALID, ShardGroup, encoded, make_tokenizer, resolve_tokenizer
from bedplate.data.corpus.fates import Tally
from bedplate.data.corpus.filter_part import SiftedPart, finished
from bedplate.data.corpus.manifest import MANIFEST, SPLITS, ShardEntry
from bedplate.data.corpus.readers.part import SourcePart, grouped
from bedplate.data.corpus.readers.table import READERS
from bedplate.data.corpus.recipe import CorpusRecipe, Source
from bedplate.data.corpus.records import RECORD, BuildRecords, write_records
from bedplate.data.corpus.repeated.contamination import Contamination, fingerprint
from bedplate.data.corpus.repeated.minhash import copies
from bedplate.data.corpus.shards import Corpus, save_array, save_arrays

WORK, LOCK = ".work", ".lock"
BYTES_PER_TOKEN = 3.5
"""What shards are measured out by, before a token is counted."""


@dataclass(frozen=True)
class BuiltCorpus:
    """The corpus, and whether anything had to be done."""

    corpus: Corpus
    new: bool


def build(
    recipe: CorpusRecipe,
    directory: Path,
    out: Path,
    *,
    processes: int = 1,
    judges: Mapping[str, Judge] | None = None,
    executor: Executor | None = None,
    keep_work: bool = False,
    quiet: bool = False,
) -> BuiltCorpus:
    """Builds the corpus into `out`, or continues there. directory: where the recipe's paths begin. judges: by the name
    that rules give; they cannot travel, so with them sources are filtered in this process. executor: runs the jobs, by
    default here in `processes` processes.

    Raises ConfigError for a recipe that cannot be followed, DataError for sources that are unreadable, empty, or of
    which nothing is kept (by which rules), UsageError where `out` holds another corpus or the disk is full.
    """
    checked(recipe.rules)
    encoder = executor or (LocalExecutor() if processes == 1 else ProcessExecutor(processes))
    sifter = LocalExecutor({"judges": judges}) if judges and executor is None else encoder
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; give the directory that the corpus is to be written to")
    if (
        out.is_dir()
        and (existing_names := {path.name for path in out.iterdir()})
        and not existing_names & {WORK, LOCK, MANIFEST}
    ):
        raise UsageError(
            f"{out} holds other files ({', '.join(sorted(existing_names)[:3])}); give a directory of its own"
        )
    with file_lock(out / LOCK, wait=False):
        return _Build(recipe, directory.absolute(), out, sifter, encoder, quiet).run(keep_work)


class _Build:
    def __init__(
        self, recipe: CorpusRecipe, directory: Path, out: Path, sifter: Executor, encoder: Executor, quiet: bool
    ) -> None:
        self._recipe, self._directory, self._out, self._work = recipe, directory, out, out / WORK
        self._sifter, self._encoder, self._quiet = sifter, encoder, quiet
        self._needs = ("judges",) if sifter is not encoder else ()
        self._values = recipe.model_dump(mode="json")

    def run(self, keep_work: bool) -> BuiltCorpus:
        parts = self._plan()
        against = fingerprint(self._recipe.decontaminate.against, self._directory)
        decides = [
            self._values,
            [part.to_json() for part in parts],
            against,
            *self._judge(),
            *self._tokenizer_identity(),
            _versions(),
        ]
        build_key = sha256_json(decides)
        if (self._out / MANIFEST).is_file():
            return self._reopen(build_key, keep_work)
        self._work.mkdir(parents=True, exist_ok=True)
        sifted = self._sift(parts, against)
        splits = self._split(parts, sifted)
        self._refuse_nothing(parts, sifted, splits)
        entries = self._encode(parts, sifted, splits)
        with np.load(self._work / "copies.npz") as arrays:
            ended = BuildRecords(parts, sifted, splits, entries, arrays["fate"], arrays["of"])
        corpus = write_records(self._recipe, self._out, ended, {"asked": build_key, "versions": _versions()})
        if not keep_work:
            shutil.rmtree(self._work)
        return BuiltCorpus(corpus, True)

    def _tokenizer_identity(self) -> list[str]:
        """What changes when the tokenizer does that the recipe names."""
        use = self._recipe.tokenizer.use
        return [] if use is None else [resolve_tokenizer(use, self._directory).identity]

    def _judge(self) -> list[str]:
        """What changes when the skin does that judges: its skin.json has the hashes of its files and of its base."""
        skin = (self._recipe.rules.get("judged") or {}).get("skin")
        path = None if skin is None else self._directory / Path(str(skin)).expanduser() / "skin.json"
        return [] if path is None or not path.is_file() else [sha256_file(path)]

    def _reopen(self, build_key: str, keep_work: bool) -> BuiltCorpus:
        record = self._out / RECORD
        if not record.is_file() or json.loads(record.read_text("utf-8")).get("asked") != build_key:
            raise UsageError(
                f"{self._out} holds a corpus of another recipe, of other files or of other versions; give another "
                "directory with --out, or remove it"
            )
        if not keep_work:
            shutil.rmtree(self._work, ignore_errors=True)  # of a build that was killed in its last moment
        return BuiltCorpus(Corpus.open(self._out), False)

    def _plan(self) -> list[SourcePart]:
        parts: list[SourcePart] = []
        for source in self._recipe.sources:
            size = 1 << 62 if source.limit is not None else max(1, int(self._recipe.part_mb * 1e6))
            planned = self._outside(source, list(READERS[source.kind].plan(source, self._directory, size)), size)
            if source.limit is not None:  # one job counts up to the limit
                pieces = tuple(piece for part in planned for piece in part.pieces)
                planned = [replace(planned[0], pieces=pieces)] if len({p.root for p in planned}) == 1 else planned
            parts += planned
        if not sum(part.size for part in parts):
            raise DataError("the corpus is empty: its sources hold no byte")
        return parts

    def _outside(self, source: Source, planned: list[SourcePart], size: int) -> list[SourcePart]:
        """Without what lies in the corpus's own directory, which may stand inside of a source's folder: a corpus is not
        made of itself."""
        roots = {part.root for part in planned}
        if len(roots) != 1:
            return planned
        root, corpus_root = Path(roots.pop()), self._out.resolve()
        if not corpus_root.is_relative_to(root.resolve()):
            return planned
        below = root / corpus_root.relative_to(root.resolve())
        pieces = [piece for part in planned for piece in part.pieces if not Path(piece.path).is_relative_to(below)]
        if not pieces:
            raise DataError(f"source {source.name!r}: all that it has lies in {self._out}, the corpus's own directory")
        return grouped(source, root, pieces, size)

    # --- sifting

    def _sift(self, parts: Sequence[SourcePart], against: str) -> dict[str, SiftedPart]:
        keys = {part.name: self._part_key(part, against) for part in parts}
        waiting = [part for part in parts if finished(self._work, part.name, keys[part.name]) is None]
        if waiting:
            settings = self._recipe.decontaminate
            index = Contamination.of(settings.against, self._directory, settings.words)
            index.save(self._work / "contamination.npz")
        jobs = [
            Job(
                part.name,
                "bedplate.data.corpus.filter_part:sift",
                {
                    "work": str(self._work),
                    "directory": str(self._directory),
                    "recipe": self._values,
                    "part": part.to_json(),
                    "key": keys[part.name],
                },
                self._needs,
            )
            for part in waiting
        ]
        sizes = {part.name: part.size / 1e6 for part in parts}
        self._work_off(self._sifter, jobs, "sifting", sizes)
        results = {part.name: finished(self._work, part.name, keys[part.name]) for part in parts}
        missing = [name for name, part in results.items() if part is None]
        if missing:
            raise DataError(f"{', '.join(missing)}: the job ended, but wrote nothing; run the command again")
        sifted = {name: part for name, part in results.items() if part is not None}
        for name, part in sifted.items():
            part.tally.check(name)
        if not sum(part.tally.documents for part in sifted.values()):
            raise DataError("the corpus is empty: its sources hold no document")
        return sifted

    def _part_key(self, part: SourcePart, against: str) -> str:
        source = next(spec for spec in self._values["sources"] if spec["name"] == part.source)
        settings = {name: self._values[name] for name in ("preset", "language", "rules")}
        decides = [part.to_json(), source, settings, self._values["dedup"]["minhash"], against, _versions()]
        decides += self._judge()
        return sha256_json([*decides, self._values["decontaminate"]["words"]])

    def _work_off(self, runner: Executor, jobs: Sequence[Job], activity: str, sizes: Mapping[str, float]) -> None:
        """Run the jobs; the first that fails ends the build, naming it."""
        with Progress(activity, sum(sizes[job.name] for job in jobs), "MB", quiet=self._quiet) as bar:
            try:
                for outcome in runner.run(jobs):
                    if isinstance(outcome.error, BedplateError):
                        raise outcome.error
                    if outcome.error is not None:
                        error_type = type(outcome.error).__name__
                        raise DataError(
                            f"{activity} {outcome.name} failed: {error_type}: {outcome.error}"
                        ) from outcome.error
                    if outcome.value != outcome.name:
                        raise DataError(f"{activity} {outcome.name} ended without a result; run the command again")
                    bar.advance(sizes[outcome.name])
            except BrokenProcessPool as error:
                raise DataError(
                    f"{activity}: a process was killed (out of memory?); what was done is kept: run the command again, "
                    "with fewer --processes or a smaller part_mb"
                ) from error

    # --- copies and splits

    def _split(self, parts: Sequence[SourcePart], sifted: Mapping[str, SiftedPart]) -> dict[str, NDArray[np.int8]]:
        """Where each document that the rules kept goes, by part; copies' fates are written down."""
        sifted_parts = [sifted[part.name] for part in parts]
        hashes = np.concatenate([part.array("hashes") for part in sifted_parts])
        fate, of = copies(
            self._recipe.dedup,
            hashes,
            np.concatenate([part.array("bands") for part in sifted_parts]),
            np.concatenate([part.array("has") for part in sifted_parts]),
        )
        place = np.where(fate == 0, TRAIN, COPY).astype(np.int8)
        names = np.repeat([part.source for part in parts], [len(part.array("hashes")) for part in sifted_parts])
        for source in dict.fromkeys(part.source for part in parts):
            train_indices = np.flatnonzero((names == source) & (place == TRAIN))
            place[train_indices[self._held_out(hashes[train_indices, 0])]] = VALID
        ends = np.cumsum([len(part.array("hashes")) for part in sifted_parts])
        splits = dict(zip([part.name for part in parts], np.split(place, ends[:-1]), strict=True))
        for name, placement in splits.items():
            save_array(self._work / "splits" / f"{name}.npy", placement)
        save_arrays(self._work / "copies.npz", fate=fate, of=of)
        return splits

    def _held_out(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Which of a source's documents are for validation: at least one, where there are several."""
        share = self._recipe.split.valid
        chosen = np.flatnonzero(hashes.astype(np.float64) / 2.0**64 < share)
        if share > 0 and not len(chosen) and len(hashes) > 1:
            chosen = np.array([int(np.argmin(hashes))])
        return chosen if len(chosen) < len(hashes) else chosen[1:]

    def _refuse_nothing(
        self, parts: Sequence[SourcePart], sifted: Mapping[str, SiftedPart], splits: Mapping[str, NDArray[np.int8]]
    ) -> None:
        for source in (spec.name for spec in self._recipe.sources):
            mine = [part.name for part in parts if part.source == source]
            if any((splits[name] == TRAIN).any() for name in mine):
                continue
            if not any(sifted[name].tally.documents for name in mine):
                raise DataError(f"source {source!r} holds no document; give another path, or take the source out")
            total = Tally()
            for name in mine:
                total.add(sifted[name].tally)
            losses = "; ".join(
                f"{rule} {sum(reasons.values())} ({', '.join(f'{k} {n}' for k, n in sorted(reasons.items()))})"
                for rule, reasons in sorted(total.dropped.items(), key=lambda rule: -sum(rule[1].values()))
            )
            copied = f"{'; ' if losses else ''}copies {total.kept}" if total.kept else ""
            raise DataError(
                f"source {source!r} has nothing left to train on: all {total.documents} documents were dropped: "
                f"{losses}{copied}; change its preset or the rules in the recipe (`rules: {{NAME: null}}` turns one "
                "off), or take the source out"
            )

    # --- ids

    def _encode(
        self, parts: Sequence[SourcePart], sifted: Mapping[str, SiftedPart], splits: Mapping[str, NDArray[np.int8]]
    ) -> dict[str, list[dict[str, ShardEntry]]]:
        decides = [[sifted[p.name].content, sha256_bytes(splits[p.name].tobytes())] for p in parts]
        key = sha256_json([decides, self._values["tokenizer"], *self._tokenizer_identity(), _versions()])
        record = self._work / "tokenizer.json"
        if not record.is_file() or record.read_text("utf-8") != key or not (self._out / "tokenizer.json").is_file():
            weight = sum(int(sifted[p.name].array("sizes")[splits[p.name] == TRAIN, 1].sum()) for p in parts)
            choice, chosen = self._recipe.tokenizer, [(part.name, splits[part.name]) for part in parts]
            with Progress("tokenizer", 1, "vocabulary", quiet=self._quiet):
                make_tokenizer(choice, self._work, chosen, weight, self._directory).save(self._out)
            atomic_write(record, key)
        groups = list(self._groups(parts, sifted, splits))
        keys = {group.name: sha256_json([key, group.parts]) for group in groups}
        jobs = [
            Job(
                group.name,
                "bedplate.data.corpus.encode:encode",
                {
                    "work": str(self._work),
                    "out": str(self._out),
                    "group": asdict(group),
                    "key": keys[group.name],
                },
            )
            for group in groups
            if encoded(self._work, self._out, group.name, keys[group.name]) is None
        ]
        sizes = {group.name: sum(sifted[p].tally.kept_bytes for p in group.parts) / 1e6 for group in groups}
        self._work_off(self._encoder, jobs, "encoding", sizes)
        entries_by_source: dict[str, list[dict[str, ShardEntry]]] = {}
        for group in groups:
            entries = encoded(self._work, self._out, group.name, keys[group.name])
            expected = {
                split: sum(int((splits[p] == number).sum()) for p in group.parts) for number, split in enumerate(SPLITS)
            }
            written = {split: shard.documents for split, shard in (entries or {}).items()}
            if entries is None or written != {split: count for split, count in expected.items() if count}:
                raise DataError(
                    f"{group.name}: {written} documents were encoded, but {expected} were to be; build again"
                )
            entries_by_source.setdefault(group.source, []).append(entries)
        return entries_by_source

    def _groups(
        self, parts: Sequence[SourcePart], sifted: Mapping[str, SiftedPart], splits: Mapping[str, NDArray[np.int8]]
    ) -> list[ShardGroup]:
        groups: list[ShardGroup] = []
        for source in dict.fromkeys(part.source for part in parts):
            names, size, number = list[str](), 0.0, 0
            for part in (
                candidate
                for candidate in parts
                if candidate.source == source and (splits[candidate.name] != COPY).any()
            ):
                weight = sifted[part.name].tally.kept_bytes / BYTES_PER_TOKEN
                if names and size + weight > self._recipe.shard_tokens:
                    groups.append(ShardGroup(source, number, tuple(names)))
                    names, size, number = [], 0.0, number + 1
                names.append(part.name)
                size += weight
            if names:
                groups.append(ShardGroup(source, number, tuple(names)))
        return groups


def _versions() -> dict[str, str]:
    """Versions of the installed packages that decide the content."""
    versions = {"bedplate": __version__}
    for package in ("tokenizers", "datatrove", "spacy", "trafilatura"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def processes_here() -> int:
    """As many as this process may use of its machine's cores, within a container's quota."""
    return processor().threads
