"""Where things lie that are kept for this user, whichever workspace."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """What is kept for this user, whichever workspace: $DASS_CACHE, or dass in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("DASS_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "dass"
