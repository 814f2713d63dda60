"""A skin made again from what it recorded (data, splits, bases, parent, code), and compared with the one that is there.

Its rung is climbed in a new directory with the run's task file, seed and plan, after the rungs that it builds on. The
plan is taken over because how much is done depends on the time that was left then. Test is not opened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import safe_open

from bedplate.adaptation.context.clock import Clock
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungPlan
from bedplate.adaptation.rungs import chosen_rungs
from bedplate.adaptation.rungs.answers import predict_examples
from bedplate.adaptation.search.base_format import answer_as_recorded
from bedplate.adaptation.search.candidates import Candidate, candidates_of
from bedplate.adaptation.search.formats import in_weights
from bedplate.adaptation.search.rung_files import config_of, environment, read_plan, write_plan
from bedplate.adaptation.search.start import LOCK_FILE, begin, check_bases, check_output, climb_candidate, opened
from bedplate.adaptation.task.parent import Parent, read_parent
from bedplate.adaptation.task.spec import AdaptSpec
from bedplate.adaptation.task.task_file import load_adapt_task
from bedplate.core.errors import CheckpointError, DataError, HubError, UsageError
from bedplate.core.files import atomic_write, file_lock, read_text, sha256_file
from bedplate.core.progress import progress
from bedplate.evaluation.evaluated import PairedComparison, compare
from bedplate.evaluation.examples import TaskData, load_examples
from bedplate.evaluation.harness import Evaluation, evaluate_predictions
from bedplate.evaluation.leaks.seen_rows import made_in
from bedplate.evaluation.task import Task
from bedplate.inference.execution.plan import QUANTISED
from bedplate.inference.predict.loaded import load as load_skin
from bedplate.inference.predict.local import LocalModel
from bedplate.skins.catalog import Catalog
from bedplate.skins.files import read_identified, read_skin, skin_id
from bedplate.skins.manifest import EXTRAS, SKIN_FILE
from bedplate.skins.records import REPORT_FILE, RUN_FILE, SETTINGS_FILE, Run
from bedplate.skins.skin import BaseReference, Skin

REPRODUCTION_FILE = "reproduction.json"
Status = Literal["identical", "equivalent", "different", "not_possible"]


@dataclass(frozen=True)
class RecordedDifference:
    """Something that is not what it was. decides: the skin cannot be made from it again; what does not (the code, a
    library, how a base is held) may change numbers."""

    what: str
    was: str
    now: str
    decides: bool = True


@dataclass(frozen=True, eq=False)
class RecordedSkin:
    """A skin and how it was made. candidate: its name in its run (a rung, on which base); report: of that run, without
    its rows. settings: the task file as it was resolved, or one that was given in its place; anchor_file: the file that
    relative paths in it start from."""

    skin: Skin
    id: str
    candidate: str
    report: Mapping[str, Any]
    settings: Path
    anchor_file: Path
    run: Run | None

    @property
    def run_settings(self) -> Mapping[str, Any]:
        """seed, rungs, budget_seconds, exhaustive, environment."""
        return self.report["settings"]

    @property
    def estimate(self) -> float | None:
        """On valid, then."""
        rows = [row for row in self.report["rungs"] if row["rung"] == self.candidate and row["split"] == "valid"]
        return rows[0]["estimate"] if rows else None


@dataclass(frozen=True)
class Reproduction:
    """status: identical (every file, bit for bit); equivalent (numbers differ, and no answer on valid does); different;
    or not_possible. differences: what it was made from and is not what it was. comparison: the new skin minus the old
    one on valid, both as they are served now; None where a remote model answers. recorded: the old one's estimate, when
    it was made."""

    skin: str
    skin_id: str
    status: Status
    reason: str
    differences: tuple[RecordedDifference, ...] = ()
    notes: tuple[str, ...] = ()
    directory: str | None = None
    parts: tuple[FileDifference, ...] = ()
    rows: int = 0
    equal_answers: int = 0
    recorded: float | None = None
    estimate: float | None = None
    comparison: PairedComparison | None = None

    @property
    def reproduced(self) -> bool:
        return self.status in ("identical", "equivalent")

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"reproduced": self.reproduced}


def reproduce(directory: Path | str, out: Path | str, *, task_file: Path | None = None) -> Reproduction:
    """Make the skin in `directory` again in `out`, a new directory, and compare the two.

    task_file: the task, where the run's own directory is gone or its task file has moved. What was made from other data
    or on another base is not made again; the answer says what differs. The same call resumes where an interrupted one
    stopped. Raises UsageError where nothing says how the skin was made, SkinError, ConfigError.
    """
    out = Path(out)
    recorded = recorded_of(Path(directory), task_file)
    _check_place(out, recorded.id)
    task, spec = load_adapt_task(
        recorded.settings, rungs=recorded.run_settings["rungs"], anchor_file=recorded.anchor_file
    )
    try:
        reproduction = _Reproducer(recorded, task, spec, out).reproduce()
    except (DataError, HubError, CheckpointError) as error:  # of what it was made from
        reproduction = _not_possible(recorded, (), error.message)
    if (out / REPRODUCTION_FILE).is_file():
        atomic_write(out / REPRODUCTION_FILE, json.dumps(reproduction.to_json(), indent=1, allow_nan=False) + "\n")
    return reproduction


@dataclass
class _Reproducer:
    recorded: RecordedSkin
    task: Task
    spec: AdaptSpec
    out: Path
    differences: list[RecordedDifference] = field(default_factory=list[RecordedDifference])
    notes: list[str] = field(default_factory=list[str])

    def reproduce(self) -> Reproduction:
        recorded, task = self.recorded, self.task
        parent = parent_of(recorded, task)
        if isinstance(parent, RecordedDifference):
            return _not_possible(recorded, [parent])
        data = load_examples(task, None if parent is None else parent.assigned)
        self.differences += [*data_differences(recorded.skin, data), *code_differences(recorded)]
        if any(difference.decides for difference in self.differences):
            return _not_possible(recorded, self.differences)
        run_settings = recorded.run_settings
        clock = Clock(None)  # what was made is made again, however long that takes
        seed, exhaustive = run_settings["seed"], run_settings["exhaustive"]
        run = opened(task, self.spec, data, self.out, clock, seed=seed, exhaustive=exhaustive, parent=parent)
        with run as contexts:
            answer_as_recorded(contexts, recorded.report["lineage"]["bases"])
            self.differences += base_differences(recorded.report, contexts)
            if any(difference.decides for difference in self.differences):
                return _not_possible(recorded, self.differences)
            check_bases(contexts)
            with file_lock(self.out / LOCK_FILE):
                values = {"skin": recorded.skin.name, "skin_id": recorded.id, "status": "unfinished"}
                atomic_write(self.out / REPRODUCTION_FILE, json.dumps(values, indent=1) + "\n")
                begin(contexts, data, self.out, recorded.anchor_file)
                return self._climbed(candidates_of(contexts, chosen_rungs(self.spec)))

    def _climbed(self, candidates: Sequence[Candidate]) -> Reproduction:
        needed = _needed(self.recorded, candidates)
        for candidate in progress(needed, "making it again"):
            self._take_over_plan(candidate)
            outcome = climb_candidate(candidate)
            if outcome.result is None or outcome.result.skin is None:
                return _not_possible(
                    self.recorded, self.differences, f"{candidate.name} {outcome.status} this time: {outcome.reason}"
                )
        return self._compared(needed[-1])

    def _take_over_plan(self, candidate: Candidate) -> None:
        """Put the run's plan where the rung will look for its own."""
        config = config_of(candidate.context, candidate.rung)
        plan = self.recorded.report["lineage"]["skins"].get(candidate.name, {}).get("plan")
        if read_plan(candidate.directory, config) is not None:  # of an interrupted reproduction
            return
        if plan is None:
            self.notes.append(f"the plan of {candidate.name} was not recorded: how much is done was planned anew")
        else:
            write_plan(candidate.directory, config, RungPlan(plan))

    def _compared(self, candidate: Candidate) -> Reproduction:
        old, new = self.recorded.skin, self._reproduced_skin(candidate)
        parts, comparison, equal, rows = compare_skins(old, new), None, 0, 0
        estimate = candidate.climbed.result.evaluation.estimate
        if not old.is_remote:
            first, second = (_on_valid(candidate.context, skin) for skin in (old, new))
            comparison = compare(second, first, candidate.context.seed)
            pairs = zip(first.rows, second.rows, strict=True)
            equal, rows, estimate = sum(a.prediction == b.prediction for a, b in pairs), first.n, comparison.a
        records = tuple(self.differences), tuple(self.notes), str(new.directory)
        numbers = rows, equal, self.recorded.estimate, estimate, comparison
        return Reproduction(old.name, self.recorded.id, *judged(parts, equal, rows), *records, parts, *numbers)

    def _reproduced_skin(self, candidate: Candidate) -> Skin:
        """The new skin, in the format of quantised weights that the old one was judged in, where it was in one."""
        new, judged = read_skin(candidate.climbed.directory), self.recorded.skin.evaluated_with
        is_own = judged is None or judged.weights not in QUANTISED or judged == new.evaluated_with
        return new if is_own or judged is None else in_weights(candidate, judged)


