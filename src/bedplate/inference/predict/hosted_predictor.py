"""A skin whose base is a remote model: its prompt goes to an OpenAI-compatible endpoint, and the answer is read as the
skin's output. The key comes from the environment, and is written nowhere."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bedplate.core import errors
from bedplate.core.endpoint_spec import EndpointSpec
from bedplate.core.files import sha256_json
from bedplate.core.progress import Progress
from bedplate.core.values import Values
from bedplate.data.splits import normalise
from bedplate.inference.predict import callable_skin
from bedplate.inference.remote.account import Account
from bedplate.inference.remote.endpoint import ChatAnswer, Endpoint, is_key
from bedplate.skins.output import Output
from bedplate.skins.skin import EndpointReference, Skin

ALTERNATIVES = 20
_AROUND = " \t\n\r.,;:!?\"'`*_()[]{}<>«»“”‘’-–—"
_OPTIONAL = frozenset(("temperature", "logprobs", "top_logprobs", "seed"))
"""Fields that a server may refuse, and that are then left out of every further request."""
_FILTERED = frozenset(("content_filter", "content_policy_violation"))
_CHARGED = frozenset((500, 502, 504))
"""Failures after which nobody knows whether the server had answered, and charged for it."""


def api_key(reference: EndpointSpec) -> str | None:
    """The endpoint's key. UsageError where the environment lacks it."""
    name = reference.api_key_env
    if name is None:
        return None
    key = os.environ.get(name)
    if not key:
        raise errors.UsageError(f"{reference.url} wants a key in the environment variable {name}, which is not set")
    if not is_key(key):
        raise errors.UsageError(
            f"the environment variable {name}, for {reference.url}, holds no key but white space or no ASCII"
        )
    return key


