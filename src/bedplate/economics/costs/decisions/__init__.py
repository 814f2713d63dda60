"""Prompt, tune, retrieve, buy or build: what each costs over a horizon, which is best, and what would change that.

decision_file.py   the file of one decision, and every number of it    evidence.py      from reports and measurements
option_costs.py    files → each option's costs                         explanation.py   sentences, and JSON
decision.py        constraints, bars, break-evens, flips: the answer
"""

from __future__ import annotations

from bedplate.economics.costs.decisions.decision import Decision, OptionOutcome, decide
from bedplate.economics.costs.decisions.decision_file import Case, load_case

__all__ = ["Case", "Decision", "OptionOutcome", "decide", "load_case"]
