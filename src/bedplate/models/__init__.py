"""Architectures as data (specs, families), as modules (layers, decoder, encoder), and as files (checkpoints)."""
