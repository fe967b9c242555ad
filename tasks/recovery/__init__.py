"""Stage `recover`: what pruning left is trained against the dense model. The mathematics is in `dass.recovery`."""
