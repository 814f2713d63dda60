"""Authentication, rate limits and quotas."""
