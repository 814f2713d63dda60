"""What training and tuning cost, and how a model is laid out over devices."""
