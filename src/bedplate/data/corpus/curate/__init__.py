"""What is kept of a source: rules, each with its settings, the source of its thresholds, and a detail for each refusal.

draft.py       a document on its way through the rules
vocabulary.py  its words, as spaCy's blank English tokenizer has them, as numbers
quality.py     Gopher's and FineWeb's heuristics
repetition.py  Gopher's repetition rules
lines.py       C4's rules for lines
language.py    the language, by fastText
code.py        The Stack's and StarCoder's rules for source code
personal.py    addresses of mail and of machines
judged.py      a model's judgement
presets.py     RULES, and PRESETS: which of them, in which order, for prose and for code
"""
