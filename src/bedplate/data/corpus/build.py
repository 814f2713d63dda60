"""Builds a corpus from its recipe.

1. Sources are planned as parts, and each part is read and filtered (filter_part.py, readers/, curate/).
2. Copies are found among all parts (repeated/), and documents are split into train and valid.
3. A tokenizer is trained or loaded, and shards of token ids are written (encode.py, shards.py).
4. The fates of documents, the funnel, the card and last the manifest are written.

Finished steps stay when a build is killed: the same call continues.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bedplate.core.config import dump_config
from bedplate.core.errors import BedplateError, DataError, UsageError
from bedplate.core.executor import Executor, Job, LocalExecutor, ProcessExecutor
from bedplate.core.files import atomic_write, file_lock, sha256_bytes, sha256_file, sha256_json
from bedplate.core.processor import processor
from bedplate.core.progress import Progress
from bedplate.core.version import __version__
from bedplate.data.corpus import encode
from bedplate.data.corpus.curate.draft import Judge
from bedplate.data.corpus.curate.presets import checked
from bedplate.data.corpus.fates import Fate, Tally, card, funnel_of, write_fates
from bedplate.data.corpus.filter_part import SiftedPart, finished
from bedplate.data.corpus.readers import READERS
from bedplate.data.corpus.readers.parts import UNREADABLE, SourcePart, SourceSettings, grouped
from bedplate.data.corpus.recipe import CorpusRecipe
from bedplate.data.corpus.repeated import EXACT, Contamination, copies, fingerprint
from bedplate.data.corpus.requirements import check_installed
from bedplate.data.corpus.shards import INDEX, MANIFEST, SPLITS, Corpus, CorpusManifest, ShardEntry, save_array
from bedplate.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

WORK, LOCK, RECORD = ".work", ".lock", "build.json"
_LITTLE = 0.1  # share of a source's documents: where fewer are left, a warning says what dropped the others
BYTES_PER_TOKEN = 3.5
"""What shards are measured out by, before a token is counted."""
_OUTPUT_PATTERNS = (
    *("shards/*.ds", f"shards/*.ds{INDEX}", "shards/*.ds*.part"),
    *("fates/*.jsonl.gz", "fates/.*.jsonl.gz.*.tmp"),
)
"""What builds write below the directory, beside the work folder and the records."""


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
    names = {path.name for path in out.iterdir()} if out.is_dir() else set[str]()
    if names and not names & {WORK, LOCK, MANIFEST}:
        raise UsageError(f"{out} holds other files ({', '.join(sorted(names)[:3])}); give a directory of its own")
    with file_lock(out / LOCK, wait=False):
        return _Build(recipe, directory.absolute(), out, sifter, encoder, quiet).run(keep_work)


class _Build:
    """A build under way: its parts, what sifting left of each, and in which split each document of a part is."""

    def __init__(
        self, recipe: CorpusRecipe, directory: Path, out: Path, sifter: Executor, encoder: Executor, quiet: bool
    ) -> None:
        self._recipe, self._directory, self._out, self._work = recipe, directory, out, out / WORK
        self._sifter, self._encoder, self._quiet = sifter, encoder, quiet
        self._values = recipe.model_dump(mode="json")
        if recipe.cut is None:
            del self._values["cut"]  # so that corpora that were built before there was such a setting stay theirs
        self._parts: list[SourcePart] = []
        self._sifted: dict[str, SiftedPart] = {}
        self._splits: dict[str, NDArray[np.int8]] = {}
        self._cuts: dict[str, Mapping[int, tuple[int, ...]]] = {}

    def run(self, keep_work: bool) -> BuiltCorpus:
        check_installed(self._recipe)
        self._parts = self._plan()
        check_installed(self._recipe, self._parts)
        against = fingerprint(self._recipe.decontaminate.against, self._directory)
        content = [self._values, [part.to_json() for part in self._parts], against]
        build_key = sha256_json([*content, *self._judge(), *self._tokenizer_identity(), _versions()])
        if (self._out / MANIFEST).is_file():
            return self._reopen(build_key, keep_work)
        self._work.mkdir(parents=True, exist_ok=True)
        self._sift(against)
        fate, of = self._split()
        self._refuse_empty_sources()
        corpus = self._write_records(self._encode(), fate, of, build_key)
        if not keep_work:
            shutil.rmtree(self._work)
        return BuiltCorpus(corpus, True)

    def _tokenizer_identity(self) -> list[str]:
        """What changes when the tokenizer does that the recipe names."""
        use = self._recipe.tokenizer.use
        return [] if use is None else [encode.resolve_tokenizer(use, self._directory).identity]

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

    def _outside(self, source: SourceSettings, planned: list[SourcePart], size: int) -> list[SourcePart]:
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

    def _sift(self, against: str) -> None:
        keys = {part.name: self._part_key(part, against) for part in self._parts}
        waiting = [part for part in self._parts if finished(self._work, part.name, keys[part.name]) is None]
        if waiting:
            settings = self._recipe.decontaminate
            index = Contamination.of(settings.against, self._directory, settings.words)
            index.save(self._work / "contamination.npz")
        arguments = {"work": str(self._work), "directory": str(self._directory), "recipe": self._values}
        needs = ("judges",) if self._sifter is not self._encoder else ()
        function = "bedplate.data.corpus.filter_part:sift"
        jobs = [
            Job(part.name, function, {**arguments, "part": part.to_json(), "key": keys[part.name]}, needs)
            for part in waiting
        ]
        self._work_off(self._sifter, jobs, "sifting", {part.name: part.size / 1e6 for part in self._parts})
        results = {part.name: finished(self._work, part.name, keys[part.name]) for part in self._parts}
        self._sifted = {name: part for name, part in results.items() if part is not None}
        if missing := [name for name in results if name not in self._sifted]:
            raise DataError(f"{', '.join(missing)}: the job ended, but wrote nothing; run the command again")
        for name, part in self._sifted.items():
            part.tally.check(name)
        if not sum(part.tally.documents for part in self._sifted.values()):
            raise DataError("the corpus is empty: its sources hold no document")

    def _part_key(self, part: SourcePart, against: str) -> str:
        source = next(spec for spec in self._values["sources"] if spec["name"] == part.source)
        settings = {name: self._values[name] for name in ("preset", "language", "rules")}
        decides = [part.to_json(), source, settings, self._values["dedup"]["minhash"], against, _versions()]
        decides += ["cut"] if self._recipe.cut is not None else []
        return sha256_json([*decides, *self._judge(), self._values["decontaminate"]["words"]])

    def _work_off(self, runner: Executor, jobs: Sequence[Job], activity: str, sizes: Mapping[str, float]) -> None:
        """Run the jobs; the first that fails ends the build, naming it."""
        with Progress(activity, sum(sizes[job.name] for job in jobs), "MB", quiet=self._quiet) as bar:
            try:
                for outcome in runner.run(jobs):
                    error = outcome.error
                    if isinstance(error, BedplateError):
                        raise error
                    if error is not None:
                        raise DataError(f"{activity} {outcome.name} failed: {type(error).__name__}: {error}") from error
                    if outcome.value != outcome.name:
                        raise DataError(f"{activity} {outcome.name} ended without a result; run the command again")
                    bar.advance(sizes[outcome.name])
            except BrokenProcessPool as error:
                raise DataError(
                    f"{activity}: a process was killed (out of memory?); what was done is kept: run the command again, "
                    "with fewer --processes or a smaller part_mb"
                ) from error

    def _split(self) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
        """Decides where each document that the rules kept goes; the fates of copies, as `copies` gives them."""
        sifted = [self._sifted[part.name] for part in self._parts]
        names = ("hashes", "bands", "has")
        hashes, bands, has = (np.concatenate([part.array(name) for part in sifted]) for name in names)
        fate, of = copies(self._recipe.dedup, hashes, bands, has)
        place = np.where(fate == 0, encode.TRAIN, encode.COPY).astype(np.int8)
        sizes = [len(part.array("hashes")) for part in sifted]
        names = np.repeat([part.source for part in self._parts], sizes)
        for source in dict.fromkeys(part.source for part in self._parts):
            train_indices = np.flatnonzero((names == source) & (place == encode.TRAIN))
            place[train_indices[self._held_out(hashes[train_indices, 0])]] = encode.VALID
        for part, placement in zip(self._parts, np.split(place, np.cumsum(sizes)[:-1]), strict=True):
            self._splits[part.name] = placement
            save_array(self._work / "splits" / f"{part.name}.npy", placement)
        return fate, of

    def _held_out(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Which of a source's documents are for validation: at least one, where there are several."""
        share = self._recipe.split.valid
        chosen = np.flatnonzero(hashes.astype(np.float64) / 2.0**64 < share)
        if share > 0 and not len(chosen) and len(hashes) > 1:
            chosen = np.array([int(np.argmin(hashes))])
        return chosen if len(chosen) < len(hashes) else chosen[1:]

    def _refuse_empty_sources(self) -> None:
        problems = [self._without_training_text(spec.name) for spec in self._recipe.sources]
        if any(problems):
            raise DataError("; also, ".join(filter(None, problems)))

    def _without_training_text(self, source: str) -> str | None:
        """Why nothing of a source is left to train on; None where something is, with a warning where it is little."""
        names = [part.name for part in self._parts if part.source == source]
        left, total = sum(int((self._splits[name] == encode.TRAIN).sum()) for name in names), Tally()
        for name in names:
            total.add(self._sifted[name].tally)
        if left:
            if left < _LITTLE * total.documents:
                rules = ", ".join(f"{rule} {sum(why.values())}" for rule, why in total.dropped.items())
                logger.warning(
                    "source %r: %d of its %d documents are left to train on (dropped: %s); `bedplate data funnel` says "
                    "by which rules",
                    source, left, total.documents, rules or "copies",
                )  # fmt: skip
            return None
        if not total.documents:
            return f"source {source!r} holds no document; give another path, or take the source out"
        losses = [
            f"{rule} {sum(reasons.values())} ({', '.join(f'{k} {n}' for k, n in sorted(reasons.items()))})"
            for rule, reasons in sorted(total.dropped.items(), key=lambda rule: -sum(rule[1].values()))
        ]
        losses += [f"copies {total.kept}"] if total.kept else []
        losses += [
            f"the first, {shown['id']}: {shown['detail']}" for shown in next(iter(total.examples.values()), [])[:1]
        ]
        change = "its preset or the rules in the recipe (`rules: {NAME: null}` turns one off)"
        change = "how it is read" if set(total.dropped) == {UNREADABLE} else change
        return (
            f"source {source!r} has nothing left to train on: all {total.documents} documents were dropped: "
            f"{'; '.join(losses)}; change {change}, or take the source out"
        )

    def _encode(self) -> dict[str, list[dict[str, ShardEntry]]]:
        """By source, its groups' shards by split."""
        splits = [[self._sifted[p.name].content, sha256_bytes(self._splits[p.name].tobytes())] for p in self._parts]
        key = sha256_json([splits, self._values["tokenizer"], *self._tokenizer_identity(), _versions()])
        cut = self._values.get("cut")
        record = self._work / "tokenizer.json"
        if not record.is_file() or record.read_text("utf-8") != key or not (self._out / "tokenizer.json").is_file():
            trained = (
                part.array("sizes")[self._splits[name] == encode.TRAIN, 1] for name, part in self._sifted.items()
            )
            weight = sum(int(sizes.sum()) for sizes in trained)
            choice, chosen = self._recipe.tokenizer, [(part.name, self._splits[part.name]) for part in self._parts]
            with Progress("tokenizer", 1, "vocabulary", quiet=self._quiet):
                encode.make_tokenizer(choice, self._work, chosen, weight, self._directory).save(self._out)
            atomic_write(record, key)
        groups = self._groups()
        keys = {group.name: sha256_json([key, group.parts, *([cut] if cut else [])]) for group in groups}
        arguments = {"work": str(self._work), "out": str(self._out), "cut": cut}
        function = "bedplate.data.corpus.encode:encode"
        jobs = [
            Job(group.name, function, {**arguments, "group": asdict(group), "key": keys[group.name]})
            for group in groups
            if encode.encoded(self._work, self._out, group.name, keys[group.name]) is None
        ]
        sizes = {group.name: sum(self._sifted[p].tally.kept_bytes for p in group.parts) / 1e6 for group in groups}
        self._work_off(self._encoder, jobs, "encoding", sizes)
        entries_by_source: dict[str, list[dict[str, ShardEntry]]] = {}
        for group in groups:
            result = encode.encoded(self._work, self._out, group.name, keys[group.name])
            places = np.concatenate([self._splits[name] for name in group.parts])
            expected = {split: int((places == number).sum()) for number, split in enumerate(SPLITS)}
            shards, cuts = result or ({}, {})
            self._cuts |= cuts
            for name, at in ((name, at) for name, texts in cuts.items() for at in texts):
                expected[SPLITS[int(self._splits[name][at])]] += len(cuts[name][at]) - 1
            written = {split: shard.documents for split, shard in shards.items()}
            if not result or written != {split: count for split, count in expected.items() if count}:
                problem = f"{written} documents were encoded, but {expected} were to be"
                raise DataError(f"{group.name}: {problem}; build again")
            entries_by_source.setdefault(group.source, []).append(shards)
        return entries_by_source

    def _groups(self) -> list[encode.ShardGroup]:
        groups: list[encode.ShardGroup] = []
        for source in dict.fromkeys(part.source for part in self._parts):
            names, size, number = list[str](), 0.0, 0
            for part in self._parts:
                if part.source != source or (self._splits[part.name] == encode.COPY).all():
                    continue
                weight = self._sifted[part.name].tally.kept_bytes / BYTES_PER_TOKEN
                if names and size + weight > self._recipe.shard_tokens:
                    groups.append(encode.ShardGroup(source, number, tuple(names)))
                    names, size, number = [], 0.0, number + 1
                names.append(part.name)
                size += weight
            if names:
                groups.append(encode.ShardGroup(source, number, tuple(names)))
        return groups

    def _write_records(
        self,
        entries: Mapping[str, Sequence[Mapping[str, ShardEntry]]],
        fate: NDArray[np.int8],
        of: NDArray[np.int64],
        build_key: str,
    ) -> Corpus:
        """Fates, funnel, card, recipe, and last the manifest, which makes the directory a corpus."""
        out, recipe = self._out, self._recipe
        self._remove_others([shard.file for groups in entries.values() for group in groups for shard in group.values()])
        tallies = self._write_fates(fate, of)
        content = [self._values, [[part.name, self._sifted[part.name].content] for part in self._parts]]
        manifest = CorpusManifest.of(sha256_json(content), Tokenizer.from_directory(out), recipe.sources, entries)
        funnel = funnel_of(recipe, tallies, manifest)
        record = {"asked": build_key, "versions": _versions()}
        atomic_write(out / "funnel.json", json.dumps(funnel, ensure_ascii=False, indent=1) + "\n")
        atomic_write(out / "recipe.yaml", dump_config(recipe))
        atomic_write(out / "card.md", card(recipe, funnel, manifest))
        atomic_write(out / RECORD, json.dumps(record, indent=1) + "\n")
        atomic_write(out / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
        return Corpus.open(out)

    def _remove_others(self, files: Sequence[str]) -> None:
        """What builds of another recipe left in the directory is no part of this corpus. Nothing else is removed."""
        expected_files = {self._out / name for file in files for name in (file, file + INDEX)}
        expected_files |= {self._fates_file(part) for part in self._parts}
        for pattern in _OUTPUT_PATTERNS:
            for path in set(self._out.glob(pattern)) - expected_files:
                path.unlink()
        for layout in self._out.glob("rows/*/layout.json"):  # what training laid out of the shards before
            shutil.rmtree(layout.parent, ignore_errors=True)

    def _fates_file(self, part: SourcePart) -> Path:
        return self._out / "fates" / f"{part.name}.jsonl.gz"

    def _write_fates(self, fate: NDArray[np.int8], of: NDArray[np.int64]) -> dict[str, Tally]:
        """Writes every document's fate; what was counted, by source, copies among it."""
        kept_ids = (kept.id for p in self._parts for kept in self._sifted[p.name].fates() if kept.rule is None)
        named = set(of[fate != 0].tolist())  # only what others are copies of
        ids = {place: id for place, id in enumerate(kept_ids) if place in named}
        tallies: dict[str, Tally] = {}
        at = 0
        for part in self._parts:
            sifted, splits = self._sifted[part.name], self._splits[part.name]
            tally, sizes, written = sifted.tally, sifted.array("sizes"), list[Fate]()
            cuts = self._cuts.get(part.name, {})
            places = iter(range(len(sizes)))
            for document_fate in sifted.fates():
                if document_fate.rule is not None:
                    written.append(document_fate)
                    continue
                offset = next(places)
                if splits[offset] != encode.COPY:
                    pieces = cuts.get(offset, ())
                    tally.cut(len(pieces))
                    written.append(replace(document_fate, split=SPLITS[int(splits[offset])], pieces=pieces))
                    continue
                rule = "exact_duplicate" if fate[at + offset] == EXACT else "near_duplicate"
                detail = f"copy: of {ids[int(of[at + offset])]}"
                tally.unkeep(int(sizes[offset, 0]), int(sizes[offset, 1]), document_fate.changed)
                tally.drop(rule, detail, int(sizes[offset, 1]), document_fate.id, "")
                written.append(replace(document_fate, rule=rule, detail=detail))
            at += len(sizes)
            tally.check(part.name)
            write_fates(self._fates_file(part), written)
            tallies.setdefault(part.source, Tally()).add(tally)
        return tallies


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
