"""Text that occurs more than once: in the corpus itself, or in what a model will be evaluated on.

words.py           words without case, accents, punctuation and numbers, as hashes
minhash.py         exact copies and near-duplicates, and their clusters
contamination.py   n-grams of evaluations
"""
