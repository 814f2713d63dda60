"""This code's version, and where its files lie. At the bottom of the import order, so that no module imports the
package itself."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"

PACKAGE = Path(__file__).resolve().parent.parent
"""The directory of the package `bedplate`."""
