"""Text that is there more than once: in the corpus itself, or in what a model will be judged on.

words.py           words without case, accents, punctuation and numbers, as hashes
minhash.py         signatures of near-duplicates, and their clusters
duplicates.py      which documents of a corpus are left out as copies
contamination.py   n-grams of evaluations
"""
