"""Decoders whose layers are attention and one feed-forward."""
