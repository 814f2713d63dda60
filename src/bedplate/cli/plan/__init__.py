"""What a foundation model costs: to train, to serve, and whether to prompt, tune, buy or build.

Counts are exact where arithmetic allows, calibrated on measurement where it does not, and given as ranges where neither
is possible. No verb but `calibrate` runs a model.
"""

from __future__ import annotations

# As VERBS in cli/main.py: verb: (module with a function of that name, one line of help).
ACTIONS: dict[str, tuple[str, str]] = {
    "train": ("bedplate.cli.plan.train", "A model, tokens and a cluster: layout, time, energy and dollars."),
    "serve": ("bedplate.cli.plan.serve", "Traffic and a machine: latency, throughput, replicas, dollars a call."),
    "decide": (
        "bedplate.cli.plan.decide",
        "Prompt, tune, retrieve, buy or build: what is cheapest, and what would flip it.",
    ),
    "amortise": ("bedplate.cli.plan.amortise", "Who carries a base's cost: profit and loss by skin and tenant."),
    "scaling": ("bedplate.cli.plan.scaling", "A law from a ladder of small runs: what a larger one reaches."),
    "calibrate": ("bedplate.cli.plan.calibrate", "Measure this machine, for predictions of its latency and prices."),
}
