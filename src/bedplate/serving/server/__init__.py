"""The application: startup, middleware, monitoring and shutdown."""
