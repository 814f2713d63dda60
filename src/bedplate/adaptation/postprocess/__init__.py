"""What is done with a skin later: reproduce, monitor, compare."""
