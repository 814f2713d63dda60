"""Tasks, metrics, suites and evaluations whose numbers can be recomputed from their rows."""
