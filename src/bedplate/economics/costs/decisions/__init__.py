"""Prompt, tune, retrieve, buy or build: what each costs over a horizon, which is best, and what would change that.

decision_file.py     the file of one decision          evidence.py       from measurements, reports and plans
decision_inputs.py   every number, one row each        option_costs.py   files → each option's costs
decision.py          constraints, bars, break-evens, flips: the answer
explanation.py       the answer in sentences, and as JSON
"""

from __future__ import annotations

from bedplate.economics.costs.decisions.decision import Decision, OptionOutcome, decide
from bedplate.economics.costs.decisions.decision_file import Case, load_case

__all__ = ["Case", "Decision", "OptionOutcome", "decide", "load_case"]
