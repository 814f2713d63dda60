"""Packed rows: where their documents stand, and layouts in which none of them sees another."""
