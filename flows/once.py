"""`--with section.key=value`: settings for one run. params.yaml and dass.lock.json stay as they are."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from dass.errors import InputError
from dass.files import scratch_folder
from flows.overrides import rewrite
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import read_params

_NAME = "once"


def check_once(changes: Sequence[tuple[str, Any]], option: str = "--with") -> None:
    """Refuse what is no matter of one run, or of one schedule; `option` gave it.

    Raises:
        InputError: a rule of promotion, which params.yaml says.
    """
    for key, _ in changes:
        if key.partition(".")[0] == "promote":
            raise InputError(
                f"{option} {key}: rules of promotion hold for every run, so they stay in params.yaml. "
                f"Change it there: dass run -S {key}=..."
            )


@contextmanager
def settings_once(ws: Workspace, changes: Sequence[tuple[str, Any]], *, always: bool = False) -> Iterator[Workspace]:
    """The workspace with other settings, for one run. Call inside `workspace_lock`.

    Its params.yaml and dass.lock.json are copies in .dass that go at the end. DVC and the stages read those, and
    dvc.lock records them as what was used.

    Args:
        ws: where.
        changes: key -> value, in the place of what params.yaml says.
        always: also where nothing differs, to have copies that may be written.

    Yields:
        The workspace itself where nothing differs.

    Raises:
        InputError: a key leads nowhere, or the settings cannot be used.
    """
    changed: dict[str, Any] = {}
    read_params(ws.params)  # says in one line what is wrong with the file, if anything is
    text = ws.params.read_text(encoding="utf-8")
    if changes:
        changed, text, _ = rewrite(text, changes, "--with")
    if not changed and not always:
        yield ws
        return
    with scratch_folder(ws.private, _NAME) as folder:
        once = replace(ws, once=folder)
        once.params.write_text(text, encoding="utf-8")
        if ws.lock_file.exists():
            shutil.copyfile(ws.lock_file, once.lock_file)
        yield once
