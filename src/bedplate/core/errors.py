"""The error tree. Every message says what was wrong, where, and what to do.

    BedplateError
    ├── UsageError                  a call or a command line that cannot be carried out as asked
    ├── ConfigError                 a task, run or config file: unknown key, wrong value
    ├── DataError                   rows, encodings, labels, splits
    ├── HubError                    pulling an item
    │   ├── UnknownItemError        no such catalogue name or path
    │   ├── UnreachableError        the index or hub cannot be reached
    │   ├── LicenceError            a licence that must be accepted first
    │   └── HashMismatchError       what arrived is not what was pinned
    ├── CheckpointError             a checkpoint's files: missing, truncated, inconsistent
    │   └── UnsupportedModelError   an architecture or a field that no family can express
    ├── TokenizerError              a tokenizer's files or vocabulary
    │   └── TemplateError           a chat or prompt template
    ├── SkinError                   a skin's files, or a skin on a base that is not its own
    ├── TrainingError               a training run that cannot start, go on or resume
    ├── RequestError                one inference request; `param` and `code` go into the HTTP error object
    │   ├── ContextLengthExceeded   prompt plus output do not fit the context
    │   └── UnknownModelError       no such model or skin is being served
    ├── DeadlineError               a request that did not end in its time
    ├── BusyError                   the queue is full; try again later
    └── EndpointError               a remote model: not reached, refused, failed, or broke off

`exit_code` is what the command line exits with, `status` the HTTP status, `code` the machine-readable name.
"""

from __future__ import annotations


class BedplateError(Exception):
    """Base of every error that Bedplate raises on purpose."""

    exit_code: int = 1
    status: int = 500
    code: str = "internal_error"

    @property
    def message(self) -> str:
        return str(self)


class UsageError(BedplateError):
    """A call or a command line that cannot be carried out as asked."""

    exit_code = 2
    status = 400
    code = "usage_error"


class ConfigError(BedplateError):
    """A task, run or config file that does not validate."""

    exit_code = 2
    status = 400
    code = "invalid_config"


class DataError(BedplateError):
    """Rows, encodings, labels or splits that cannot be used."""

    status = 400
    code = "invalid_data"


class HubError(BedplateError):
    """An item could not be pulled."""

    code = "hub_error"


class UnknownItemError(HubError):
    """No catalogue item, file or directory has this name."""

    exit_code = 2
    status = 404
    code = "unknown_item"


class UnreachableError(HubError):
    """The package index or the hub cannot be reached."""

    status = 503
    code = "unreachable"


class LicenceError(HubError):
    """The item's licence must be accepted before it is pulled."""

    exit_code = 2
    status = 403
    code = "licence_not_accepted"


class HashMismatchError(HubError):
    """What arrived does not have the pinned sha256."""

    code = "hash_mismatch"


class CheckpointError(BedplateError):
    """A checkpoint's files are missing, truncated or inconsistent."""

    code = "invalid_checkpoint"


class UnsupportedModelError(CheckpointError):
    """An architecture, or a field of its config, that no family can express."""

    code = "unsupported_model"


class TokenizerError(BedplateError):
    """A tokenizer's files or vocabulary cannot be used."""

    code = "invalid_tokenizer"


class TemplateError(TokenizerError):
    """A chat or prompt template failed, or went over its caps."""

    status = 400
    code = "invalid_template"


class SkinError(BedplateError):
    """A skin's files do not verify, or the base is not the skin's own."""

    status = 400
    code = "invalid_skin"


class TrainingError(BedplateError):
    """A training run cannot start, go on or resume."""

    code = "training_error"


class RequestError(BedplateError):
    """One inference request is wrong; no other request is affected."""

    exit_code = 2
    status = 400
    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        if code is not None:
            self.code = code


class ContextLengthExceeded(RequestError):
    """Prompt plus requested output do not fit the model's context."""

    code = "context_length_exceeded"


class UnknownModelError(RequestError):
    """No model or skin of this name is being served."""

    status = 404
    code = "model_not_found"


class DeadlineError(BedplateError):
    """A request did not end before its deadline."""

    status = 504
    code = "deadline_exceeded"


class BusyError(BedplateError):
    """The queue is full."""

    status = 429
    code = "queue_full"


class EndpointError(BedplateError):
    """A server of remote models was not reached, refused the key, failed, or broke off. `status`: its own, or 502."""

    code = "endpoint_error"

    def __init__(self, message: str, *, status: int = 502) -> None:
        super().__init__(message)
        self.status = status


def is_interrupt(error: BaseException) -> bool:
    """Whether Ctrl-C is behind `error`: pydantic, for one, turns a KeyboardInterrupt in what it calls into its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__
    return cause is not None