def judged(parts: Sequence[FileDifference], equal: int, rows: int) -> tuple[Status, str]:
    """What the files and the answers on valid say together. rows: 0 where nobody was asked."""
    differing = [part for part in parts if not part.equal]
    if not differing:
        return "identical", "every file is the same, bit for bit"
    by = ("" if part.largest is None else f" by at most {part.largest:.3g}" for part in differing)
    summary = ", ".join(f"{part.name} differs{most}" for part, most in zip(differing, by, strict=True))
    answers = f"{equal} of {rows} answers on valid are the same" if rows else "nobody was asked"
    only_numbers = all(part.largest is not None for part in differing)
    return "equivalent" if only_numbers and equal == rows > 0 else "different", f"{summary}; {answers}"


def _check_place(out: Path, id_: str) -> None:
    """A run of `adapt` is no place: its rungs would be taken for the new ones."""
    marker = out / REPRODUCTION_FILE
    used = out.is_dir() and any(path.name != LOCK_FILE for path in out.iterdir())
    if used and (not marker.is_file() or json.loads(read_text(marker)).get("skin_id") != id_):
        problem = "holds something else than an earlier reproduction of this skin; choose a new directory"
        raise UsageError(f"{out} {problem}")
    check_output(out)


def _not_possible(
    recorded: RecordedSkin, differences: Sequence[RecordedDifference], reason: str | None = None
) -> Reproduction:
    if reason is None:
        named = ", ".join(difference.what for difference in differences if difference.decides)
        reason = f"it was made from something else than what is here: {named}"
    return Reproduction(
        recorded.skin.name, recorded.id, "not_possible", reason, tuple(differences), recorded=recorded.estimate
    )


