"""Curation rules: each with its settings, the source of its thresholds, and a detail for each refusal.

draft.py        a document on its way through the rules
vocabulary.py   its words, as spaCy's blank English tokenizer splits them, as numbers
quality.py      heuristics of Gopher, FineWeb, C4, The Stack and StarCoder
repetition.py   Gopher's repetition rules
classifiers.py  rules that ask a model: the language, a skin's judgement
personal.py     e-mail and IP addresses
presets.py      RULES, and PRESETS: which rules, in which order, for prose and for code
"""
