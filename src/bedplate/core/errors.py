"""The error tree. Every message says what was wrong, where, and what to do.

`exit_code` is what the command line exits with, `status` the HTTP status, `code` the machine-readable name.
"""

from __future__ import annotations


class BedplateError(Exception):
    """Base of every error that Bedplate raises on purpose."""

    exit_code: int = 1
    status: int = 500
    code: str = "internal_error"

    def __init_subclass__(
        cls, *, exit_code: int | None = None, status: int | None = None, code: str | None = None
    ) -> None:
        """What is not given is the parent's."""
        super().__init_subclass__()
        cls.exit_code = cls.exit_code if exit_code is None else exit_code
        cls.status = cls.status if status is None else status
        cls.code = cls.code if code is None else code

    @property
    def message(self) -> str:
        return str(self)


class UsageError(BedplateError, exit_code=2, status=400, code="usage_error"):
    """A call or a command line that cannot be carried out as asked."""


class ConfigError(BedplateError, exit_code=2, status=400, code="invalid_config"):
    """A task, run or config file that does not validate."""


class DataError(BedplateError, status=400, code="invalid_data"):
    """Rows, encodings, labels or splits that cannot be used."""


class UnknownDataError(DataError, exit_code=2):
    """A file or a column of data is named that is not there."""


class HubError(BedplateError, code="hub_error"):
    """An item could not be pulled."""


class UnknownItemError(HubError, exit_code=2, status=404, code="unknown_item"):
    """No catalogue item, file or directory has this name."""


class UnreachableError(HubError, status=503, code="unreachable"):
    """The package index or the hub cannot be reached."""


class LicenceError(HubError, exit_code=2, status=403, code="licence_not_accepted"):
    """The item's licence must be accepted before it is pulled."""


class HashMismatchError(HubError, code="hash_mismatch"):
    """What arrived does not have the pinned sha256."""


class CheckpointError(BedplateError, code="invalid_checkpoint"):
    """A checkpoint's files are missing, truncated or inconsistent."""


class UnsupportedModelError(CheckpointError, code="unsupported_model"):
    """An architecture, or a field of its config, that no family can express."""


class TokenizerError(BedplateError, code="invalid_tokenizer"):
    """A tokenizer's files or vocabulary cannot be used."""


class TemplateError(TokenizerError, status=400, code="invalid_template"):
    """A chat or prompt template failed, or went over its caps."""


class SkinError(BedplateError, status=400, code="invalid_skin"):
    """A skin's files do not verify, or the base is not the skin's own."""


class TrainingError(BedplateError, code="training_error"):
    """A training run cannot start, go on or resume."""


class RankError(TrainingError):
    """Another process of the run has ended. reported: whether it has told this one why, and so says it itself."""

    def __init__(self, message: str, reported: bool = False) -> None:
        super().__init__(message)
        self.reported = reported


class RequestError(BedplateError, exit_code=2, status=400, code="invalid_request"):
    """One inference request is wrong; no other request is affected."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        if code is not None:
            self.code = code
        self.row: int | None = None
        """Which one of several rows is wrong."""

    def __str__(self) -> str:
        return super().__str__() if self.row is None else f"rows[{self.row}]: {super().__str__()}"


class ContextLengthExceeded(RequestError, code="context_length_exceeded"):
    """Prompt plus requested output do not fit the model's context."""


class UnknownModelError(RequestError, status=404, code="model_not_found"):
    """No model or skin of this name is being served."""


class NotFiniteError(BedplateError, code="not_finite"):
    """One request's numbers became infinite or NaN; no other request is affected."""


class DeadlineError(BedplateError, status=504, code="deadline_exceeded"):
    """A request did not end before its deadline."""


class BusyError(BedplateError, status=429, code="queue_full"):
    """The queue is full."""


class EndpointError(BedplateError, code="endpoint_error"):
    """A server of remote models was not reached, refused the key, failed, or broke off. `status`: its own, or 502."""

    def __init__(self, message: str, *, status: int = 502) -> None:
        super().__init__(message)
        self.status = status


def need_failure(error: BaseException) -> None:
    """Raises `error` again where it is a wish to end (Ctrl-C, an exit, a cancelled task) and no failure of the work.

    A panic of a library written in Rust is a failure, although pyo3's PanicException is no Exception. Each such library
    has a class of its own for it, in no module that could be imported.
    """
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def is_interrupt(error: BaseException) -> bool:
    """Whether Ctrl-C is behind `error`: pydantic, for one, turns a KeyboardInterrupt in what it calls into its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__
    return cause is not None
