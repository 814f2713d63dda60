"""References. What a team without a foundation model would do: TF-IDF of words and word pairs, and logistic regression;
where answers are written, the answer of the most similar text. And the floor under every other number: the most
frequent answer of train, whatever the input."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedplate.adaptation.context.context import LATENCY_CALLS, Context
from bedplate.adaptation.context.outcome import Latency, RungPlan, RungResult, Skip, latency
from bedplate.adaptation.rungs.answers import agreement, export, predict_examples, single_calls
from bedplate.adaptation.rungs.linear_head import Floats, Regression, one_thread
from bedplate.adaptation.rungs.probe import head_outputs, wanted_of
from bedplate.adaptation.rungs.rung import Rung, Traits
from bedplate.core.values import Values
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import Predicts, evaluate_predictions
from bedplate.inference.predict.classical import ClassicalPredictor
from bedplate.inference.predict.predictor import Prediction
from bedplate.skins.classical import WORD, Classical, most_terms
from bedplate.skins.files import read_skin, skin_id
from bedplate.skins.lookup_index import text_of
from bedplate.skins.output import Output
from bedplate.skins.phrasings import values_prompt
from bedplate.skins.skin import InputField, Skin

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0)
FOLDS = 5
WORDS = (1, 2)
"""How many words a term is made of, at least and at most."""


class FromScratch(Rung):
    """A classical skin, which has no base; estimated on test beside the others, whoever is nominated. Where answers are
    written it is a reference only, as it can but repeat those of train."""

    name = "from_scratch"
    traits = Traits(side="reference", needs="nothing", role="classical", own_prompt=True)

    def plan(self, context: Context) -> RungPlan | Skip:
        groups = len({example.group for example in context.train})
        if groups < 2:
            return Skip(f"cross-validation needs at least 2 groups in train, there is {groups}")
        return RungPlan({"folds": min(FOLDS, groups)})

    def settings(self, context: Context) -> Any:
        # what a version left that made no skin of it is not taken over
        return {"words": WORDS} if context.task.output.labels else None

    def fit(self, context: Context, plan: RungPlan, directory: Path) -> RungResult:
        if not context.task.output.labels:
            return self._repeats(context, plan)
        start = time.perf_counter()
        best, search = _strength(context, plan)
        vectorizer, targets = _vectorizer(context), wanted_of(context, context.train)
        x = vectorizer.fit_transform(_texts(context, range(len(context.train))))
        weight, bias = targets.regression(x, best, _regressed(context.seed))
        terms = sorted(vectorizer.vocabulary_, key=vectorizer.vocabulary_.__getitem__)
        idf, rows, shift = (np.asarray(part, np.float32) for part in (vectorizer.idf_, weight, bias))
        model = Classical(tuple(terms), idf, rows, shift, targets.labels, WORDS)
        output = _output(context, model)
        skin = Skin(
            name=context.skin_name(self.name),
            bases={},
            inputs={name: InputField() for name in context.fields},
            output=output,
            prompt=values_prompt(context.fields),
            classical=model,
            provenance=context.provenance(self.name, context.seed, context.parents),
        )
        seconds = time.perf_counter() - start
        threshold = output.probability_threshold
        threshold_note = "" if threshold is None else f", labels of at least {threshold:g}"
        reason = (
            f"TF-IDF of {WORDS[0]} and {WORDS[1]} words ({len(model.terms):,} terms) with logistic regression, C = "
            f"{best:g} by {plan.settings['folds']}-fold cross-validation within train{threshold_note}; it needs no base"
        )
        place = context.out / "skins" / self.name
        skin = export(skin, place)
        sample = context.ordered(context.valid, "latency")[:LATENCY_CALLS]
        with ClassicalPredictor(skin) as predictor:
            predictions = predict_examples(predictor, context.valid)
            calls = single_calls(predictor, sample)
        by_id = {e.id: p for e, p in zip(context.valid, predictions, strict=True)}
        return RungResult(
            self.name,
            evaluate_predictions(context.task, context.valid, predictions, seed=context.seed),
            latency([call.seconds for call in calls]),
            seconds,
            reason,
            skin=str(place.relative_to(context.out)),
            skin_id=skin_id(skin),
            search=tuple(search),
            export=agreement(sample, calls, by_id),
            details={"C": best, "terms": len(model.terms), **({} if threshold is None else {"threshold": threshold})},
        )

    def predictor(self, context: Context, result: RungResult) -> Predicts:
        if result.skin is None:
            return _nearest(context, context.train, result.details["similarity"])
        return ClassicalPredictor(read_skin(context.out / result.skin))

    # Answers that are written

    def _repeats(self, context: Context, plan: RungPlan) -> RungResult:
        start = time.perf_counter()
        best, search = _similarity(context, plan)
        model = _nearest(context, context.train, best)
        seconds = time.perf_counter() - start
        predictions = model.predict([e.inputs for e in context.valid])
        evaluation = evaluate_predictions(context.task, context.valid, predictions, seed=context.seed)
        sample = context.ordered(context.valid, "latency")[:LATENCY_CALLS]
        calls = [model.predict([e.inputs])[0].seconds for e in sample]
        reason = (
            f"reference, never nominated: the answer of the train row that is most alike by TF-IDF of {best}, chosen "
            f"by {plan.settings['folds']}-fold cross-validation within train"
        )
        details = {"similarity": best}
        return RungResult(self.name, evaluation, latency(calls), seconds, reason, search=tuple(search), details=details)


def _strength(context: Context, plan: RungPlan) -> tuple[float, list[dict[str, Any]]]:
    """C, by cross-validation over whole groups within train: by accuracy, or where there may be several labels by the
    task's metric."""
    train, output = context.train, head_outputs(context)[0]
    answers: dict[float, dict[int, str]] = {strength: {} for strength in STRENGTHS}
    for fit, holdout in _folds(context, plan):
        vectorizer = _vectorizer(context)
        x, targets = vectorizer.fit_transform(_texts(context, fit)), wanted_of(context, [train[i] for i in fit])
        y = vectorizer.transform(_texts(context, holdout))
        for strength in STRENGTHS:
            weight, bias = targets.regression(x, strength, _regressed(context.seed))
            answers[strength] |= zip(holdout, _read(output, y @ weight.T + bias), strict=True)
    estimates: dict[float, float] = {}
    for strength, predicted in answers.items():
        if context.labels:
            estimates[strength] = sum(predicted[i] == e.target for i, e in enumerate(train)) / len(train)
        else:
            predictions = [predicted[i] for i in range(len(train))]
            estimates[strength] = evaluate_predictions(context.task, train, predictions, split="train").estimate
    record = {"n": len(train), "split": "train"}
    search = [{"name": f"C = {strength:g}", "estimate": estimates[strength], **record} for strength in STRENGTHS]
    return max(STRENGTHS, key=lambda strength: estimates[strength]), search


