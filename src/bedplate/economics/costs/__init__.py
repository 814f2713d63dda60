"""Decisions between options by what they cost."""
