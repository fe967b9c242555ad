"""The layer-wise pass: calibration tokens go through one decoder layer after the other, which is pruned on the way.

Resumable, and shared by processes. No score and no file format lives here.
"""