def _needed(recorded: RecordedSkin, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidate, last, after those that it builds on: for a cascade its two skins, and the prompt of each base as
    it is. UsageError where the task has it no more."""
    by_name, name = {candidate.name: candidate for candidate in candidates}, recorded.candidate
    parts = by_name[name].rung.parts(recorded.report["details"][name]) if name in by_name else ()
    needed = {name, *parts}
    for missing in sorted(needed - by_name.keys()):
        raise UsageError(f"the task has no candidate {missing!r} any more; it has {', '.join(by_name)}")
    finished = {row["rung"] for row in recorded.report["rungs"] if row["status"] == "done"}
    places = {by_name[part].context.suffix for part in needed if by_name[part].traits.needs != "nothing"}
    for candidate in candidates:
        if candidate.traits.role == "baseline" and candidate.context.suffix in places and candidate.name in finished:
            needed.add(candidate.name)
    ordered = [candidate for candidate in candidates if candidate.name in needed]
    return sorted(ordered, key=lambda candidate: (candidate.name == name, candidate.traits.role != "baseline"))


def _on_valid(context: Context, skin: Skin) -> Evaluation:
    """A skin as read back from disk: on the base that is loaded, where it stands on that."""
    assert skin.directory is not None
    main = skin.bases.get("main")
    if skin.cascade is None and main is not None and main.has_weights_of(context.at.facts.identity):
        predictor = context.predictor(skin)
    else:
        predictor = load_skin(skin.directory)
    if isinstance(predictor, LocalModel):
        raise UsageError(f"{skin.directory} is a base and no skin")
    with closing(predictor):
        predictions = predict_examples(predictor, context.valid)
    return evaluate_predictions(context.task, context.valid, predictions, seed=context.seed)


# --- what was recorded, against what is here


def recorded_of(directory: Path, task_file: Path | None) -> RecordedSkin:
    """Read what the skin in `directory` and its run recorded. task_file: in the place of the run's own. SkinError;
    UsageError where that is not enough to make it again."""
    id_, skin = read_identified(directory)
    path = directory / REPORT_FILE
    if not path.is_file():
        raise UsageError(
            f"{directory} has no {REPORT_FILE}, which says how it was made: it is not a skin of `bedplate adapt`, or "
            "that run was not finished; give the same command again to finish it"
        )
    report: dict[str, Any] = json.loads(read_text(path))
    skin_records: dict[str, Any] = report["lineage"]["skins"]
    candidate = next((name for name, record in skin_records.items() if record["skin_id"] == id_), None)
    if candidate is None:
        raise UsageError(f"{path} is not about this skin, which was changed after it was judged")
    place = made_in(directory, id_, skin)
    run = None if place is None else Run.read(place)
    if task_file is not None:
        return RecordedSkin(skin, id_, candidate, report, task_file, task_file, run)
    if place is None or run is None or not (place / SETTINGS_FILE).is_file():
        raise UsageError(
            f"the run that made {directory} is not there any more: no {RUN_FILE} is above it, nor where the catalogue "
            "knows that run; give the task file with --task"
        )
    return RecordedSkin(skin, id_, candidate, report, place / SETTINGS_FILE, Path(run.task_file), run)


def parent_of(recorded: RecordedSkin, task: Task) -> Parent | RecordedDifference | None:
    """The skin that it took over from; what differs where that is not there any more."""
    cascade = recorded.skin.cascade
    part_ids = set[str]() if cascade is None else {skin_id(cascade.first), skin_id(cascade.second)}
    named = [parent_id for parent_id in recorded.skin.provenance.parents if parent_id not in part_ids]
    if not named:
        return None
    places = [] if recorded.run is None or recorded.run.parent is None else [Path(recorded.run.parent)]
    with Catalog.open() as catalog:
        catalog_record = catalog.get(named[0])
    places += [] if catalog_record is None or catalog_record.path is None else [Path(catalog_record.path)]
    for place in (path for path in places if path.is_dir()):
        parent = read_parent(place, task)
        if parent.id == named[0]:
            return parent
    return RecordedDifference("the parent", named[0], "not there")


def data_differences(skin: Skin, data: TaskData) -> list[RecordedDifference]:
    """A file may have changed where no row of a split did."""
    origin = skin.provenance
    changes: list[RecordedDifference] = []
    for name, was in {**origin.data, **origin.splits}.items():
        if data.hashes.get(name) != was:
            is_split = name in origin.splits
            what = f"the {name} split" if is_split else f"the data {name.removeprefix('file:')}"
            changes.append(RecordedDifference(what, was, data.hashes.get(name, "not there"), is_split))
    return changes


def base_differences(report: Mapping[str, Any], contexts: Sequence[Context]) -> list[RecordedDifference]:
    """The task's bases as they were judged against those that are here now."""
    before = report["lineage"]["bases"]
    if len(before) != len(contexts):
        names = ", ".join(context.at.base_name for context in contexts)
        return [RecordedDifference("the task's bases", ", ".join(was["name"] for was in before), names)]
    changes: list[RecordedDifference] = []
    for was, context in zip(before, contexts, strict=True):
        facts, name = context.at.facts, f"the base {was['name']}"
        identity = {key: getattr(facts.identity, key) for key in ("weights_id", "tokenizer_id", "template_id")}
        execution = {key: getattr(facts, key) for key in ("dtype", "weights", "kernel")}
        changes += _changed(was, identity, f"{name}: ", decides=True) + _changed(was, execution, f"{name}, as held: ")
    return changes


def code_differences(recorded: RecordedSkin) -> list[RecordedDifference]:
    """Versions of the code, of libraries, and of the machine."""
    was: Mapping[str, str] = recorded.run_settings.get("environment") or {"bedplate": recorded.run_settings["version"]}
    versions = environment()
    return _changed(was, {key: versions.get(key, "not there") for key in was})


def _changed(
    was: Mapping[str, str], current: Mapping[str, str], prefix: str = "", *, decides: bool = False
) -> list[RecordedDifference]:
    return [
        RecordedDifference(f"{prefix}{key}", was[key], value, decides)
        for key, value in current.items()
        if was[key] != value
    ]


_IGNORED_KEYS = {
    SKIN_FILE: ("files", "provenance", "bases", "cascade.first", "cascade.second"),
    "adapter_config.json": ("base_model_name_or_path",),
}
"""The fields of JSON files in which two skins that do the same may differ: hashes are compared file by file,
bases by their ids, and where a base lies is no part of what a skin does."""


@dataclass(frozen=True)
class FileDifference:
    """One file of both skins, or the weights of a base. largest: the largest difference of a number, where nothing but
    numbers differs; None where they cannot be set against each other."""

    name: str
    equal: bool
    largest: float | None = None


def compare_skins(old: Skin, new: Skin) -> tuple[FileDifference, ...]:
    """Every file of two skins that were read from disk, their reports apart, and the bases that they stand on."""
    assert old.directory is not None
    assert new.directory is not None
    places = (old.directory, new.directory)
    names = {p.relative_to(place).as_posix() for place in places for p in place.rglob("*") if p.is_file()}
    parts = [compare_files(name, old.directory / name, new.directory / name) for name in sorted(names - set(EXTRAS))]
    for role in sorted(old.bases.keys() | new.bases.keys()):
        parts += _bases(role, old.bases.get(role), new.bases.get(role))
    return tuple(parts)


def compare_files(name: str, old: Path, new: Path) -> FileDifference:
    if not old.is_file() or not new.is_file():
        return FileDifference(f"{name} (only one has it)", False)
    if sha256_file(old) == sha256_file(new):
        return FileDifference(name, True, 0.0)
    if name.endswith(".safetensors"):
        return FileDifference(name, False, _of_tensors(old, new))
    if name.endswith(".json"):
        return _of_json(name, old, new)
    return FileDifference(name, False)


def _bases(role: str, old: Any, new: Any) -> list[FileDifference]:
    if not isinstance(old, BaseReference) or not isinstance(new, BaseReference):
        return [FileDifference(f"the {role} base", old == new)]
    identity_keys = ("family", "tokenizer_id", "template_id")
    if any(getattr(old, key) != getattr(new, key) for key in identity_keys):
        return [FileDifference(f"the {role} base", False)]
    if old.weights_id == new.weights_id:
        return [FileDifference(f"the {role} base", True, 0.0)]
    a, b = Path(old.name), Path(new.name)
    names = sorted({p.name for place in (a, b) if place.is_dir() for p in place.glob("*.safetensors")})
    parts = [compare_files(name, a / name, b / name) for name in names]
    return [FileDifference(f"the {role} base: {part.name}", part.equal, part.largest) for part in parts] or [
        FileDifference(f"the {role} base", False)
    ]


def _of_tensors(old: Path, new: Path) -> float | None:
    """None where their tensors have other names or shapes, or hold what is no number."""
    largest = 0.0
    with safe_open(old, "pt") as a, safe_open(new, "pt") as b:
        if set(a.keys()) != set(b.keys()):
            return None
        for name in a.keys():  # noqa: SIM118 (a file, no mapping)
            before, after = cast("torch.Tensor", a.get_tensor(name)), cast("torch.Tensor", b.get_tensor(name))
            if before.shape != after.shape:
                return None
            if before.numel():
                largest = max(largest, float((before.double() - after.double()).abs().nan_to_num(math.inf).max()))
    return largest if math.isfinite(largest) else None


def _of_json(name: str, old: Path, new: Path) -> FileDifference:
    ignored_keys = _IGNORED_KEYS.get(Path(name).name, ())
    a, b = (dict(_leaves(json.loads(path.read_bytes()))) for path in (old, new))
    under = tuple(f"{key}." for key in ignored_keys)
    a, b = ({key: v for key, v in leaves.items() if not f"{key}.".startswith(under)} for leaves in (a, b))
    if a == b:
        return FileDifference(name, True, 0.0)
    if a.keys() != b.keys():
        return FileDifference(name, False)
    differ = [(a[key], b[key]) for key in a if a[key] != b[key]]
    if not all(isinstance(old_value, float) and isinstance(new_value, float) for old_value, new_value in differ):
        return FileDifference(name, False)
    return FileDifference(name, False, max(abs(old_value - new_value) for old_value, new_value in differ))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in cast("dict[str, Any]", value).items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for number, inner in enumerate(cast("list[Any]", value)):
            yield from _leaves(inner, f"{path}.{number}")
    else:
        yield path, value
