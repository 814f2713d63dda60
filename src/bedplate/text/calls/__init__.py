"""Calls of tools, and reasoning, in what a base writes: formats, reading, and the grammar that holds a reply to one."""
