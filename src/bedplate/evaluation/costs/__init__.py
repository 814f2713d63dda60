"""Metrics of costs, in US dollars for each call, and how their numbers are said."""
