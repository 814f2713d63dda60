"""Served bases and skins: names, engines, residency in memory."""
