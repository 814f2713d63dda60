"""Families of which some layers keep a state in the place of attention."""
