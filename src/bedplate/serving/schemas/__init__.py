"""Request fields, reply shapes and errors of each protocol. No state."""
