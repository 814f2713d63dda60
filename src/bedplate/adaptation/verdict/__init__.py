"""The gate: acceptance criteria of candidates, bounds on their test scores, and the verdict; and rules of thumb, scored
after the run."""
