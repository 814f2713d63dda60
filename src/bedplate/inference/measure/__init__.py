"""This machine measured: the doctor, and speeds for the cost model."""
