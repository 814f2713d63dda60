"""What a team without a foundation model would do: TF-IDF of words and word pairs, and logistic regression; where
answers are written, the answer of the most similar text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.outcome import Plan, Result, Skip, latency
from bedplate.adaptation.rungs.nearest_answer import SIMILARITIES, Nearest
from bedplate.adaptation.rungs.rung import Rung, Traits
from bedplate.core.values import Values
from bedplate.evaluation.examples import Example
from bedplate.evaluation.harness import Predicts, evaluate_predictions
from bedplate.inference.predict.predictor import Prediction
from bedplate.skins.neighbours import text_of

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0)
FOLDS = 5


class Classical:
    """A fitted pipeline as a predictor. It is refitted where it is needed (about a second): no pickle is kept."""

    def __init__(self, pipeline: Any, names: Sequence[str]) -> None:
        self._pipeline, self._names = pipeline, list(names)

    def predict(self, rows: Sequence[Values], /) -> list[Prediction]:
        start = time.perf_counter()
        log_probabilities = np.log(
            np.maximum(self._pipeline.predict_proba([text_of(row, self._names) for row in rows]), 1e-30)
        )
        seconds = (time.perf_counter() - start) / max(len(rows), 1)
        classes = list(self._pipeline.classes_)
        return [
            Prediction(
                classes[int(p.argmax())],
                classes[int(p.argmax())],
                dict(zip(classes, p.tolist(), strict=True)),
                seconds=seconds,
            )
            for p in log_probabilities
        ]


class FromScratch(Rung):
    """A reference: shown and estimated beside the skins, but it is no skin of the base and cannot be served as one."""

    name = "from_scratch"
    traits = Traits(side="reference", needs="nothing", role="classical", own_prompt=True)

    def plan(self, context: Context) -> Plan | Skip:
        groups = len({example.group for example in context.train})
        if groups < 2:
            return Skip(f"cross-validation needs at least 2 groups in train, there is {groups}")
        return Plan({"folds": min(FOLDS, groups)})

    def fit(self, context: Context, plan: Plan, directory: Path) -> Result:
        start = time.perf_counter()
        best, search = self._search(context, plan)
        model = self._fitted(context, context.train, best)
        seconds = time.perf_counter() - start
        predictions = model.predict([e.inputs for e in context.valid])
        evaluation = evaluate_predictions(context.task, context.valid, predictions, seed=context.seed)
        calls = [model.predict([e.inputs])[0].seconds for e in context.ordered(context.valid, "latency")[:64]]
        if context.labels:
            what, details = f"TF-IDF of 1 and 2 words with logistic regression, C = {best:g} by", {"C": best}
        else:
            what = f"the answer of the train row that is most alike by TF-IDF of {best}, chosen by"
            details = {"similarity": best}
        folds = plan.settings["folds"]
        reason = f"reference, never nominated: {what} {folds}-fold cross-validation within train"
        return Result(self.name, evaluation, latency(calls), seconds, reason, search=tuple(search), details=details)

    def predictor(self, context: Context, result: Result) -> Predicts:
        return self._fitted(context, context.train, result.details["C" if context.labels else "similarity"])

    def _search(self, context: Context, plan: Plan) -> tuple[Any, list[dict[str, Any]]]:
        """C, or what texts are compared by, by cross-validation over whole groups within train."""
        train, folds, options = context.train, _folds(context, plan), STRENGTHS if context.labels else [*SIMILARITIES]
        search: list[dict[str, Any]] = []
        for option in options:
            answers: dict[str, Prediction] = {}
            for fit, held in folds:
                part = [train[i] for i in fit]
                if context.labels and len({e.target for e in part}) < 2:
                    continue
                found = self._fitted(context, part, option).predict([train[i].inputs for i in held])
                answers |= {train[i].id: one for i, one in zip(held, found, strict=True)}
            if context.labels:
                estimate = sum(answers[e.id].output == e.target for e in train if e.id in answers) / len(train)
            else:
                whole = evaluate_predictions(context.task, train, [answers[e.id] for e in train], split="train")
                estimate = whole.estimate
            name = f"C = {option:g}" if context.labels else option
            search.append({"name": name, "estimate": estimate, "n": len(train), "split": "train"})
        return options[max(range(len(options)), key=lambda i: search[i]["estimate"])], search

    @staticmethod
    def _fitted(context: Context, examples: Sequence[Example], option: Any) -> Classical | Nearest:
        texts, answers = [text_of(e.inputs, context.fields) for e in examples], [e.target for e in examples]
        if not context.labels:
            return Nearest(texts, answers, option, context.fields)
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from threadpoolctl import threadpool_limits

        pipeline = make_pipeline(
            # one-letter words count too, so that no text is left without a single word that could be known
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]"),
            # liblinear is ten times faster on text, and is for two classes
            LogisticRegression(
                C=option,
                max_iter=2000,
                random_state=context.seed,
                solver="liblinear" if len(set(answers)) == 2 else "lbfgs",
            ),
        )
        with threadpool_limits(1):  # so small a problem gains nothing from threads, and on a busy machine they wait
            pipeline.fit(texts, answers)
        return Classical(pipeline, context.fields)


def _folds(context: Context, plan: Plan) -> list[tuple[list[int], list[int]]]:
    """Numbers of train rows to fit on and to hold out, whole groups each."""
    from sklearn.model_selection import GroupKFold

    groups = [e.group for e in context.train]
    split = GroupKFold(plan.settings["folds"]).split(groups, groups=groups)
    return [(fit.tolist(), held.tolist()) for fit, held in split]
