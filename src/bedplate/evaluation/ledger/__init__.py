"""The test ledger: which rows were opened for which verdict, whatever they are called now (`row_keys`)."""

from __future__ import annotations

from bedplate.evaluation.ledger.ledger import Opening, TestLedger, ledger_for
from bedplate.evaluation.ledger.row_keys import Keys, keys_of

__all__ = ["Keys", "Opening", "TestLedger", "keys_of", "ledger_for"]
