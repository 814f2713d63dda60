"""Learning curves, and where tuning overtakes prompting."""
