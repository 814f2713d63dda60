"""The routes, by protocol."""
