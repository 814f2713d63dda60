"""Running models: requests, caches, sampling, the engine, and predictions of skins."""
