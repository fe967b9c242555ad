"""Recovery: a pruned model trained against its own dense base, its masks held. No files but its checkpoints.

Axes: W windows, L tokens of a window, N = W · L tokens of a batch, n of a slice, H hidden, V vocabulary, K kept logits.
"""
