"""What a model scores: the dense one and the pruned one, on the same text and the same tasks."""
