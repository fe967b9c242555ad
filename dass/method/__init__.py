"""What is asked and which weights go: pure functions of tensors and plans.

No model, no file and no process is known here.
"""
