"""Studies of one model: what its activations look like, which score serves it, which matrices it cannot spare.

A study reads what `dass run --until baseline` made and changes nothing of it. What it has measured lies under
.dass/study, a file for each finished piece of work, so that a killed study goes on and a finished one computes nothing.
"""
