"""Numbers in files: quantities with ranges, prices, bounds, sums of money."""
