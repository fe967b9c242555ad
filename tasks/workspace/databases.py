"""SQLite files as SQLAlchemy names them."""

from pathlib import Path
from urllib.parse import quote


def sqlite_url(driver: str, path: Path) -> str:
    """The URL of a database file, for a driver such as "sqlite" or "sqlite+aiosqlite".

    A question mark in the path would begin the URL's query. SQLite's own URIs can name such a file.
    """
    if "?" not in str(path):
        return f"{driver}:///{path}"
    # With the driver in full: MLflow makes folders for what begins with "sqlite:///".
    named = driver if "+" in driver else f"{driver}+pysqlite"
    return f"{named}:///file:{quote(str(path))}?uri=true"
