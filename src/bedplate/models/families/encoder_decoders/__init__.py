"""Encoder–decoders: T5 and its kin, BART and its kin."""
