"""The layers that architectures are composed of: attention, recurrence, feed-forwards, experts, norms, positions.

No code here depends on a model family.
"""
