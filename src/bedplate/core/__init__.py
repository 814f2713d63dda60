"""Foundations that every room stands on: errors, config files, files, progress, statistics, executors."""
