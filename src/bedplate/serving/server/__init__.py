"""The application: put together, run, watched, ended."""
