"""The lifecycle of one call, from its bytes to its reply."""
