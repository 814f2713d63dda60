"""State that outlives a request: batches, files, feedback, stored responses."""
