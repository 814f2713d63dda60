"""Prompt, tune, retrieve, buy or build: what each costs over a horizon, which is best, and what would change that.

case.py            the decision file              evidence.py, assumed_speeds.py   from a report, a machine, a plan
sheet.py           every number, flat; draws      resolve.py, resolved_option.py  file and prices → each option's bill
calls.py, work.py  what calls and people cost     bill.py                         cost as a function of volume
exclusions.py      constraints and bars           breakeven.py                    from which volume on, or never
sensitivity.py     what would flip the answer     decision.py, words.py           the answer, and how it is said
formulas.py        each formula with its source
"""

from __future__ import annotations

from bedplate.economics.costs.decisions.case import Case, load_case
from bedplate.economics.costs.decisions.decision import Decision, OptionOutcome, decide

__all__ = ["Case", "Decision", "OptionOutcome", "decide", "load_case"]
