"""What an adaptation ladder measured and decided, read from its report.json (docs/report-json.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bedplate.core.errors import ConfigError, DataError
from bedplate.core.files import read_text
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.economics.costs.decisions.case import How, LadderEvidence
from bedplate.economics.numbers.quantities import Amount, Share


@dataclass(frozen=True)
class MeasuredRung:
    """One rung on one split. quality: of a nominee on test what is expected of it, down to the verdict's own bound
    where that bounds quality; else the estimate with its interval. seconds_per_call: of single calls on the machine of
    the report, None where its price was 0 (the report has dollars only). verdict_notes: what the verdict says of it; doubts: why
    that is no PASS. how: as its skin was made, and whether that looks passages up; None where the report does not say.
    """

    source: str
    quality: Share
    p95_ms: Amount | None
    seconds_per_call: float | None
    train_seconds: float | None
    verdict_notes: tuple[str, ...]
    doubts: tuple[str, ...]
    how: How | None = None
    retrieves: bool = False


def read_evidence(evidence: LadderEvidence, path: Path, needed_by: str) -> MeasuredRung:
    """The rung's row, with the verdict. ConfigError for a file that is no report, a rung that is not there, skipped or
    failed, and for a verdict that is not PASS, is exploratory, or whose guards or requirements of the rung do not hold,
    unless the option says why it is used `despite` that."""
    report = _read(path, needed_by)
    rows = [row for row in _list(report.get("rungs")) if isinstance(row, Mapping)]
    named = [row for row in rows if row.get("rung") == evidence.rung]
    place = f"{needed_by}: {path}"
    target = report.get("target")
    if isinstance(target, Mapping) and target.get("lower_is_better"):
        raise ConfigError(
            f"{place}: the report's estimates are US dollars of a call, not shares of right answers; state the "
            "option's own quality and p95_ms without `report`"
        )
    if not named:
        names = list(dict.fromkeys(str(row.get("rung")) for row in rows))
        hint = did_you_mean(nearest(evidence.rung, names)) or f"it has {', '.join(names) or 'none'}"
        raise ConfigError(f"{place}: there is no rung {evidence.rung!r}; {hint}")
    undone = next((row for row in named if row.get("status") != "done"), None)
    if undone is not None:
        reason = undone.get("reason") or "no reason given"
        raise ConfigError(f"{place}: the rung {evidence.rung!r} was {undone.get('status')} ({reason}); choose another")
    by_split = {row.get("split"): row for row in named}
    split = evidence.split or ("test" if "test" in by_split else "valid")
    if split not in by_split:
        raise ConfigError(
            f"{place}: the rung {evidence.rung!r} was estimated on {', '.join(map(str, by_split))} only, not on {split}"
        )
    row = by_split[split]
    machine = report.get("machine")
    rate = machine.get("usd_per_hour") if isinstance(machine, Mapping) else None
    per_thousand = _number(row, "usd_per_1k_calls", place)
    seconds = None if per_thousand is None or not rate else per_thousand * 3.6 / float(rate)
    source = f"{path.name}, {evidence.rung} on {split}"
    doubts = _doubts(report, evidence.rung, place)
    if doubts and evidence.despite is None:
        raise ConfigError(
            f"{place}: {'; '.join(doubts)}. Take a rung that passed, state the option's own quality and p95_ms without "
            "`report`, or say under report.despite why it is used all the same"
        )
    confirmed = _confirmed(report, evidence.rung) if split == "test" else None
    if doubts:
        doubts = (*doubts, f"used all the same: {evidence.despite}")
    return MeasuredRung(
        source=source,
        quality=_quality(row, confirmed, _compares(report), place),
        p95_ms=_p95(row, place),
        seconds_per_call=seconds or None,
        train_seconds=_number(row, "train_seconds", place),
        verdict_notes=_verdict_notes(report, evidence.rung, split, confirmed, source, place),
        doubts=doubts,
        how=_how(report, evidence.rung),
        retrieves="retrieval" in _skin_parts(report, evidence.rung),
    )


def _skin_records(report: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """What a report says of the skins that its rungs made; nothing in one from before it did."""
    lineage = report.get("lineage")
    skins = lineage.get("skins") if isinstance(lineage, Mapping) else None
    return cast("Mapping[str, Mapping[str, Any]]", skins) if isinstance(skins, Mapping) else {}


def _skin_parts(report: Mapping[str, Any], rung: str) -> list[str]:
    """The parts of the rung's skin, as its kind names them."""
    return str(_skin_records(report).get(rung, {}).get("kind", "")).split("+")


def _how(report: Mapping[str, Any], rung: str) -> How | None:
    """Tuned is what has weights of its own, or stands on a base that was made for the task, or is made of such."""
    skins, parts = _skin_records(report), _skin_parts(report, rung)
    if rung not in skins:
        return None
    if "classical" in parts:
        return "classical"
    if "cascade" in parts:
        parents = [_how(report, name) for name, skin in skins.items() if skin.get("skin_id") in skins[rung]["parents"]]
        return "tuned" if "tuned" in parents else "prompted"
    named = {base.get("weights_id") for base in _list(report["lineage"].get("bases"))}
    child = "hosted" not in parts and skins[rung].get("bases", {}).get("main") not in named
    return "tuned" if child or {"lora", "soft_prompt", "probe"} & set(parts) else "prompted"


