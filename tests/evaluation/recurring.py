"""Traffic in which texts recur, a skin that is unchanged, and looks at it day by day."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bedplate.core.statistics import clusters, multiplicity
from bedplate.core.statistics.betting import Gains
from bedplate.evaluation.drift import Levels, Promise, quality, texts_recur
from bedplate.evaluation.grading import GradedRow
from bedplate.evaluation.harness import Evaluation

POPULAR, RARE, SHARE = 300, 20_000, 0.85
"""Texts of either sort, and the share of the calls that popular ones have."""
CALLS, FIRST = 3000, 1 - multiplicity.spent_alpha(0.05, 1)


def judged(scores: Sequence[float], texts: Sequence[int]) -> Evaluation:
    """An evaluation of one row of each of these texts."""
    rows = tuple(
        GradedRow(str(text), f"{text:064x}", f"{text:064x}", "yes", "yes" if score else "no", float(score), 9)
        for score, text in zip(scores, texts, strict=True)
    )
    n, mean = len(rows), float(np.mean(scores))
    return Evaluation(
        *("t", "0" * 64, "new", "0" * 64, "accuracy", ("no", "yes"), mean, (0.0, 1.0), 0.95, None, None, n),
        *(n, None, 1.0, 0, 0, rows, "label", "binary"),
    )


def alarm(
    rng: np.random.Generator,
    popular: float,
    rare: float,
    *,
    looks: int,
    calls: int,
    weighted: bool,
    drop: float = 0.0,
    share: float = SHARE,
) -> tuple[int | None, int | None]:
    """The first of the looks at which the skin is called worse or under its bar: by the promise as it is, and by the
    test rows that new ones are like, where texts recur. popular, rare: how often it is right on texts of either sort;
    weighted: whether the promise counts copies; drop: what the skin has lost since; share: of the calls that popular
    texts have."""
    sorts = np.repeat([0, 1], [POPULAR, RARE])
    popularity = np.array([share / POPULAR, (1 - share) / RARE])[sorts]
    right = rng.random(sorts.size) < np.array([popular, rare])[sorts]
    now = right & (rng.random(sorts.size) >= drop)
    copies = Counter(rng.choice(sorts.size, CALLS, p=popularity).tolist())
    test = [text for text in copies if rng.random() < 0.3]
    scores, weights = right[test].astype(float), np.array([float(copies[text]) for text in test])
    floor = clusters.effective_n_bound(scores, None, FIRST, weights=weights if weighted else None).value
    estimate = float(np.average(scores, weights=weights if weighted else None))
    n = len(test)
    promise = Promise("accuracy", "test", estimate, (floor, 1.0), n, n, floor - 0.02, floor, FIRST, True)
    level, seen = Levels(0.05).quality, set[int]()
    first: list[int | None] = [None, None]
    before: tuple[list[dict[str, Gains]], list[dict[str, Gains]]] = [], []
    for look in range(1, looks + 1):
        texts = list(dict.fromkeys(rng.choice(sorts.size, calls, p=popularity).tolist()))
        unseen = [text for text in texts if text not in copies]
        if unseen:
            after, bets = judged(now[unseen].tolist(), unseen), [text not in seen for text in unseen]
            alike = None
            if texts_recur(set(texts), seen, copies.keys()):
                once = [text for text in test if copies[text] == 1]
                rows = [(float(right[text]), str(text)) for text in once if text not in seen]
                alike = rows, len(once) - len(rows)
            for which, reference in enumerate((None, alike)):
                if first[which] is not None:
                    continue
                measured = quality(
                    after, promise, level, look=look, unseen=bets, earlier=before[which], alike=reference
                )
                before[which].append(measured.gains)
                if measured.worse or measured.below_bar:
                    first[which] = look
            seen.update(texts)  # a look at which every text was in the data is refused, and not counted
    return first[0], first[1]
