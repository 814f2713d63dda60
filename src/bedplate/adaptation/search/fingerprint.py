"""What an outcome depends on: where none of it has changed, what an earlier run did is reused."""

from __future__ import annotations

from typing import Any

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.rungs.rung import Rung
from bedplate.core.files import sha256_json
from bedplate.core.version import __version__


def fingerprint(context: Context) -> dict[str, Any]:
    """What every rung's outcome depends on, besides its own settings."""
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
        "budget_seconds": context.clock.seconds,
        **({} if context.clock.usd is None else {"budget_usd": context.clock.usd}),
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
    spec = context.spec
    guards = spec.guards.model_dump(mode="json")
    return sha256_json([config, spec.budget.model_dump(mode="json"), spec.machine.usd_per_hour, guards])
