"""What inference runs as one operation where training runs several."""
