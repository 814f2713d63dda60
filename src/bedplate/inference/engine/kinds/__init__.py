"""What an engine can be asked: one file for each kind of request, its result, and how it is computed."""
