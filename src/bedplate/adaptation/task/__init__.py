"""The `adapt` part of a task file, and what it names."""
