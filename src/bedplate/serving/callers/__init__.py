"""Who may ask, how fast, and for how much."""
