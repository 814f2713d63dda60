"""Skins and bases, asked: from inputs to parsed outputs."""
