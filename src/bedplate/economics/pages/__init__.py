"""Pages of sliders, figures and plots for `plan train`, `plan serve` and `plan decide`: plain dicts, and their scripts.

Each page has the inputs of the arithmetic, not a picture of its results: what moves in the browser is computed there by
the same formulas, which numbers/formula.py writes as JavaScript. What is no formula (which layout fits, how an engine's
queue behaves) goes in as a table of all that the sliders can reach.

training_page.py: training.js                                          serving_page.py: fleets.js, serving.js
decision_page.py: decision_costs.js, decision_text.js, decision.js     report/assets: what all pages have in common
"""
