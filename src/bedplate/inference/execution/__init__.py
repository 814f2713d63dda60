"""Execution plans: the dtype, weights and kernel that a base runs with here, and how that was measured."""
