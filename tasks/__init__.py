"""One step each, with its input and output: thin, over `dass` and the tools. No arithmetic, and no order of steps."""
