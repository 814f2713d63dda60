"""Routes between versions, and shadows of them."""
