"""LLM-as-a-judge metric: an endpoint is shown each row under a rubric and answers with a number.

LLM as a judge: Zheng et al. (2023), arXiv 2306.05685. Answers are kept on disk by the hash of what was asked, so that
nothing is asked, or paid for, twice; a judge that fails or answers nonsense is an error, never a score.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from bedplate.core.endpoint_spec import EndpointSpec
from bedplate.core.errors import BedplateError, ConfigError, EndpointError
from bedplate.core.files import bedplate_home
from bedplate.core.values import Value, Values
from bedplate.evaluation.costs import JudgeSpec
from bedplate.evaluation.metrics import AnsweredRow, Scoring
from bedplate.inference.predict.hosted_predictor import HostedPredictor, api_key
from bedplate.inference.remote.account import Account, TokenPrices
from bedplate.skins.output import TextOutput
from bedplate.skins.prompt import Prompt
from bedplate.skins.skin import EndpointReference, InputField, Skin

RUBRIC_FIELDS = ("target", "prediction")
_NUMBER = re.compile(
    r"""[\s*_`"'#>]*(?:[^\W\d][^:=\d]{0,30}[:=][\s*_`]*)?([-+]?(?:\d+(?:\.\d+)?|\.\d+))[\s*_`"'.]*"""
)  # alone on its line but for emphasis, quotes, and a word such as "Score:" before it
_SCORE_PROMPT = "\n\nEnd with a line that holds one number from {low:g} to {high:g} and nothing else."
_RETRY_PROMPT = (
    "\n\nYou answered:\n{{{{ answer }}}}\n\nAnswer now with one number from {low:g} to {high:g} and nothing else."
)


def _reference(spec: JudgeSpec) -> EndpointReference:
    endpoint_fields = spec.model_dump(include=set(EndpointSpec.model_fields))
    return EndpointReference(url=spec.endpoint, logprobs=False, **endpoint_fields)


@lru_cache(maxsize=8)
def _account(path: Path, price: TokenPrices | None, max_usd: float | None) -> Account:
    return Account(path, price=price, max_usd=max_usd)


@dataclass(frozen=True)
class JudgeMetric:
    """Scores rows by a judge's answers. `fields` are the task's inputs. Make one with `judge_metric`."""

    spec: JudgeSpec
    fields: tuple[str, ...]
    scoring: Scoring = "real"

    @property
    def name(self) -> str:
        return f"judge ({self.spec.model}, {self.spec.identity[:8]})"

    def ready(self) -> None:
        """Raises UsageError where the environment lacks the key."""
        api_key(_reference(self.spec))

    def score(self, rows: Sequence[AnsweredRow]) -> list[float]:
        """EndpointError, DeadlineError, BusyError, RequestError where the judge fails; EndpointError naming the row for
        an answer, asked for twice, without a number on the scale. What was answered before is kept."""
        shown = {_key(row): _inputs(row) for row in rows if row.prediction is not None}
        answers = dict(zip(shown, self._query_judge(_SCORE_PROMPT, list(shown.values()), self.fields), strict=True))
        unclear = [key for key, answer in answers.items() if self._number(answer) is None]
        reminded = [{**shown[key], "answer": answers[key]} for key in unclear]
        second = self._query_judge(_SCORE_PROMPT + _RETRY_PROMPT, reminded, (*self.fields, "answer"))
        answers |= zip(unclear, second, strict=True)
        return [0.0 if row.prediction is None else self._score(row, answers[_key(row)]) for row in rows]

    def _score(self, row: AnsweredRow, answer: str) -> float:
        number = self._number(answer)
        if number is None:
            low, high = self.spec.scale
            raise EndpointError(
                f"{_reference(self.spec).name}: the judge gives row {row.id} no number from {low:g} to {high:g}, "
                f"but {answer[-200:]!r}; make the rubric clearer, or take another model"
            )
        return number

    def _query_judge(self, form: str, rows: Sequence[Values], fields: Sequence[str]) -> list[str]:
        if not rows:
            return []
        with HostedPredictor(self.skin(form, fields), account=self._account) as judge:
            answers = judge.predict(rows)
        # what was cut off may end in any number
        return ["" if answer.finish_reason == "length" else answer.text for answer in answers]

    def skin(self, form: str, fields: Sequence[str]) -> Skin:
        """The judge as a hosted skin; `form` is what is asked of its answer."""
        low, high = self.spec.scale
        return Skin(
            name="judge",
            bases={"main": _reference(self.spec)},
            inputs={name: InputField() for name in (*fields, *RUBRIC_FIELDS)},
            output=TextOutput(max_tokens=self.spec.max_tokens),
            prompt=Prompt(self.spec.rubric.rstrip() + form.format(low=low, high=high), format="chat"),
        )

    @property
    def _account(self) -> Account:
        price_spec = self.spec.price
        price = None
        if price_spec is not None:
            cached = price_spec.input if price_spec.cached_input is None else price_spec.cached_input
            price = TokenPrices(price_spec.input, cached, price_spec.output)
        return _account(bedplate_home() / "judged" / f"{self.spec.identity}.jsonl", price, self.spec.max_usd)

    def _number(self, answer: str) -> float | None:
        """The number on the last line, as a share of the scale; None where there is none."""
        lines = answer.strip().splitlines()
        match = _NUMBER.fullmatch(lines[-1]) if lines else None
        low, high = self.spec.scale
        if match is None or not min(low, high) <= float(match.group(1)) <= max(low, high):
            return None
        return (float(match.group(1)) - low) / (high - low)


def judge_metric(spec: JudgeSpec, fields: Sequence[str]) -> JudgeMetric:
    """The judge of a task with these inputs. ConfigError for a rubric that is no template, or that reads what is not
    there or cannot see the prediction."""
    reserved = next((name for name in fields if name in (*RUBRIC_FIELDS, "answer")), None)
    if reserved is not None:
        advice = f"give the input {reserved!r} another name"
        raise ConfigError(f"metric: the judge's rubric calls the row's {reserved} so; {advice}")
    metric = JudgeMetric(spec, tuple(fields))
    try:
        metric.skin(_SCORE_PROMPT, fields)
        reads = Prompt(spec.rubric, format="chat").variables
    except BedplateError as error:
        raise ConfigError(f"metric: the judge's rubric: {error.message}") from error
    if "prediction" not in reads and "inputs" not in reads:
        raise ConfigError("metric: the judge's rubric never shows the prediction; write {{ prediction }} into it")
    return metric


def _inputs(row: AnsweredRow) -> dict[str, Value]:
    return {**row.inputs, "target": row.target, "prediction": row.prediction or ""}


def _key(row: AnsweredRow) -> str:
    """Rows that show the judge the same are asked about once."""
    return json.dumps(_inputs(row), sort_keys=True)
