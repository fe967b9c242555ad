"""What goes in: models and texts from a hub, a folder or a package index, checked and made plain.

Nothing here knows of DVC, MLflow or pruning.
"""
