"""From a corpus to a base: the run, its page and card, suites at checkpoints, scaling laws from ladders of runs."""