def _verdict(report: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    verdict = report.get("verdict")
    if not isinstance(verdict, Mapping) or "status" not in verdict:
        raise ConfigError(f"{place}: the report has no `verdict`; give a report.json that a finished ladder wrote")
    return cast("Mapping[str, Any]", verdict)


def _doubts(report: Mapping[str, Any], rung: str, place: str) -> tuple[str, ...]:
    """Why the report's verdict is no PASS that this rung can be used by."""
    verdict, doubts = _verdict(report, place), list[str]()
    if verdict["status"] != "PASS":
        doubts.append(f"the report's verdict is {verdict['status']}: {verdict.get('reason') or 'no reason is given'}")
    elif verdict.get("exploratory"):
        doubts.append("the report's PASS is exploratory: its test rows had served an earlier verdict")
    conditions = [(f"the {guard.get('guard')} guard of {rung}", guard) for guard in _of_rung(report, "guards", rung)]
    conditions += [(f"a requirement of {rung}", requirement) for requirement in _of_rung(report, "requirements", rung)]
    for name, condition in conditions:
        if condition.get("holds") is not True:
            how = "is broken" if condition.get("holds") is False else "is undecided"
            doubts.append(f"{name} {how}: {condition.get('reason')}")
    return tuple(doubts)


def _of_rung(report: Mapping[str, Any], part: str, rung: str) -> Sequence[Any]:
    by_rung = report.get(part)
    return _list(by_rung.get(rung)) if isinstance(by_rung, Mapping) else []


def _confirmed(report: Mapping[str, Any], rung: str) -> Mapping[str, Any] | None:
    """What was confirmed of a nominee on test."""
    nominees = report.get("nominees")
    confirmations = _list(nominees.get("confirmations")) if isinstance(nominees, Mapping) else []
    return next((confirmation for confirmation in confirmations if confirmation.get("rung") == rung), None)


def _verdict_notes(
    report: Mapping[str, Any], rung: str, split: str, confirmed: Mapping[str, Any] | None, source: str, place: str
) -> tuple[str, ...]:
    """What the verdict says of the rung, as sentences without their full stop."""
    verdict = _verdict(report, place)
    if split == "valid":
        return (f"its quality is an estimate on rows that choices were made on ({source})",)
    if confirmed is None:
        return (
            f"its quality is an estimate with its interval: it was no nominee, so that no verdict bounds it ({source})",
        )
    lower = _number(confirmed, "lower", place)
    if lower is None:
        return (f"no bound of its quality could be made ({source}): {confirmed.get('reason')}",)
    verdict_rung = verdict.get("rung")
    passed = verdict["status"] == "PASS" and (verdict_rung == rung or confirmed.get("passed") is True)
    outcome = (
        "PASS"
        if passed
        else f"{verdict['status']}{'' if verdict_rung in (None, rung) else f' of {verdict_rung}'}, not of {rung}"
    )
    if _compares(report):
        system = report["target"].get("against")
        return (
            f"the verdict of its report is {outcome}, by a comparison with {system}, which bounds the difference alone: "
            f"its quality is an estimate with its interval ({source})",
        )
    level = _number(confirmed, "lower_confidence", place) or 0.0
    return (
        f"the verdict of its report is {outcome}: quality at least {lower:.3f} with {level:.1%} confidence ({source})",
    )


def _compares(report: Mapping[str, Any]) -> bool:
    """Whether the bar is what the target is against, so that the bounds are those of a difference."""
    target = report.get("target")
    return isinstance(target, Mapping) and target.get("value_given") is False


def _read(path: Path, needed_by: str) -> Mapping[str, Any]:
    try:
        report = json.loads(read_text(path))
    except DataError as error:
        raise ConfigError(f"{needed_by}: {error}") from error
    except ValueError as error:
        raise ConfigError(f"{needed_by}: {path} is not JSON ({error}); give a ladder's report.json") from None
    if not isinstance(report, dict) or "rungs" not in report:
        raise ConfigError(f"{needed_by}: {path} is not a ladder's report: it has no `rungs`")
    return cast("dict[str, Any]", report)


def _list(value: Any) -> Sequence[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _number(row: Mapping[str, Any], key: str, place: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ConfigError(f"{place}: {key} is {value!r}; a number from 0 on is wanted")
    return float(value)


def _p95(row: Mapping[str, Any], place: str) -> Amount | None:
    """With the verdict's bounds of it, where there are any."""
    value = _number(row, "p95_ms", place)
    if not value:
        return None
    bounds = _list(row.get("p95_bounds_ms")) or [None, None]
    valid_bounds = [end for end in bounds if isinstance(end, int | float) and end > 0]
    return Amount(value=value, low=min(value, *valid_bounds, value), high=max(value, *valid_bounds, value))


def _quality(row: Mapping[str, Any], confirmed: Mapping[str, Any] | None, compares: bool, place: str) -> Share:
    estimate, interval = _number(row, "estimate", place), _list(row.get("interval"))
    if estimate is None or len(interval) != 2:
        raise ConfigError(f"{place}: the rung has no estimate with an interval")
    try:
        low, high = float(interval[0]), float(interval[1])
        lower = None if confirmed is None else _number(confirmed, "lower", place)
        if confirmed is not None and lower is not None:  # what passed reads high: `expected` does not
            expected = _number(confirmed, "expected", place)
            estimate = estimate if expected is None else expected
            low, high = min(low if compares else lower, estimate), max(high, estimate)
        return Share(value=estimate, low=low, high=high)
    except (TypeError, ValueError):
        raise ConfigError(f"{place}: estimate {estimate!r} with interval {interval!r} is not a share of 1") from None
