"""A conversation on a terminal or through a pipe: with a base, with a skin, or with a server's models."""
