"""Single calls of candidates timed once more before test is opened: nominees, and what only a call's time keeps out.

What else the machine does only adds to a call, so the quicker of the two readings stands. It is kept on disk, and a
repeated command takes it from there.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from bedplate.adaptation.context.outcome import Latency, RungResult, latency
from bedplate.adaptation.rungs.answers import single_calls
from bedplate.adaptation.search.candidates import Candidate
from bedplate.adaptation.search.fingerprint import config_of
from bedplate.core.errors import DataError
from bedplate.core.files import atomic_write, read_text, sha256_json
from bedplate.core.processor import load_average
from bedplate.inference.predict.composed import SkinPredictor
from bedplate.inference.predict.predictor import Predictor


def retimed(candidate: Candidate, result: RungResult) -> RungResult:
    """The result with the quicker of its own latency and that of the same calls now."""
    path = _file(candidate)
    key = sha256_json([config_of(candidate.context, candidate.rung), result.skin_id])
    new_latency = _saved_latency(path, key)
    if new_latency is None:
        new_latency = _timed(candidate, result)
        if new_latency is None:
            return result
        values = {"key": key, "latency": vars(new_latency), "load": load_average()}
        atomic_write(path, json.dumps(values, indent=1) + "\n")
    if new_latency.p95 >= result.latency.p95 and new_latency.mean >= result.latency.mean:
        return result
    return replace(result, latency=min(new_latency, result.latency, key=lambda measured: (measured.p95, measured.mean)))


def _timed(candidate: Candidate, result: RungResult) -> Latency | None:
    """None for what does not run on this machine, and for a cascade, whose parts are timed."""
    predictor = candidate.rung.predictor(candidate.context, candidate.rung_result(result))
    if not isinstance(predictor, Predictor):
        if isinstance(predictor, SkinPredictor):
            predictor.close()
        return None
    context = candidate.context
    with closing(predictor):
        calls = single_calls(predictor, context.ordered(context.valid, "latency")[: context.latency_calls], "again")
    return latency([call.seconds for call in calls]) if calls else None


def _saved_latency(path: Path, key: str) -> Latency | None:
    if not path.is_file():
        return None
    try:
        values = json.loads(read_text(path))
        return Latency(**values["latency"]) if values["key"] == key else None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it to time these calls again") from error


def _file(candidate: Candidate) -> Path:
    return candidate.context.out / "latency" / f"{candidate.rung.name}.json"
