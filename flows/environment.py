"""Defaults of the tools' environment. Set before Prefect, MLflow or DVC is imported; what the caller set stays."""

import os
from pathlib import Path

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
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",  # it migrates its database first, which took 10 s
    "PREFECT_CLI_PROMPT": "false",
    # What Prefect starts (its server, a scheduled run) takes no module from the folder it is started in: a user's
    # tasks.py or typing.py may lie there.
    "PYTHONSAFEPATH": "1",
    # Noise.
    "GIT_PYTHON_REFRESH": "quiet",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def configure(root: Path) -> None:
    """Set the defaults for work in the workspace at `root`. PREFECT_HOME is inside it unless it is set."""
    for name, value in {**NOTHING_LEAVES, **_DEFAULTS, "PREFECT_HOME": str(root / ".dass" / "prefect")}.items():
        os.environ.setdefault(name, value)
