"""One rung in its own directory: planned, fitted and kept. What it did before is reused where nothing that matters has
changed, and what was planned is done as it was planned."""

from __future__ import annotations

import shutil
from pathlib import Path

from bedplate.adaptation.climb import planner
from bedplate.adaptation.climb.abstention import abstaining
from bedplate.adaptation.context.clock import Clock
from bedplate.adaptation.context.context import Context
from bedplate.adaptation.rungs import Result, Rung, Skip
from bedplate.adaptation.rungs.base import (
    RungOutcome,
    read_plan,
    read_result,
    read_skip,
    write_plan,
    write_result,
    write_skip,
)
from bedplate.core.errors import BedplateError, ConfigError, DataError, HubError, UsageError
from bedplate.core.executor import Job, LocalExecutor
from bedplate.core.files import DISK_FULL, sha256_json
from bedplate.skins.files import read_skin
from bedplate.skins.output import EmbeddingOutput, LabelOutput

_BAD_INPUT = (ConfigError, DataError, HubError, UsageError)


def climb(
    context: Context, rung: Rung, directory: Path, *, within: Clock | None = None, needs_skin: bool = True
) -> RungOutcome:
    """What became of a rung; its failure is an outcome, bad input is raised.

    within: whose time and money its plan may take; more is a skip. needs_skin: a result whose skin is gone is made
    again.
    """
    config = config_of(context, rung)
    reused = read_result(directory, config)
    if reused is not None and (not needs_skin or _skin_is_whole(context, reused[0])):
        result, seconds = reused
        _remember_prompt(context, result)
        context.clock.add(seconds)
        context.clock.charge(result.usd)
        plan = read_plan(directory, config)
        return RungOutcome(rung.name, "done", result.reason, result, seconds, plan, reused=True)
    limits = _limits_of(context, config)
    left_out = read_skip(directory, limits) if within is None else None
    if left_out is not None:
        skipped, seconds = left_out
        return RungOutcome(rung.name, "skipped", skipped.reason, None, seconds, skip=skipped.kind, reused=True)
    job = Job(rung.name, lambda: _fit(context, rung, directory, config, within))
    outcome = next(LocalExecutor().run([job]))
    if outcome.error is not None:
        if isinstance(outcome.error, _BAD_INPUT):
            raise outcome.error
        if isinstance(outcome.error, OSError) and outcome.error.errno in DISK_FULL:  # the next would fare alike
            raise UsageError(
                f"{rung.name}: {outcome.error.strerror}: make room in {directory}, and give the same command again; "
                "what is finished is kept"
            ) from outcome.error
        what = outcome.error.message if isinstance(outcome.error, BedplateError) else repr(outcome.error)
        return RungOutcome(rung.name, "failed", what, None, outcome.seconds, read_plan(directory, config))
    if isinstance(outcome.value, Skip):
        skipped = outcome.value
        if within is None and skipped.kind == "budget":
            write_skip(directory, limits, outcome.seconds, skipped)
        return RungOutcome(rung.name, "skipped", skipped.reason, None, outcome.seconds, skip=skipped.kind)
    assert outcome.value is not None
    write_result(directory, config, outcome.seconds, outcome.value)
    context.clock.charge(outcome.value.usd)
    plan = read_plan(directory, config)
    return RungOutcome(rung.name, "done", outcome.value.reason, outcome.value, outcome.seconds, plan)


def config_of(context: Context, rung: Rung) -> str:
    """Names everything that the rung's outcome depends on."""
    chosen = context.prompts.get("zero_shot")
    built_on = None
    if chosen is not None and rung.name not in ("majority", "from_scratch", "zero_shot", "own_prompt"):
        prompt, output = chosen
        built_on = [prompt.template, prompt.format, prompt.system, output.model_dump(mode="json")]
    own = context.settings_of(rung.name)
    settings = {} if own is None else {"settings": own}
    return sha256_json({"rung": rung.name, "prompt": built_on, **settings, **context.fingerprint()})


def _limits_of(context: Context, config: str) -> str:
    """Names what decides, beside the machine's speed at the moment, whether a limit of time or money leaves the rung
    out. Once that is decided it stays so: a repeated command that found time for another rung would bring another
    nominee, and so another verdict, to rows that had served one."""
    spec = context.spec
    guards = spec.guards.model_dump(mode="json")
    return sha256_json([config, spec.budget.model_dump(mode="json"), spec.machine.usd_per_hour, guards])


def _fit(context: Context, rung: Rung, directory: Path, config: str, within: Clock | None) -> Result | Skip:
    kept = read_plan(directory, config)
    plan = planner.planned(context, rung) if kept is None else kept
    if isinstance(plan, Skip):
        return plan
    if within is not None and plan.seconds > within.left:
        return Skip(f"it needs about {plan.seconds:.0f} s, {max(within.left, 0):.0f} s are left", "budget")
    if within is not None and plan.usd > within.usd_left:
        return Skip(f"it needs about ${plan.usd:.4f}, ${max(within.usd_left, 0):.4f} are left", "budget")
    if kept is None:
        if directory.exists():  # of another configuration
            shutil.rmtree(directory)
        write_plan(directory, config, plan)
    return abstaining(context, rung.fit(context, plan, directory))


def _skin_is_whole(context: Context, result: Result) -> bool:
    if result.skin is None:
        return True
    try:
        skin = read_skin(context.out / result.skin)
        if result.child is None:
            return True
        child = context.at.child(context.out / result.child).facts.identity
    except BedplateError:
        return False
    return skin.base.has_weights_of(child)


def _remember_prompt(context: Context, result: Result) -> None:
    """What `finish` of a prompt rung leaves in the context, from the skin on disk."""
    if result.rung == "zero_shot" and result.skin is not None:
        skin = read_skin(context.out / result.skin)
        plain = skin.output
        assert not isinstance(plain, EmbeddingOutput)
        if isinstance(plain, LabelOutput):
            plain = plain.model_copy(update={"bias": (0.0,) * len(plain.labels), "abstain": None})
        context.prompts["zero_shot"] = (skin.prompt, plain)
