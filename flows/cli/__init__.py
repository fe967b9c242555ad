"""The command line: `main` is its entry, each group of commands a file."""
