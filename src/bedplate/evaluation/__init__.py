"""Is it good enough? Tasks, metrics, and evaluations whose numbers can be recomputed from their rows."""
