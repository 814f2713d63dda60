"""Labels bought one file at a time, until there is a verdict."""
