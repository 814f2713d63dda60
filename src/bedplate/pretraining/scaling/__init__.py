"""Scaling laws from ladders of small runs, and what they say of a larger one."""
