"""A causal LM taken apart, in memory or on disk: its decoder layers, their GLU MLPs, its stored tensors.

Nothing here decides which weights go.
"""
