"""The server's file: what is served, where, and under which limits. `bedplate serve --config FILE` reads it."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from bedplate.core.config import Strict
from bedplate.core.errors import UsageError
from bedplate.core.files import bedplate_home
from bedplate.serving.settings.redaction import NAMED, Expression

JUDGED_WRONG = "\0"
"""What stands for the right answer of a call that a user called bad without saying what would have been right."""

Weight = Annotated[float, Field(ge=0)]


class RouteVerdict(Strict):
    """What a version, or the shadow, is to be shown to do: be right in `at_least` of its calls, or lose no more than
    `margin` of them `against` another version. wait_minutes: how long after an answer its outcome is waited for."""

    of: str
    at_least: Annotated[float, Field(gt=0, lt=1)] | None = None
    against: str | None = None
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.0
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    wait_minutes: float = 1440.0

    @model_validator(mode="after")
    def _one_question(self) -> RouteVerdict:
        if (self.at_least is None) == (self.against is None):
            raise ValueError("give either `at_least`, a share of right answers, or `against`, another version")
        if self.wait_minutes <= 0:
            raise ValueError("wait_minutes is not above 0: what users say of an answer comes after it; give their time")
        if self.against == self.of:
            raise ValueError(f"{self.of!r} cannot be held against itself")
        if self.margin and self.against is None:
            raise ValueError("`margin` goes with `against`")
        return self


class RouteConfig(Strict):
    """One name of the `routes` section.

    versions: model name → weight; weights are shares of their sum, and 0 parks a version. sticky: what keeps a caller
    on one version: its tenant, the `user` (or `safety_identifier`) that its request names, or nothing ("request": every
    call is drawn anew, and so is one that names no user). shadow: a model that gets a copy of `shadow_share` of the
    calls; its answers are compared and thrown away. verdict: what is to be shown of one of them.
    """

    versions: dict[str, Weight]
    sticky: Literal["request", "user", "tenant"] = "request"
    shadow: str | None = None
    shadow_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    verdict: RouteVerdict | None = None

    @model_validator(mode="after")
    def _check_versions(self) -> RouteConfig:
        verdict, stays = self.verdict, "a version without calls stays in the list with weight 0"
        if verdict is not None:
            if verdict.of not in (*self.versions, self.shadow):
                raise ValueError(
                    f"verdict.of: {verdict.of!r} is neither a version of the route nor its shadow; {stays}"
                )
            if verdict.against is not None and verdict.against not in self.versions:
                raise ValueError(f"verdict.against: {verdict.against!r} is no version of the route; {stays}")
        return self

    @field_validator("versions")
    @classmethod
    def _some_weight(cls, versions: dict[str, float]) -> dict[str, float]:
        if sum(versions.values()) <= 0:
            raise ValueError("no version has a weight above 0; give one to at least one of them")
        return versions


@dataclass(frozen=True)
class Routed:
    """A call that came by a route: the request as it was sent, and the version that answers it."""

    route: str
    version: str
    path: str
    body: Mapping[str, Any]


def unit_of(*keys: str) -> float:
    """A number from 0 (inclusive) to 1 (exclusive) that is the same for the same keys: sha256, its first 53 bits."""
    digest = hashlib.sha256("\0".join(keys).encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:8]) >> 11) / 2**53


def pick(versions: dict[str, float], unit: float) -> str:
    """The version in whose share of 0 to 1 the number lies; shares lie in the order of the file.

    So a weight that grows by a tenth moves a tenth of the keys, and nobody else's.
    """
    whole, upto = sum(versions.values()), 0.0
    for name, weight in versions.items():
        upto += weight
        if unit * whole < upto:
            return name
    return [name for name, weight in versions.items() if weight > 0][-1]  # the sum's last bit was rounded away


MAX_MODEL_NAME = 255
_NAME_RULE = (
    f"a model name has 1 to {MAX_MODEL_NAME} printable characters, no ':', and no part between '/' is empty or dots"
)


def need_model_name(name: str) -> None:
    """UsageError for what cannot be the name of a model or a route: it stands in requests, addresses and logs."""
    parts = name.split("/")
    if len(name) > MAX_MODEL_NAME or ":" in name or not name.isprintable() or any(p in ("", ".", "..") for p in parts):
        raise UsageError(f"{name[:80]!r} cannot be a model name: {_NAME_RULE}; give another")


BODY_LIMIT = 2 * 1024 * 1024
MAX_WAITING = 256


ALL_MODELS = "*"


class KeepRule(Strict):
    """For one model name. requests, replies: whether their texts are kept. sample: the share of calls whose texts are.
    redact: names of patterns, and expressions of one's own. days: after so many, whole days are deleted.

    With neither requests nor replies only ids are kept, so that feedback can be given.
    """

    requests: bool = False
    replies: bool = False
    sample: Annotated[float, Field(gt=0, le=1)] = 1.0
    redact: tuple[str | Expression, ...] = ()
    days: Annotated[int, Field(ge=1)] = 30

    @field_validator("redact")
    @classmethod
    def _check_patterns(cls, rules: tuple[str | Expression, ...]) -> tuple[str | Expression, ...]:
        for rule in rules:
            if isinstance(rule, str) and rule not in NAMED:
                names = ", ".join(NAMED)
                raise ValueError(f"no pattern is called {rule!r}; there are {names}, and {{name: …, pattern: …}}")
        return rules


class FeedbackConfig(Strict):
    """The `feedback` section: a rule by model name; the one called "*" is for every model without one of its own."""

    keep: dict[str, KeepRule] = Field(default_factory=dict[str, KeepRule])

    def rule(self, model: str) -> KeepRule | None:
        """None: nothing of this model's calls may be kept."""
        return self.keep.get(model, self.keep.get(ALL_MODELS))


