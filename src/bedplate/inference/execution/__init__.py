"""In which dtype, kernel and weights a base is run: measured, and chosen."""
