"""`python -m flows` is `dass`."""

from flows.cli.pipeline import main

main()
