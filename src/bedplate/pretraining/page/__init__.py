"""A run's page (curves and facts in one file that fetches nothing) and the model card of its base."""
