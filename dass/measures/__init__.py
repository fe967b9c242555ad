"""What a model's predictions say of it: losses token by token, and how far two models' predictions lie apart.

Pure: models and token ids in, tensors and figures out. Nothing here reads or writes a file.
"""
