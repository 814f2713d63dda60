"""Prompt, tune, retrieve, buy or build: what each costs over a horizon, which is best, and what would change that.

decision_file.py    the file of one decision         ladder_evidence.py, speeds.py   from a report, a machine, a plan
inputs.py           every number, one row each       formula.py   arithmetic for Python and for the page
option_costs.py     files → each option's costs      constraints.py   constraints and bars
break_even.py       from which volume on, or never   sensitivity.py   what would flip the answer
decide.py           the answer                       explanation.py   the answer in sentences, and as JSON
"""

from __future__ import annotations

from bedplate.economics.costs.decisions.decide import Decision, OptionOutcome, decide
from bedplate.economics.costs.decisions.decision_file import Case, load_case

__all__ = ["Case", "Decision", "OptionOutcome", "decide", "load_case"]
