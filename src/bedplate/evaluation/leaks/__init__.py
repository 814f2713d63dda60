"""Rows that carry less evidence than they seem to: the skin has seen them, or they repeat each other.

seen_rows.py       which rows the run of a skin had in which split
row_table.py       a task's rows as groups are looked for in them, texts as vectors of their words
hidden_groups.py   what a file's columns, texts and order say of groups that a task does not declare,
                   and whether the task answers what was found
"""
