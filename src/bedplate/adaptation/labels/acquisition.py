"""Which train rows to label next: those of which the present skin is least sure.

Uncertainty sampling (Lewis & Gale 1994, SIGIR): rows in ascending order of the probability of their likeliest label.
The present skin is the cheapest that the labels so far make, in a second: logistic regression on TF-IDF, as
`from_scratch`. Only train is chosen so. A mean over rows that were chosen for being hard says nothing of all rows, so
valid and test are drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bedplate.evaluation.examples import Example
from bedplate.evaluation.task import Task
from bedplate.skins.classical import WORD
from bedplate.skins.neighbours import text_of

STRENGTH = 10.0
"""C of the regression; of a few dozen labels there is nothing to choose it by."""
LEAST_OF_EACH = 2


def least_sure(
    task: Task, labeled: Sequence[Example], waiting: Sequence[Example], count: int
) -> tuple[list[Example], str]:
    """At most `count` of the waiting rows, which come in a random order, and how they were chosen."""
    targets = [example.target for example in labeled]
    rare = sum(targets.count(label) < LEAST_OF_EACH for label in task.labels)
    if not task.labels or rare or len(waiting) <= count:
        why = "there are no more" if len(waiting) <= count else "rows do not have one label each of a few"
        if task.labels and rare and len(waiting) > count:
            why = f"{rare} labels have fewer than {LEAST_OF_EACH} rows so far"
        return list(waiting[:count]), f"at random: {why}"
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    fields = list(task.inputs)
    terms = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=f"(?u){WORD}")
    with threadpool_limits(1):
        x = terms.fit_transform([text_of(example.inputs, fields) for example in labeled])
        model = LogisticRegression(C=STRENGTH, max_iter=2000).fit(x, targets)
        sure = model.predict_proba(terms.transform([text_of(example.inputs, fields) for example in waiting])).max(
            axis=1
        )
    order = np.argsort(sure, kind="stable")[:count]  # rows alike keep their random order
    how = f"the half that came last by the least sure labels of a bag of words fitted on {len(labeled)} rows"
    return [waiting[i] for i in order.tolist()], how
