"""Curation rules: each with its settings, the source of its thresholds, and a detail for each refusal.

draft.py    a document on its way through the rules, and its words as numbers
quality.py  heuristics of Gopher, FineWeb, C4, The Stack and StarCoder; e-mail and IP addresses
presets.py  rules that ask a model (the language, a skin's judgement), RULES, and PRESETS: which rules, in which order
"""
