"""The server's file, and what its sections mean."""
