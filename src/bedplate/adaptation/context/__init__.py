"""What every rung works with: rows, bases, time, throughput."""
