"""A remote model as a candidate: asked with the task's chat prompt, priced by its tokens, timed over the network.

Every answer is kept beside the run by the hash of what was asked: an interrupted or repeated climb pays for none twice.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import RungPlan, RungResult, Skip, latency, no_time
from bedplate.adaptation.rungs.answers import export, predict_in_time
from bedplate.adaptation.rungs.rung import Rung, Traits
from bedplate.adaptation.task.adapt_parts import HostedSpec
from bedplate.core.errors import EndpointError, UsageError
from bedplate.evaluation.harness import Predicts, evaluate_predictions
from bedplate.inference.predict.hosted_predictor import HostedPredictor, api_key
from bedplate.inference.predict.predictor import Prediction
from bedplate.inference.remote.account import Account
from bedplate.skins.files import read_skin, skin_id
from bedplate.skins.skin import InputField, Skin

BYTES_A_TOKEN = 4
"""Bytes of English in the usual vocabularies; only to say beforehand about how much a rung will cost."""
ANSWER_TOKENS = 4
ANSWER_SECONDS = 1.0


class Hosted(Rung):
    """A hosted skin."""

    name = "hosted"
    traits = Traits(side="prompt", needs="endpoint", learns=False)

    def plan(self, context: Context) -> RungPlan | Skip:
        spec = context.hosted
        if spec is None:
            return Skip("the task file names no endpoint under `adapt.hosted`")
        try:
            api_key(spec)
        except UsageError as error:
            return Skip(error.message)
        price, n = spec.price, len(context.valid)
        prompt, _ = context.task_prompt("chat")
        size = sum(len(str(prompt.text(e.inputs)).encode()) for e in context.valid) / BYTES_A_TOKEN
        usd = price.usd(size, 0, n * (context.written.mean or ANSWER_TOKENS))
        seconds = n * ANSWER_SECONDS / spec.concurrency
        if seconds > context.seconds_left:
            return no_time(seconds)
        whole = usd * (1 + context.test_n / n)
        if whole > context.usd_left:
            return Skip(
                f"with test it needs about ${whole:.4f}, ${max(context.usd_left, 0):.4f} of the climb's money are left",
                "budget",
            )
        return RungPlan({"endpoint": spec.name}, seconds, usd=usd)

    def settings(self, context: Context) -> Any:
        spec = context.hosted
        return spec and spec.model_dump(mode="json", exclude={"max_usd", "concurrency", "timeout_s", "retries"})

    def fit(self, context: Context, plan: RungPlan, directory: Path) -> RungResult:
        start = time.perf_counter()
        spec = context.hosted
        assert spec is not None
        place = context.out / "skins" / self.name
        prompt, output = context.task_prompt("chat")
        skin = Skin(
            name=context.skin_name(self.name),
            bases={"main": spec.reference},
            inputs={name: InputField() for name in context.task.inputs},
            output=output.bare(),
            prompt=prompt,
            provenance=context.provenance(self.name, context.seed),
        )
        skin = export(skin, place)
        account = self._account(context, spec)
        try:
            with HostedPredictor(skin, account=account) as predictor:
                predictions = predict_in_time(context, predictor, context.valid)
                left_out = sorted(predictor.left_out)
            answered = [p for p in predictions if p is not None]
            usd = self._usd_per_call(spec, account, answered, context.test_n)
        except BaseException:
            context.clock.charge(account.spent)
            raise
        evaluation = evaluate_predictions(context.task, context.valid, predictions, seed=context.seed)
        unread = f", {evaluation.unparsed} answers could not be read" if evaluation.unparsed else ""
        scores = "with" if any(p.scores for p in answered) else "without"
        return RungResult(
            rung=self.name,
            evaluation=evaluation,
            latency=latency([p.seconds for p in answered]),
            train_seconds=time.perf_counter() - start,
            reason=(
                f"{spec.model} at {spec.url}, {scores} likelihoods, prices of {spec.as_of}{unread}; latency is over "
                f"the network, {spec.concurrency} at once"
            ),
            skin=str(place.relative_to(context.out)),
            skin_id=skin_id(skin),
            prompt_tokens=max(p.prompt_tokens for p in answered),
            left_out=tuple(f"the server does not take {name}" for name in left_out),
            details={"endpoint": spec.name, "unparsed": evaluation.unparsed, "spent_usd": account.spent},
            usd=account.spent,
            usd_per_call=usd,
        )

    def predictor(self, context: Context, result: RungResult) -> Predicts:
        assert result.skin is not None
        assert context.hosted is not None
        skin = read_skin(context.out / result.skin)
        return HostedPredictor(skin, account=self._account(context, context.hosted))

    @staticmethod
    def _usd_per_call(spec: HostedSpec, account: Account, answered: Sequence[Prediction], test_n: int) -> float:
        """What an answer has cost. EndpointError where there is none, or test would cost more than is allowed."""
        if not answered:
            raise EndpointError(f"{spec.name}: no row fits the context of {spec.model}")
        usd = sum(p.usd or 0.0 for p in answered) / len(answered)
        ahead = account.spent + 1.2 * usd * test_n
        if ahead > spec.max_usd:
            raise EndpointError(
                f"{spec.name}: ${account.spent:.4f} are spent on valid, and with test it would be about ${ahead:.4f}, "
                f"more than max_usd of ${spec.max_usd:g}; raise max_usd to continue (answers are kept)",
                status=402,
            )
        return usd

    @staticmethod
    def _account(context: Context, spec: HostedSpec) -> Account:
        path = context.out / "answers" / f"{spec.name}.jsonl"
        return Account(path, price=spec.price, max_usd=spec.max_usd)
