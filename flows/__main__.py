"""`python -m flows` is `dass`."""

from flows.cli.main import main

main()
