"""A file of rows → a file of predictions, in memory that does not grow with the rows, going on where it was killed.

Rows are JSON lines. While it runs, the predictions grow in `OUT.partial`, beside the `OUT.partial.json` that says
which run they belong to; a finished run renames them to `OUT`. Batches are cut by position, so a run that was resumed
writes the same bytes as one that was not.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from bedplate.core.errors import BedplateError, DataError, RequestError, SkinError, TemplateError, UsageError
from bedplate.core.files import atomic_write, sha256_json
from bedplate.core.json import load_json
from bedplate.inference.engine.requests import Request, Terms
from bedplate.inference.predict.composed import Answers
from bedplate.inference.predict.predictor import Prediction, Predictor
from bedplate.models.precision import dtype_name
from bedplate.skins.files import skin_id

_OF_A_ROW = (RequestError, TemplateError, SkinError)
"""What one row can be at fault for, whatever answers; other failures end the run, which can go on later."""


@dataclass(frozen=True)
class InputRow:
    """One line of the input, counted from 1."""

    line: int
    value: dict[str, Any]


@dataclass
class Counts:
    """`rows` written in all, `failed` of them with an error, `resumed` of them by an earlier run."""

    rows: int = 0
    failed: int = 0
    resumed: int = 0


def read_rows(lines: Iterable[bytes], source: str) -> Iterator[InputRow]:
    """The rows of JSON lines as they come; blank lines are skipped. Raises DataError naming the line."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            value = load_json(line)
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 at byte {error.start} of the line; save the file as UTF-8") from error
        except ValueError as error:
            raise DataError(f"{where}: not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise DataError(f"{where}: each line must be a JSON object, this one is {line.strip()[:40]!r}")
        yield InputRow(number, value)


def survey(path: Path) -> tuple[int, str]:
    """Number of rows and sha256 of the file, every line checked, so that a damaged file is told before any work."""
    digest = hashlib.sha256()

    def hashed(file: BinaryIO) -> Iterator[bytes]:
        for line in file:
            digest.update(line)
            yield line

    with _opened(path) as file:
        rows = sum(1 for _ in read_rows(hashed(file), str(path)))
    return rows, digest.hexdigest()


def predict_rows(predictor: Answers, rows: Iterable[InputRow], batch: int) -> Iterator[list[dict[str, Any]]]:
    """Batches of output rows: `id` if the row has one, `line`, then the prediction, or `error` for a row that cannot be
    predicted."""
    if batch < 1:
        raise UsageError(f"the batch is {batch} rows; it must be at least 1")
    source = iter(rows)
    while group := list(islice(source, batch)):
        # What earlier batches left in the cache would change last bits, and a resumed run has not seen them.
        answers = _answers(predictor, group, tenant=f"lines from {group[0].line}")
        yield [_head(predictor, row) | answer for row, answer in zip(group, answers, strict=True)]


def predict_file(
    predictor: Answers, source: Path, out: Path, *, batch: int, advance: Callable[[int], None] = lambda n: None
) -> Counts:
    """Predicts every row of `source` into `out`; call it again after a kill and it goes on.

    Raises DataError for a damaged input before anything is computed, UsageError where `out` exists or another run's
    partial output is in the way. `advance` is told the number of rows as they are written.
    """
    if out.exists():
        raise UsageError(f"{out} exists already; choose another name or remove it")
    _, digest = survey(source)
    run: dict[str, Any] = {"input_sha256": digest, "skin": skin_id(predictor.skin), "batch": batch}
    if isinstance(predictor, Predictor):
        run |= {
            "base": predictor.engine.base.identity.weights_id,
            "dtype": dtype_name(predictor.engine.base.dtype),
            "weights": predictor.engine.weights,
            "kernel": predictor.engine.kernel,
        }
    with _partial(out, run) as file:
        counts = _resume(file, batch)
        advance(counts.resumed)
        with _opened(source) as lines:
            rows = islice(read_rows(lines, str(source)), counts.resumed, None)
            for answers in predict_rows(predictor, rows, batch):
                with _writing(out):
                    file.write(b"".join(_line(answer) for answer in answers))
                    file.flush()
                    os.fsync(file.fileno())
                _count(counts, answers)
                advance(len(answers))
        _finish(out)
    return counts


def write_stream(
    predictor: Answers, lines: Iterable[bytes], source: str, write: Callable[[bytes], object], *, batch: int
) -> Counts:
    """Predicts rows as they come and writes them as they are done; nothing can be resumed."""
    counts = Counts()
    for answers in predict_rows(predictor, read_rows(lines, source), batch):
        write(b"".join(_line(answer) for answer in answers))
        _count(counts, answers)
    return counts


# --- rows


def _answers(predictor: Answers, group: list[InputRow], tenant: str) -> list[dict[str, Any]]:
    if isinstance(predictor, Predictor):
        return _on_engine(predictor, group, tenant)
    return _asked(predictor, group, tenant)


def _asked(predictor: Answers, group: list[InputRow], tenant: str) -> list[dict[str, Any]]:
    """Whatever is behind the skin; where one row cannot be answered, each is tried alone."""
    rows = [_inputs(predictor, row.value) for row in group]
    try:
        return [_success(one) for one in predictor.predict(rows, tenant=tenant)]
    except _OF_A_ROW:
        found: list[dict[str, Any]] = []
        for row in rows:
            try:
                found.append(_success(predictor.predict([row], tenant=tenant)[0]))
            except _OF_A_ROW as error:
                found.append(_failure(error))
        return found


def _on_engine(predictor: Predictor, group: list[InputRow], tenant: str) -> list[dict[str, Any]]:
    answers: dict[int, dict[str, Any]] = {}
    requests: dict[int, Request] = {}
    for i, row in enumerate(group):
        try:
            requests[i] = predictor.request(_inputs(predictor, row.value), terms=Terms(tenant))
        except BedplateError as error:
            answers[i] = _failure(error)
    try:
        predictions = predictor.ask(list(requests.values()), tenant=tenant) if requests else []
        answers |= {i: _success(prediction) for i, prediction in zip(requests, predictions, strict=True)}
    except BedplateError:
        # One row's error must not take its neighbours along: each is tried alone.
        for i, request in requests.items():
            try:
                answers[i] = _success(predictor.ask([request], tenant=tenant)[0])
            except BedplateError as error:
                answers[i] = _failure(error)
    return [answers[i] for i in range(len(group))]


def _inputs(predictor: Answers, value: dict[str, Any]) -> dict[str, Any]:
    """The row without its id; `text` stands for a skin's only input."""
    names = list(predictor.skin.inputs)
    found = {key: item for key, item in value.items() if key != "id" or key in names}
    if len(names) == 1 and set(found) == {"text"}:
        found = {names[0]: found["text"]}
    return found


def _head(predictor: Answers, row: InputRow) -> dict[str, Any]:
    named = "id" in row.value and "id" not in predictor.skin.inputs
    return ({"id": row.value["id"]} if named else {}) | {"line": row.line}


def _success(prediction: Prediction) -> dict[str, Any]:
    """Without times and cache hits, which differ from run to run."""
    scores = {"scores": dict(prediction.scores)} if prediction.scores else {}
    tokens = {"prompt_tokens": prediction.prompt_tokens, "completion_tokens": prediction.completion_tokens}
    passages = {"passages": list(prediction.passages)} if prediction.passages else {}
    passed_on = {"passed_on": True} if prediction.passed_on else {}
    usd = {} if prediction.usd is None else {"usd": prediction.usd}
    return {"output": prediction.output} | scores | tokens | passages | passed_on | usd


def _failure(error: BedplateError) -> dict[str, Any]:
    param = {"param": error.param} if isinstance(error, RequestError) and error.param else {}
    return {"error": {"message": error.message, "code": error.code} | param}


def _count(counts: Counts, answers: list[dict[str, Any]]) -> None:
    counts.rows += len(answers)
    counts.failed += sum("error" in answer for answer in answers)


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"


# --- files


@contextlib.contextmanager
def _opened(path: Path) -> Generator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    with file:
        yield file


@contextlib.contextmanager
def _writing(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}; choose another place") from error


@contextlib.contextmanager
def whole_file(out: Path) -> Generator[BinaryIO]:
    """A file to write, which gets its name at the end, or vanishes on any failure."""
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        file = draft.open("wb")
    try:
        with file:
            yield file
        with _writing(out):
            draft.rename(out)
    finally:
        draft.unlink(missing_ok=True)


def _rows_path(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _run_path(out: Path) -> Path:
    return out.with_name(out.name + ".partial.json")


@contextlib.contextmanager
def _partial(out: Path, run: dict[str, Any]) -> Generator[BinaryIO]:
    """The growing file, locked, and known to belong to this very run."""
    rows, header = _rows_path(out), _run_path(out)
    with _writing(rows):
        out.parent.mkdir(parents=True, exist_ok=True)
        file = rows.open("a+b")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"another process is predicting into {out}; wait for it, or choose another name"
            ) from error
        if file.seek(0, os.SEEK_END) == 0:
            atomic_write(header, json.dumps(run) + "\n")
        elif not _belongs(header, run):
            raise UsageError(
                f"{rows} is the unfinished output of another run (the input, the skin, the base, its dtype, its "
                "weights, the kernel or the batch differ); finish that run, or remove the file to start again"
            )
        yield file


def _belongs(header: Path, run: dict[str, Any]) -> bool:
    try:
        return sha256_json(json.loads(header.read_bytes())) == sha256_json(run)
    except (OSError, ValueError):
        return False


def _resume(file: BinaryIO, batch: int) -> Counts:
    """Counts of the whole batches there; a torn line and the rest of a torn batch are cut off."""
    counts, pending = Counts(), Counts()
    end = position = 0
    file.seek(0)
    for line in file:
        if not line.endswith(b"\n"):
            break
        position += len(line)
        _count(pending, [json.loads(line)])
        if pending.rows % batch == 0:
            counts.rows = counts.resumed = pending.rows
            counts.failed, end = pending.failed, position
    file.truncate(end)
    file.seek(end)
    return counts


def _finish(out: Path) -> None:
    with _writing(out):
        _rows_path(out).rename(out)
        _run_path(out).unlink(missing_ok=True)
