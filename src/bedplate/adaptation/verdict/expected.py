"""What a nominee's truth probably is: valid and test together, drawn toward the other candidates.

The best of several estimates reads too high, and so does one that was looked at because it passed. The estimate on
valid, from which nominees were chosen, is shrunk toward the mean of all candidates by empirical Bayes (Efron & Morris
1975, JASA 70:311) and then averaged with the one on test, each by the independent rows that it is worth: by their own
variances the higher one would count more, as a share near 1 varies less.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bedplate.adaptation.context.estimate import Estimated


def expected(name: str, test: Estimated, valid: Mapping[str, Estimated]) -> float:
    """Of the nominee `name`. valid: all candidates that it was chosen from."""
    valid_estimate, variance = valid[name].estimate, _variance(valid[name])
    shrunk = valid_estimate
    if len(valid) > 1:
        read = np.array([candidate.estimate for candidate in valid.values()])
        noise = float(np.mean([_variance(candidate) for candidate in valid.values()]))
        spread = max(0.0, float(read.var(ddof=1)) - noise)
        shrunk = float(read.mean()) + spread / (spread + variance) * (valid_estimate - float(read.mean()))
    rows = [measured.n / max(measured.design_effect, 1.0) for measured in (valid[name], test)]
    return (rows[0] * shrunk + rows[1] * test.estimate) / sum(rows)


def _variance(estimated: Estimated) -> float:
    """Of the estimate; that of a share with a row more of each kind, so that none is taken for certain."""
    share = (estimated.estimate * estimated.n + 1) / (estimated.n + 2)
    of_row = share * (1 - share) if estimated.row_variance is None else max(estimated.row_variance, 1 / estimated.n)
    return max(estimated.design_effect, 1.0) * of_row / estimated.n
