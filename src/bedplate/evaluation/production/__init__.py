"""What a task knows of production: the system that runs today, and the traffic that it sees."""
