"""The decoder's forward pass as one compiled call on a CPU; the torch path stays the reference and the fallback."""
