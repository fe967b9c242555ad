"""DVC, behind one door: which stage has to run, what it was run on, and where its outputs are kept.

No other package calls DVC.
"""