def _vectorizer(context: Context) -> Any:
    """What the skin computes, in scikit-learn. Of more terms than it may have, the most frequent."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    max_terms = most_terms(len(context.task.output.labels or ()))
    return TfidfVectorizer(ngram_range=WORDS, sublinear_tf=True, token_pattern=f"(?u){WORD}", max_features=max_terms)


def _regressed(seed: int) -> Regression:
    def regressed(x: Any, codes: NDArray[Any], strength: float) -> tuple[Floats, Floats]:
        from sklearn.linear_model import LogisticRegression

        # liblinear is ten times faster on text, and is for two classes
        solver = "liblinear" if len(np.unique(codes)) == 2 else "lbfgs"
        with one_thread():
            model = LogisticRegression(C=strength, max_iter=2000, random_state=seed, solver=solver).fit(x, codes)
        return model.coef_, model.intercept_

    return regressed


def _output(context: Context, model: Classical) -> Output:
    outputs = head_outputs(context)
    if len(outputs) == 1:
        return outputs[0]
    logits = model.logits([text_of(e.inputs, context.fields) for e in context.valid])

    def estimate(output: Output) -> float:
        return evaluate_predictions(context.task, context.valid, _read(output, logits), seed=context.seed).estimate

    return max(outputs, key=estimate)


def _read(output: Output, logits_NC: Floats) -> list[str]:
    return [output.read_scores(logits)[0] for logits in logits_NC.tolist()]


def _texts(context: Context, rows: Sequence[int]) -> list[str]:
    return [text_of(context.train[i].inputs, context.fields) for i in rows]


def _similarity(context: Context, plan: RungPlan) -> tuple[str, list[dict[str, Any]]]:
    """What texts are compared by, by cross-validation over whole groups within train."""
    train, folds, search = context.train, _folds(context, plan), list[dict[str, Any]]()
    for similarity in SIMILARITIES:
        answers: dict[int, Prediction] = {}
        for fit, holdout in folds:
            model = _nearest(context, [train[i] for i in fit], similarity)
            answers |= zip(holdout, model.predict([train[i].inputs for i in holdout]), strict=True)
        whole = evaluate_predictions(context.task, train, [answers[i] for i in range(len(train))], split="train")
        search.append({"name": similarity, "estimate": whole.estimate, "n": len(train), "split": "train"})
    return max(search, key=lambda trial: trial["estimate"])["name"], search


def _nearest(context: Context, examples: Sequence[Example], similarity: str) -> Nearest:
    texts = [text_of(e.inputs, context.fields) for e in examples]
    return Nearest(texts, [e.target for e in examples], similarity, context.fields)


def _folds(context: Context, plan: RungPlan) -> list[tuple[list[int], list[int]]]:
    """Numbers of train rows to fit on and to hold out, whole groups each."""
    from sklearn.model_selection import GroupKFold

    groups = [e.group for e in context.train]
    split = GroupKFold(plan.settings["folds"]).split(groups, groups=groups)
    return [(fit.tolist(), holdout.tolist()) for fit, holdout in split]


SIMILARITIES: Mapping[str, Mapping[str, Any]] = {
    "words": {"ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b|[^\w\s]"},
    "characters": {"analyzer": "char_wb", "ngram_range": (3, 5)},
}
"""What texts are compared by: words and word pairs, or pieces of words."""


class Nearest:
    """Answers with the answer of the most similar known text; the first of equally similar ones."""

    def __init__(self, texts: Sequence[str], answers: Sequence[str], similarity: str, names: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer(sublinear_tf=True, **SIMILARITIES[similarity])
        self._train_matrix: Any = self._vectorizer.fit_transform(texts)  # sparse, whatever type stubs say of it
        self._answers, self._names = list(answers), list(names)

    def predict(self, rows: Sequence[Values], /) -> list[Prediction]:
        start = time.perf_counter()
        texts = [text_of(row, self._names) for row in rows]
        likeness = self._vectorizer.transform(texts) @ self._train_matrix.T  # rows have unit length
        chosen = [self._answers[int(likeness[i].toarray().argmax())] for i in range(len(rows))]
        seconds = (time.perf_counter() - start) / max(len(rows), 1)
        return [Prediction(answer, answer, seconds=seconds) for answer in chosen]


SHOWN = 60
"""Characters of a long answer that the reason quotes."""


class Constant:
    """Answers every row alike."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def predict(self, rows: Sequence[Values], /) -> list[Prediction]:
        return [Prediction(self.answer, self.answer) for _ in rows]


