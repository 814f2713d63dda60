"""Foundations of every package: errors, config files, files, progress, statistics, executors."""
