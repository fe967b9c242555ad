"""`python -m flows` is `dass`."""

from flows.cli import main

main()
