"""The gate: what candidates must clear, bounds on test, the verdict; and the rules of thumb that are scored against
it."""
