"""Ladders that are stopped draw no pictures either, and read the speed that they plan with off as few rows."""

from tests.adaptation.conftest import fewest_readings, quick_pictures

__all__ = ["fewest_readings", "quick_pictures"]
