"""The engine: one thread that owns a base and answers requests in batches."""
