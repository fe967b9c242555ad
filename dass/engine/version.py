"""The version of what the engine computes."""

ENGINE_VERSION = "4"
"""Changes whenever the same inputs may give other masks. Part of every fingerprint.

4: wide Gram matrices are summed by blocks, whose products a library may round otherwise.
"""