class Majority(Rung):
    """A reference: no model is behind it."""

    name = "majority"
    traits = Traits(
        side="reference", needs="nothing", own_prompt=True, no_curve="it says how often the most frequent label occurs"
    )

    def plan(self, context: Context) -> RungPlan | Skip:
        return RungPlan()

    def fit(self, context: Context, plan: RungPlan, directory: Path) -> RungResult:
        answer, count = self._answer(context)
        predictions = Constant(answer).predict([e.inputs for e in context.valid])
        evaluation = evaluate_predictions(context.task, context.valid, predictions, seed=context.seed)
        noun = "label" if context.labels else "answer"
        shown = answer if len(answer) <= SHOWN else f"{answer[:SHOWN]}…"
        reason = f"reference, never nominated: always answers {shown!r}, the most frequent {noun} of train"
        reason += "" if context.labels else f" ({count} of {len(context.train)} rows)"
        details = {"label": answer} if context.labels else {"answer": answer, "rows": count}
        return RungResult(self.name, evaluation, Latency(0.0, 0.0, 0.0, 0), 0.0, reason, details=details)

    def predictor(self, context: Context, result: RungResult) -> Predicts:
        return Constant(self._answer(context)[0])

    @staticmethod
    def _answer(context: Context) -> tuple[str, int]:
        """The answer and how many rows of train have it; of equally frequent ones the first label, or the first text in
        alphabetical order."""
        counts = Counter(example.target for example in context.train)
        answer = max(context.labels or sorted(counts), key=lambda target: counts[target])
        return answer, counts[answer]
