"""params.yaml: a section a file, strict and frozen, and the place where bad settings are refused."""

from tasks.workspace.settings.calibration import Bos, Calibration, CalibrationText
from tasks.workspace.settings.engine import Engine
from tasks.workspace.settings.evaluate import Evaluate
from tasks.workspace.settings.notify import Notify
from tasks.workspace.settings.promote import Promote, TaskDrop
from tasks.workspace.settings.prune import Prune
from tasks.workspace.settings.reading import load_settings, read_params, validate_settings
from tasks.workspace.settings.recover import Recover
from tasks.workspace.settings.register import Register
from tasks.workspace.settings.sections import Settings
from tasks.workspace.settings.sources import DType, Source, Sources
from tasks.workspace.settings.sweep import Sweep

__all__ = [
    "Bos",
    "Calibration",
    "CalibrationText",
    "DType",
    "Engine",
    "Evaluate",
    "Notify",
    "Promote",
    "Prune",
    "Recover",
    "Register",
    "Settings",
    "Source",
    "Sources",
    "Sweep",
    "TaskDrop",
    "load_settings",
    "read_params",
    "validate_settings",
]
