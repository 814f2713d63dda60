"""One reader for each kind of source.

part.py    a unit of work, and what reading it gives
text.py    text files, source code, the standard library
tables.py  JSON lines and Parquet, on disk
web.py     HTML and web archives, the article extracted
remote.py  releases of the package index; data sets of the Hugging Face Hub, as streams
table.py   READERS
"""