class BaseConfig(Strict):
    """One resident base.

    name: its model name (default: its own). dtype: by default what the skins were judged with, or "auto". weights: the
    form in which its products read its weights, `kernel` what computes them; "auto" is what the skins were judged with,
    and without skins what was measured fastest on this machine of all that keep what the checkpoint stores (a GGUF's
    own 4-bit blocks among them). "fastest" weights: that, whatever the skins were judged with. speculate: guess tokens
    by prompt look-up; what is said does not depend on it. By default where the kernel makes it cheap.
    """

    source: str
    name: str | None = None
    dtype: str | None = None
    device: str = "auto"
    weights: Literal["auto", "fastest", "float32", "bfloat16", "int8", "int4"] = "auto"
    kernel: Literal["auto", "torch", "native"] = "auto"
    speculate: bool | None = None

    @model_validator(mode="after")
    def _one_choice(self) -> BaseConfig:
        if self.weights == "fastest" and self.kernel != "auto":
            raise ValueError("weights: fastest measures the kernels as well; leave kernel out, or name the weights")
        return self


class SkinConfig(Strict):
    """One skin: its directory, and the model name it is served under (default: the skin's own)."""

    source: Path
    name: str | None = None


class LimitsConfig(Strict):
    """What one server takes on. Bytes, counts and seconds.

    adapters: skins with weights that one base holds at once, and prompt_skins: those without; more may be registered,
    and come and go as they are asked for. prefix_bytes: what the skins' computed prompt beginnings may take.
    cache_bytes: what each engine keeps of other prompts' keys and values, and slot_bytes: what those of running
    requests may take, of which the youngest wait for room; by default what the memory allows (`engine_sizes`).
    """

    body_bytes: Annotated[int, Field(ge=1024)] = BODY_LIMIT
    max_rows: Annotated[int, Field(ge=1)] = 16
    max_waiting: Annotated[int, Field(ge=1)] = MAX_WAITING
    timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    adapters: Annotated[int, Field(ge=1)] = 32
    prompt_skins: Annotated[int, Field(ge=1)] = 512
    prefix_bytes: Annotated[int, Field(ge=0)] = 256 * 1024 * 1024
    cache_bytes: Annotated[int, Field(ge=0)] | None = None
    slot_bytes: Annotated[int, Field(ge=1)] | None = None
    url_bytes: Annotated[int, Field(ge=256)] = 8 * 1024
    header_bytes: Annotated[int, Field(ge=1024, le=128 * 1024)] = 32 * 1024


