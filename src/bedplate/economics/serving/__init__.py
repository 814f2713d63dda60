"""What serving costs: traffic on a replica, step by step."""
