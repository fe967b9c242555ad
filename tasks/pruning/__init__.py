"""Stages `prune` and `materialize`: masks from base and calibration, the pruned checkpoint from base and masks.

The arithmetic is in `dass`.
"""
