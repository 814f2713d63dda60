"""The server's configuration file and its sections."""
