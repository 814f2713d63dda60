"""One call, from its bytes to its reply."""
