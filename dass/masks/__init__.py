"""Masks as files, and what is proved about them.

Nothing here runs a model.
"""
