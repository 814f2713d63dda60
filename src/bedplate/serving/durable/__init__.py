"""What a server keeps on disk: batches, feedback, replies."""