class HostedPredictor(callable_skin.SkinPredictor):
    """A hosted skin, ready to be asked. Call it with a text (one input) or a mapping of inputs. account: the answers
    that are known already, and the cap on spending. Raises UsageError without the key. Asking raises EndpointError
    (also where the cap would be passed), DeadlineError, BusyError, RequestError; what had been answered by then is in
    the account."""

    def __init__(
        self, skin: Skin, *, account: Account | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        reference = skin.bases.get("main")
        if not isinstance(reference, EndpointReference):
            its = "has no base" if reference is None else f"belongs to the base {reference.name}"
            raise errors.UsageError(f"skin {skin.name!r} {its}; no endpoint answers for it")
        self.skin, self.reference = skin, reference
        self.account = Account() if account is None else account
        self.warnings: list[str] = []
        self.left_out: set[str] = set()
        """Fields that the server refused."""
        self._settings = _settings(skin, reference)
        self._endpoint = open_endpoint(reference, sleep)

    def predict(
        self, rows: callable_skin.RowsLike, *, one_by_one: bool = False, tenant: str = ""
    ) -> callable_skin.Predictions:
        """Predictions for rows, in order, `concurrency` of them at once unless `one_by_one`. An output is what the
        model said, where that is none of the labels or no such JSON. Seconds are those of the request over the network,
        waits between attempts included, when it was made."""
        inputs = callable_skin.inputs_of_rows(self.skin, callable_skin.rows_for(self.skin, rows))
        workers = 1 if one_by_one else min(self.reference.concurrency, len(inputs))
        with Progress(f"asking {self.reference.model}", len(inputs), "rows", quiet=len(inputs) < 8) as bar:
            if workers <= 1:
                return callable_skin.Predictions(self._counted(row_inputs, bar) for row_inputs in inputs)
            pool = ThreadPoolExecutor(workers, "bedplate-hosted")
            try:
                futures = [pool.submit(self._counted, row_inputs, bar) for row_inputs in inputs]
                return callable_skin.Predictions(future.result() for future in futures)
            finally:
                pool.shutdown(cancel_futures=True)  # after a failure nothing more is asked, or paid

    def _counted(self, inputs: Values, bar: Progress) -> callable_skin.Prediction:
        prediction = self._predict_row(inputs)
        bar.advance(1)
        return prediction

    def _predict_row(self, inputs: Values) -> callable_skin.Prediction:
        content = self.skin.prompt.text(inputs, self.skin.demonstrations)
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        request = {"url": self._endpoint.url, "model": self.reference.model, "messages": messages, **self._settings}
        key = sha256_json(request)
        answer = self.account.cached_answer(key)
        if answer is None:
            answer = self._paid(key, messages)
        return self._read(answer, self.account.cost(key))

    def _paid(self, key: str, messages: Sequence[Mapping[str, str]]) -> ChatAnswer:
        schema = json.dumps(self._settings.get("response_format", ""))
        max_cost = self.account.max_cost(messages, self._settings["max_tokens"], schema)
        description = f"{self._endpoint.url}, {self.reference.model}"
        reserved = self.account.reserve(max_cost, description)

        def before_retry(error: errors.BedplateError) -> None:
            """Each attempt may be charged for, and is paid for by a reservation of its own."""
            nonlocal reserved
            if _may_be_charged(error):
                self.account.lose(key, reserved, error.message)
                reserved = 0.0
                reserved = self.account.reserve(max_cost, description)

        try:
            answer = self._complete(messages, before_retry)
        except errors.RequestError as error:
            if error.code not in _FILTERED:
                self.account.release(reserved)
                raise
            # The server will not speak about this row: that is an answer, and not a right one.
            answer = ChatAnswer("", "content_filter", 0, 0, 0)
        except errors.BedplateError as error:
            if _may_be_charged(error):
                self.account.lose(key, reserved, error.message)
            else:
                self.account.release(reserved)
            raise
        except BaseException:  # an interruption, most likely, while the server was at work
            self.account.lose(key, reserved, "interrupted")
            raise
        self.account.settle(key, answer, reserved)
        return answer

    def _complete(
        self, messages: Sequence[Mapping[str, str]], before_retry: Callable[[errors.BedplateError], None]
    ) -> ChatAnswer:
        """The answer, without the fields that this server does not know."""
        while True:
            settings = {name: value for name, value in self._settings.items() if name not in self.left_out}
            if "max_tokens" in self.left_out:
                settings["max_completion_tokens"] = self._settings["max_tokens"]
            try:
                return self._endpoint.complete(self.reference.model, messages, before_retry=before_retry, **settings)
            except (errors.ContextLengthExceeded, errors.UnknownModelError):
                raise
            except errors.RequestError as error:
                refused = (error.param or "").split(".")[0]
                if refused not in {*_OPTIONAL, "max_tokens"} or refused not in settings:
                    raise
                self.left_out |= {"logprobs", "top_logprobs"} if "logprobs" in refused else {refused}

    def _read(self, answer: ChatAnswer, usd: float | None) -> callable_skin.Prediction:
        output, text = self.skin.output, answer.text
        parsed, scores = text, dict[str, float]()
        if output.scored_labels:
            label = read_label(output.scored_labels, text)
            if label is not None:
                scores = label_scores(output, label, answer)
                parsed = output.answer(label, scores)
        else:
            parsed = output.read_text(text)
        tokens = (answer.prompt_tokens or 0, answer.completion_tokens or 0, answer.cached_tokens or 0)
        ending = answer.finish_reason
        return callable_skin.Prediction(parsed, text, scores, *tokens, answer.seconds, usd=usd, finish_reason=ending)

    def close(self) -> None:
        self._endpoint.close()


def open_endpoint(reference: EndpointSpec, sleep: Callable[[float], None] = time.sleep) -> Endpoint:
    """A patient client of the endpoint that a skin or a task file names; its key is read from the environment."""
    return Endpoint(
        reference.url,
        key=api_key(reference),
        timeout=reference.timeout_s,
        retries=reference.retries,
        patient=True,
        sleep=sleep,
    )


def _may_be_charged(error: errors.BedplateError) -> bool:
    """Whether a server may have answered, and charged, before it failed so."""
    return isinstance(error, errors.DeadlineError) or (
        isinstance(error, errors.EndpointError) and error.status in _CHARGED
    )


def _settings(skin: Skin, reference: EndpointSpec) -> dict[str, Any]:
    """The settings sent along with the messages."""
    output = skin.output
    if output.answered_by == "embed":
        raise errors.UsageError(f"skin {skin.name!r}: an endpoint gives no vectors here; embed with a base of your own")
    form = output.remote_settings()
    settings = {"temperature": 0.0, "max_tokens": form.pop("max_tokens"), **skin.generation, **form}
    if output.scored_labels and reference.logprobs:
        settings |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
    return settings


def read_label(labels: Sequence[str], text: str) -> str | None:
    """The label that an answer gives, or None where it gives none, or more than one. The answer is the label (whatever
    the case, and the quotes and punctuation around it), or names exactly one of them as whole words; a label within a
    longer one that is named does not count."""
    reply = text.strip()
    if reply in labels:
        return reply
    folded = {normalise(label): label for label in labels}
    if len(folded) < len(labels):  # labels that differ in their case only are read exactly
        folded = {label: label for label in labels}
    else:
        reply = normalise(reply)
    whole = reply.strip(_AROUND)
    if whole in folded:
        return folded[whole]
    matches: set[str] = set()
    remaining = reply
    for name in sorted(folded, key=len, reverse=True):
        pattern = rf"(?<!\w){re.escape(name)}(?!\w)"
        if re.search(pattern, remaining):
            matches.add(folded[name])
            remaining = re.sub(pattern, "\0", remaining)
    return matches.pop() if len(matches) == 1 else None


def label_scores(output: Output, label: str, answer: ChatAnswer) -> dict[str, float]:
    """Each label's log-probability among the labels, for an answer that was read as `label`; {} where it tells too
    little. They are Bedplate's own scores, or those of the first token's likeliest alternatives, each counted for the
    label that it alone begins; a label that none of them begins is as likely as the least of them at most. What an
    answer begins with says nothing of a label that comes later in it."""
    labels = output.scored_labels
    reported_scores = answer.extension.get("scores")
    if isinstance(reported_scores, Mapping) and set(reported_scores) == set(labels):
        return _normalised(output, [float(reported_scores[candidate]) for candidate in labels])
    if not answer.text.strip().casefold().startswith(label.casefold()):
        return {}
    alternatives = answer.alternatives
    mass = dict.fromkeys(labels, 0.0)
    for token, logprob in alternatives:
        begun = token.strip().casefold()
        owners = [candidate for candidate in labels if begun and candidate.casefold().startswith(begun)]
        if len(owners) == 1:
            mass[owners[0]] += math.exp(logprob)
    if not any(mass.values()):
        return {}
    floor = math.exp(min(logprob for _, logprob in alternatives))
    return _normalised(output, [math.log(max(mass[candidate], floor, 1e-30)) for candidate in labels])


def _normalised(output: Output, totals: Sequence[float]) -> dict[str, float]:
    try:
        return output.read_scores(totals)[1]
    except errors.RequestError:  # NaN, or nothing but minus infinity
        return {}
