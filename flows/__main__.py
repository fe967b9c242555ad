"""`python -m flows` is `dass`."""

import os
import sys

# Python puts the folder it is started in first on its path, unless it is told not to (-P). A user's tasks.py or dass.py
# in a workspace is not meant for us.
if not sys.flags.safe_path and os.path.realpath(sys.path[0]) == os.getcwd():
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.realpath(here) != os.getcwd():
        del sys.path[0]

from flows.cli.main import main

main()
