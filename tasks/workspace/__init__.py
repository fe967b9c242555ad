"""The folder a person works in: where its files lie, its settings, its lock, the devices and the progress shown.

Nothing here reads a model or a text.
"""
