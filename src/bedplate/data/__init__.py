"""Rows in: where they come from, and how they are split without a leak."""
