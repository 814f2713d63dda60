"""Architectures as plain data; free of torch."""
