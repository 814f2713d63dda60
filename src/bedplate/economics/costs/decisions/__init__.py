"""Prompt, tune, retrieve, buy or build: what each costs over a horizon, which is best, and what would change that.

decision_file.py     the file of one decision         ladder_evidence.py, call_speeds.py   from measurements and plans
decision_inputs.py   every number, one row each       case_inputs.py   what all options share
option_costs.py      files → each option's costs      constraints.py   constraints and bars
break_even.py        from which volume on, or never   sensitivity.py   what would flip the answer
decision.py          the answer                       explanation.py   the answer in sentences, and as JSON
"""

from __future__ import annotations

from bedplate.economics.costs.decisions.decision import Decision, OptionOutcome, decide
from bedplate.economics.costs.decisions.decision_file import Case, load_case

__all__ = ["Case", "Decision", "OptionOutcome", "decide", "load_case"]
