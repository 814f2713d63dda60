"""The test ledger: which rows were opened for which verdict, whatever they are called now.

row_keys.py    what a row is known by again: its texts, what is nearly the same, its id
chain.py       a file of entries that only grows, each with the hash of the one before
ledger.py      an opening: counted, and written down before anything is read
skin_looks.py  what earlier looks at a skin found, so that all of them are one test
"""

from __future__ import annotations

from bedplate.evaluation.ledger.ledger import Opening, TestLedger, ledger_for
from bedplate.evaluation.ledger.row_keys import Keys, keys_of

__all__ = ["Keys", "Opening", "TestLedger", "keys_of", "ledger_for"]
