"""Results of one benchmark in a JSON file: added one by one, so that an interrupted benchmark goes on.

A file holds what one machine measured. `environment` says which, `commands` which calls added figures, and each record
says when it was measured and from which commit.
"""

import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.paths import ROOT
from dass.errors import InputError
from dass.files import read_json, write_json

Record = dict[str, Any]


class Results:
    """Records of one benchmark. A record is found by its key: the fields that say what was measured."""

    def __init__(self, path: Path, fresh: bool = False) -> None:
        """Open or begin a file.

        Args:
            path: the JSON file.
            fresh: forget what it holds.

        Raises:
            InputError: another machine or other package versions measured what is in it.
        """
        self._path = path
        here = environment()
        self._content: dict[str, Any] = {"environment": here, "commands": [], "records": []}
        if path.exists() and not fresh:
            self._content = read_json(path)
            before = self._content["environment"]
            for name, value in here.items():
                if before.get(name) != value:
                    raise InputError(
                        f"{path} was measured with {name} {before.get(name)}, here it is {value}: figures of two "
                        "machines do not mix. Add --fresh to begin anew."
                    )

    @property
    def records(self) -> list[Record]:
        """Everything measured so far."""
        return list(self._content["records"])

    def find(self, key: Record) -> Record | None:
        """The record with these fields, or None."""
        return next((each for each in self.records if key.items() <= each.items()), None)

    def add(self, key: Record, figures: Record) -> Record:
        """Keep a measurement on disk."""
        record = key | figures | {"commit": commit(), "when": datetime.now().astimezone().isoformat(timespec="seconds")}
        self._content["records"].append(record)
        command = called_as()
        if command not in self._content["commands"]:
            self._content["commands"].append(command)
        write_json(self._path, self._content)
        return record


def environment() -> dict[str, Any]:
    """The machine and the versions that figures depend on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def commit() -> str:
    """Short hash of the code that measures, with "+" when tracked files differ from it."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        code = ["dass", "benchmarks", ":!benchmarks/results"]
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *code], check=False)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.returncode else "")


def called_as() -> str:
    """This process's command line, as typed from the repository's root; of files elsewhere their names."""
    script = Path(sys.argv[0])
    module = f"-m {script.parent.name}.{script.stem}" if script.parent == ROOT / "benchmarks" else script.name
    arguments = [re.sub(r"(?:(?<==)|^)/.*/", "", argument) for argument in sys.argv[1:]]
    return f"python {module} {shlex.join(arguments)}".strip()


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    text = information.read_text() if information.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()
