"""A user's own file under artifacts/ is named before a stage or DVC would remove it with the folder."""

from pathlib import Path

import pytest

from dass.errors import InputError
from tasks.workspace.artifacts import refuse_strangers
from tasks.workspace.folder import Workspace

FOLDERS = ("base", "calibration", "masks", "recovered", "pruned", "evaluation", "measures")


@pytest.mark.parametrize("name", FOLDERS)
def test_what_the_stages_made_is_theirs_and_anything_else_is_not(finished: Workspace, name: str) -> None:
    folder = finished.base.parent / name
    refuse_strangers(finished, folder)
    (folder / "more").mkdir()
    (folder / "more" / "note.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=rf"artifacts/{name}/more/note\.txt was not made by a stage"):
        refuse_strangers(finished, folder)
    refuse_strangers(finished, folder, {"more/note.txt"})


def test_a_folder_without_our_record_is_somebody_s_own(finished: Workspace) -> None:
    (finished.base / "source.json").unlink()
    with pytest.raises(InputError, match=r"artifacts/base/config\.json and 4 more was not made by a stage"):
        refuse_strangers(finished, finished.base)


def test_re_fitted_weights_are_the_stages_too(tmp_path: Path) -> None:
    ws = Workspace(tmp_path)
    for folder in (ws.masks, ws.recovered):
        (folder / "updates").mkdir(parents=True)
        (folder / "updates" / "000.safetensors").touch()
        refuse_strangers(ws, folder)
    refuse_strangers(ws, ws.pruned)
