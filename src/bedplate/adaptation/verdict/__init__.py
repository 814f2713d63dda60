"""The gate, and rules of thumb that are scored against it."""
