"""Corpora to pretrain on: from raw sources over curation to shards of tokens that a loader reads."""
