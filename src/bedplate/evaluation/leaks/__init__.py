"""Rows that carry less evidence than they seem to: the skin has seen them, or they repeat each other."""
