"""What a run keeps for the same command again: of each rung in its own directory its plan, what a limit left out and
its result, and what these depend on. Where none of it has changed, what an earlier run did is reused."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import ExportCheck, Latency, RungPlan, RungResult, Skip
from bedplate.adaptation.rungs.rung import Rung
from bedplate.core.errors import DataError
from bedplate.core.files import atomic_write, read_text, sha256_file, sha256_json
from bedplate.core.version import PACKAGE, __version__
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import Evaluation

RESULT_FILE, PLAN_FILE, SKIP_FILE, SPENT_FILE = "result.json", "plan.json", "skip.json", "spent.json"
WITHIN_FILE = "within.json"


def read_saved(path: Path, key: str, field: str = "key") -> dict[str, Any] | None:
    """What `write_saved` left in a file under the same key; None where there is none. DataError for a damaged file."""
    if not path.is_file():
        return None
    try:
        values: Any = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); remove it, and what it is about is done again") from error
    return values if isinstance(values, dict) and values.pop(field, None) == key else None


def write_saved(path: Path, key: str, values: Mapping[str, Any], field: str = "key") -> None:
    """Keep JSON values under the key that names all that they depend on."""
    text = json.dumps({field: key, **values}, indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write(path, text + "\n")


def write_plan(directory: Path, config: str, plan: RungPlan) -> None:
    """Keep the plan, so that a resumed run does what the interrupted one set out to do."""
    write_saved(directory / PLAN_FILE, config, asdict(plan), "config")


def read_plan(directory: Path, config: str) -> RungPlan | None:
    """The plan of an earlier run of the same configuration, or None."""
    values = read_saved(directory / PLAN_FILE, config, "config")
    if values is None:
        return None
    values["left_out"] = tuple(values["left_out"])
    return RungPlan(**values)


def write_skip(directory: Path, limits: str, seconds: float, skip: Skip) -> None:
    """Keep what a limit left out, so that the same command leaves it out again, whatever the machine is doing then."""
    write_saved(directory / SKIP_FILE, limits, {"took": seconds, **asdict(skip)}, "limits")


def read_skip(directory: Path, limits: str) -> tuple[Skip, float] | None:
    """What an earlier run left out under the same limits, with the seconds that this took, or None."""
    values = read_saved(directory / SKIP_FILE, limits, "limits")
    if values is None:
        return None
    seconds = float(values.pop("took", 0.0))
    return Skip(**values), seconds


def write_spent(directory: Path, config: str, seconds: float) -> None:
    """Keep how long a fit had taken when it was interrupted: that counts on, so that no repetition has more time."""
    write_saved(directory / SPENT_FILE, config, {"seconds": seconds}, "config")


def read_spent(directory: Path, config: str) -> float:
    """Seconds that interrupted fits of the same configuration had taken."""
    return float((read_saved(directory / SPENT_FILE, config, "config") or {}).get("seconds", 0.0))


def write_result(directory: Path, config: str, seconds: float, result: RungResult) -> None:
    """Mark a rung finished: whatever it left on disk before is whole."""
    values = {**asdict(result), "evaluation": result.evaluation.to_json(), "seconds": seconds}
    write_saved(directory / RESULT_FILE, config, values, "config")


def read_result(directory: Path, config: str, valid: Sequence[Example]) -> tuple[RungResult, float] | None:
    """A finished rung of the same configuration with the seconds it took, or None. valid: the rows it answered."""
    values = read_saved(directory / RESULT_FILE, config, "config")
    if values is None:
        return None
    seconds = float(values.pop("seconds"))
    values["evaluation"] = Evaluation.from_json(values["evaluation"], valid)
    values["latency"] = Latency(**values["latency"])
    values["export"] = None if values["export"] is None else ExportCheck(**values["export"])
    for name in ("seeds", "search", "left_out", "parts"):
        values[name] = tuple(values[name])
    return RungResult(**values), seconds


def fingerprint(context: Context) -> dict[str, Any]:
    """What every rung's outcome depends on, besides its own settings. How much time there was is not part of it: a run
    that goes on with more keeps what is finished, and climbs again what was made smaller (`Ascent`)."""
    base, task = context.at.facts, context.task
    return {
        "version": __version__,
        "task": [task.task, task.instructions, task.metric_name, task.output.model_dump(mode="json")],
        "inputs": {name: value.model_dump(mode="json") for name, value in task.inputs.items()},
        **({"traffic": weighing} if (weighing := _weighing(context)) else {}),
        "splits": {k: v for k, v in context.hashes.items() if k in ("train", "valid")},
        "base": [base.identity.weights_id, base.identity.tokenizer_id, base.identity.template_id],
        "dtype": base.dtype,
        "weights": base.weights,
        "kernel": base.kernel,
        "seed": context.seed,
        **({"exhaustive": True} if context.exhaustive else {}),
        **({"parents": list(context.parents)} if context.parents else {}),
        "max_prompt_tokens": context.spec.budget.max_prompt_tokens,
        **({} if context.spec.train_dtype == "auto" else {"train_dtype": context.spec.train_dtype}),
    }


def _weighing(context: Context) -> dict[str, Any]:
    """What rows weigh and which columns they carry, where the task says so: evaluations are kept with it."""
    data = context.task.data.model_dump(mode="json")
    files = {name: digest for name, digest in context.hashes.items() if name.startswith("file:")}
    weighing = {name: data[name] for name in ("slices", "traffic") if name in data}
    return {**weighing, "files": files} if weighing else {}


def config_of(context: Context, rung: Rung) -> str:
    """Names everything that the rung's outcome depends on."""
    built_on = None
    if context.chosen.prompt is not None and not rung.traits.own_prompt:
        prompt, output = context.chosen.prompt
        built_on = [prompt.template, prompt.format, prompt.system, output.model_dump(mode="json")]
    rung_settings = rung.settings(context)
    settings = {} if rung_settings is None else {"settings": rung_settings}
    return sha256_json({"rung": rung.name, "prompt": built_on, **settings, **fingerprint(context)})


def limits_of(context: Context, config: str) -> str:
    """Names what decides, beside the machine's speed at the moment, whether a limit of time or money leaves the rung
    out. Once that is decided it stays so: a repeated command that found time for another rung would bring another
    nominee, and so another verdict, to rows that had served one."""
    spec, seconds = context.spec, context.clock.seconds
    guards, budget = spec.guards.model_dump(mode="json"), spec.budget.model_dump(mode="json", exclude={"p95_calls"})
    return sha256_json([config, seconds, budget, spec.machine.usd_per_hour, guards])


_LIBRARIES = ("numpy", "scikit-learn", "scipy", "tokenizers", "torch")


@cache
def code_hash() -> str:
    """sha256 (hex) of this package's source files: its version says less than that between two releases."""
    root = PACKAGE
    return sha256_json({path.relative_to(root).as_posix(): sha256_file(path) for path in sorted(root.rglob("*.py"))})


def environment() -> dict[str, str]:
    """Name → version, of what a skin's numbers may depend on. threads: torch's; sums are made in their order."""
    versions = {"bedplate": __version__, "code": code_hash(), "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # of a build that carries no metadata
            versions[name] = "unknown"
    processor = "cuda" if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    return versions | {"processor": f"{platform.machine()} {processor}", "threads": str(torch.get_num_threads())}
