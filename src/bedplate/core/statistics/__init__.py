"""Intervals, tests and sample sizes behind every verdict. One file per idea; scipy is imported inside functions only.

proportions.py     exact (Clopper-Pearson) and Wilson bounds of a proportion of independent rows; bounds of a quantile
unequal.py         what the variance of few or unequal groups is worth: bias, degrees of freedom, skewness, the floor
clusters.py        rows that come in groups: clustered mean, design effect, bounds on the effective n, likeness
missed.py          what groups that were missed could hide
bootstrap.py       BCa cluster bootstrap, for scores that are not 0/1
paired.py          two candidates on the same rows: exact McNemar, clustered sign-flip and swap tests
betting.py         tests and bounds that may be looked at as often as one likes
noninferiority.py  bounds of a drop, and of the calibration error
agreement.py       two labels of the same rows, and the ceiling that they leave
multiplicity.py    several nominees, looks and verdicts on the same rows, and the n that would be needed
"""

from __future__ import annotations

from bedplate.core.statistics.betting import (
    BettingEvidence,
    Gains,
    evidence,
    gains,
    gains_apart,
    log_capital,
    mean_bounds,
)
from bedplate.core.statistics.bootstrap import Bootstrap, bca_of_sums, mean_of_sums
from bedplate.core.statistics.clusters import (
    Bound,
    RobustMean,
    design_effect,
    effective_n_bound,
    effective_n_interval,
    groups_needed,
    intraclass_correlation,
    robust_mean,
)
from bedplate.core.statistics.multiplicity import (
    HolmBound,
    holm,
    holm_bounds,
    needed_n,
    sequence_bounds,
    simultaneous,
    spent_alpha,
)
from bedplate.core.statistics.paired import (
    PairedDifference,
    agreeing,
    independent_difference,
    mcnemar_exact,
    paired_difference,
    sign_flip,
    swap_test,
)
from bedplate.core.statistics.proportions import (
    binomial_interval,
    binomial_lower,
    binomial_upper,
    quantile_bounds,
    values_needed,
    wilson,
)
from bedplate.core.statistics.unequal import MINIMUM_GROUPS, InsufficientGroups, enough_groups, worth

__all__ = [
    "MINIMUM_GROUPS",
    "BettingEvidence",
    "Bootstrap",
    "Bound",
    "Gains",
    "HolmBound",
    "InsufficientGroups",
    "PairedDifference",
    "RobustMean",
    "agreeing",
    "bca_of_sums",
    "binomial_interval",
    "binomial_lower",
    "binomial_upper",
    "design_effect",
    "effective_n_bound",
    "effective_n_interval",
    "enough_groups",
    "evidence",
    "gains",
    "gains_apart",
    "groups_needed",
    "holm",
    "holm_bounds",
    "independent_difference",
    "intraclass_correlation",
    "log_capital",
    "mcnemar_exact",
    "mean_bounds",
    "mean_of_sums",
    "needed_n",
    "paired_difference",
    "quantile_bounds",
    "robust_mean",
    "sequence_bounds",
    "sign_flip",
    "simultaneous",
    "spent_alpha",
    "swap_test",
    "values_needed",
    "wilson",
    "worth",
]
