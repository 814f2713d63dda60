"""A base and its skins behind an OpenAI-compatible HTTP API."""
