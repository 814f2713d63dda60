"""What a base can do besides its tasks: multiple-choice sets, loss on general text, refusals. One file per idea.

items.py            sets of multiple-choice items, from what can be pulled or a team's own file
multiple_choice.py  their score by log-likelihood, as lm-eval counts it
text.py             loss per token on documents that no task trains on
refusals.py         requests to refuse and requests to answer, the detector of refusals and its error rates
"""
