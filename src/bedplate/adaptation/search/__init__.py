"""Candidates, plans and the climb from one to the next."""
