"""A model as numbers: parameters, operations, bytes."""
