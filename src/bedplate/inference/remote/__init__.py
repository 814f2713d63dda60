"""Remote models: endpoints, what they answered and what that cost."""
