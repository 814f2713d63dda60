"""One run: its directory, data, model, training, evaluation at checkpoints, and the base that it ends in."""
