"""Decoders with mixtures of experts in place of feed-forwards."""
