"""What training and serving cost, and what follows from it; free of torch."""