class BatchesConfig(Strict):
    """What files and batches may take: bytes of one file, and of all files and batches of a tenant; how many files it
    may keep, and how many of its batches may be pending, which have not ended; rows of one batch, and calls that
    batches have under way at once."""

    file_bytes: Annotated[int, Field(ge=1)] = 100 * 1024 * 1024
    tenant_bytes: Annotated[int, Field(ge=1)] = 1024 * 1024 * 1024
    files: Annotated[int, Field(ge=1)] = 10_000
    pending: Annotated[int, Field(ge=1)] = 100
    rows: Annotated[int, Field(ge=1)] = 50_000
    in_flight: Annotated[int, Field(ge=1)] = 4


class ResponsesConfig(Strict):
    """How much of /v1/responses is kept, in bytes of JSON: of one tenant, and of all. 0 keeps nothing."""

    bytes_per_tenant: Annotated[int, Field(ge=0)] = 16 * 1024 * 1024
    bytes_in_all: Annotated[int, Field(ge=0)] = 128 * 1024 * 1024

    @property
    def enabled(self) -> bool:
        return self.bytes_per_tenant > 0 and self.bytes_in_all > 0


def _day(value: object) -> object:
    """YAML reads a day without quotes as a date."""
    return value.isoformat() if isinstance(value, datetime.date) else value


class PriceConfig(Strict):
    """What an hour of this machine costs, and when that was true."""

    usd_per_hour: Annotated[float, Field(gt=0)]
    as_of: Annotated[str, BeforeValidator(_day)]


class LogsConfig(Strict):
    """How the access log is written. prompts: also what was asked, which is somebody's data."""

    format: Literal["text", "json"] = "text"
    prompts: bool = False


class TelemetryConfig(Strict):
    """Where OpenTelemetry spans go, over HTTP: the collector's address, as in http://127.0.0.1:4318/v1/traces."""

    endpoint: str
    service_name: str = "bedplate"


class MetricsConfig(Strict):
    """public: /metrics needs no admin key on a server with keys."""

    public: bool = False


class ServerConfig(Strict):
    """The whole file. The first base is the main one: skins of no other base are looked for on it. Without bases only
    skins are served that need none (classical ones).

    skins_directory: every skin below it is registered, and read when it is first asked for; /admin/skins takes skins
    from nowhere else. keys: the file of API keys; without one only this machine may ask, unless `open`. state: where
    batches, feedback and what keys spent are kept (default: serve/ in BEDPLATE_HOME). stall_seconds: how long one step
    of an engine may take before /health says so. cors: the origins whose pages may ask, as in https://app.example.
    """

    bases: tuple[BaseConfig, ...] = ()
    skins: tuple[SkinConfig, ...] = ()
    skins_directory: Path | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    grace_seconds: Annotated[float, Field(ge=0)] = 10.0
    allow_other_weights: bool = False
    limits: LimitsConfig = LimitsConfig()
    batches: BatchesConfig = BatchesConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    routes: dict[str, RouteConfig] = Field(default_factory=dict[str, RouteConfig])
    price: PriceConfig | None = None
    responses: ResponsesConfig = ResponsesConfig()
    keys: Path | None = None
    open: bool = False
    state: Path | None = None
    stall_seconds: Annotated[float, Field(gt=0)] = 60.0
    cors: tuple[str, ...] = ()
    logs: LogsConfig = LogsConfig()
    metrics: MetricsConfig = MetricsConfig()
    telemetry: TelemetryConfig | None = None


def state_directory(path: Path | None) -> Path:
    """Where a server keeps what must outlive it: the directory of its file, or the default one of this machine's."""
    return (path or bedplate_home() / "serve").expanduser().absolute()


FIELDS = "bedplate_fields"
"""The attribute under which a log record carries fields of its own."""


class JsonLines(logging.Formatter):
    """Every record as one JSON object: its fields, or its message."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = record.__dict__.get(FIELDS) or {"message": record.getMessage()}
        head = {"time": self.formatTime(record), "level": record.levelname.lower(), "logger": record.name}
        tail = {"exception": self.formatException(record.exc_info)} if record.exc_info else {}
        return json.dumps({**head, **fields, **tail}, default=str)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def write_logs(logs: LogsConfig) -> None:
    """Sets this process's logging up: bedplate's own from INFO on, of others what warns."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonLines() if logs.format == "json" else text)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("bedplate").setLevel(logging.INFO)
