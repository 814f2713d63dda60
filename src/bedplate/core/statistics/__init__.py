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
