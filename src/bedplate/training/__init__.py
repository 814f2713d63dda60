"""Training: one loop, objectives with exact weights, packing, schedules, and state that resumes bit for bit."""
