"""Canary routes between versions of a skin, and shadow traffic."""
