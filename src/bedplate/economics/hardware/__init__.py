"""Devices and measured machines as data."""
