"""Defaults of the tools' environment. Set before Prefect, MLflow or DVC is imported; what the caller set stays."""

import os
import tomllib
from pathlib import Path

from tasks.workspace.databases import sqlite_url

NOTHING_LEAVES = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
_DEFAULTS = {
    # Prefect's log goes to its own database; the terminal shows dass's lines and errors.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "dass",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_CLI_PROMPT": "false",
    # What Prefect starts (its server, a scheduled run) takes no module from the folder it is started in: a user's
    # tasks.py or typing.py may lie there.
    "PYTHONSAFEPATH": "1",
    # torch asks for huge pages: a new large tensor costs a fault a page, up to a third of the time on a CPU. Read
    # when its first memory is taken.
    "THP_MEM_ALLOC_ENABLE": "1",
    # Noise.
    "GIT_PYTHON_REFRESH": "quiet",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
_ELSEWHERE = (
    "PREFECT_API_URL",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL",
    "PREFECT_SERVER_DATABASE_NAME",
    "PREFECT_SERVER_DATABASE_DRIVER",
    "PREFECT_API_DATABASE_CONNECTION_URL",
)
_HOME, _PROFILES = "PREFECT_HOME", "PREFECT_PROFILES_PATH"
_DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"


def configure(root: Path) -> None:
    """Set the defaults for work in the workspace at `root`. PREFECT_HOME is inside it unless the caller chose one.

    The profiles are then still those that the user's `prefect` command has.
    """
    defaults = {**NOTHING_LEAVES, **_DEFAULTS}
    if not is_chosen(_HOME):
        defaults[_HOME] = str(root / ".dass" / "prefect")
        profiles = Path("~/.prefect/profiles.toml").expanduser()
        if profiles.exists() and not is_chosen(_PROFILES):
            defaults[_PROFILES] = str(profiles)
    for name, value in defaults.items():
        if not os.environ.get(name):
            os.environ[name] = value
    home = Path(os.environ.get(_HOME, "")).expanduser()
    if "?" in str(home):  # Prefect's own URL of its database would end there
        os.environ.setdefault(_DATABASE, sqlite_url("sqlite+aiosqlite", home / "prefect.db"))


def own_prefect_database() -> Path | None:
    """Where Prefect servers of our own keep past runs; None where Prefect's settings may name a server, or another
    database. Found out without Prefect, which takes a second to import. Call behind `configure`."""
    home = os.environ.get(_HOME)
    if not home or any(is_chosen(name) for name in _ELSEWHERE):
        return None
    profiles = Path(os.environ.get(_PROFILES) or Path(home) / "profiles.toml").expanduser()
    try:
        named = tomllib.loads(profiles.read_text(encoding="utf-8")).get("profiles", {}) if profiles.is_file() else {}
        if any(name in values for values in named.values() for name in _ELSEWHERE):
            return None
    except (OSError, ValueError, AttributeError, TypeError):  # Prefect says what is wrong with it
        return None
    return Path(home).expanduser() / "prefect.db"


def is_chosen(name: str) -> bool:
    """Whether one of the places that Prefect reads names the setting. What is wrong with a file is told later."""
    if os.environ.get(name):
        return True
    from dotenv import dotenv_values

    field = name.removeprefix("PREFECT_").lower()
    try:
        if Path(".env").is_file() and dotenv_values(".env").get(name):
            return True
        for path, table in (("prefect.toml", ()), ("pyproject.toml", ("tool", "prefect"))):
            if Path(path).is_file():
                values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
                for key in table:
                    values = values.get(key, {})
                if values.get(field):
                    return True
    except (OSError, ValueError, AttributeError):
        pass
    return False
