"""What the commands of `dass study` leave behind: tables, pictures and a page in one folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.files import complete_file
from tasks.study.cells import Asked
from tasks.study.figures import draw
from tasks.study.outliers import OutlierStudy
from tasks.study.page import Study, page
from tasks.study.tables import check_ours, read_study, write_study
from tasks.study.verdict import across_models, paragraph
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings

OUTLIERS = "outliers"
_TABLES = ("outliers", "ablation", "stability")


def study_outliers(ws: Workspace, settings: Settings, asked: Asked, folder: Path, command: str) -> dict[str, Any]:
    """Measure what is missing, and write the folder anew.

    Args:
        ws: a workspace in which stage `baseline` has run.
        settings: its settings.
        asked: what to measure.
        folder: for the results; made if missing.
        command: what the page says it was made by.

    Raises:
        InputError: as `OutlierStudy`; the folder holds something else.
        NumericalError: the model, or a pruned one, computes NaN or infinity.
    """
    check_ours(folder, OUTLIERS)
    about, tables = OutlierStudy(ws, settings, asked).measure()
    write_study(folder, OUTLIERS, about, tables)
    pictures = draw(folder, about, tables)
    text = page([(about, tables)], command)
    file = folder / f"{OUTLIERS}.md"
    with complete_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return {
        "model": about["model"],
        "folder": str(folder.resolve()),
        "page": str(file),
        "pictures": pictures,
        "cells": len(tables["ablation"]),
        "verdict": [paragraph(about, tables)],
    }


def write_page(folders: Sequence[Path], file: Path, command: str) -> dict[str, Any]:
    """One page of several studies of outliers.

    Raises:
        InputError: a folder without such a study; two studies of one model.
    """
    studies: list[Study] = [read_study(folder, OUTLIERS, _TABLES) for folder in folders]
    names = [about["model"] for about, _ in studies]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"Two of the folders are studies of {', '.join(sorted(twice))}: expected one a model.")
    text = page(studies, command)
    with complete_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    told = [paragraph(about, tables) for about, tables in sorted(studies, key=lambda study: study[0]["parameters"])]
    return {
        "models": names,
        "page": str(file),
        "verdict": [*told, *([across_models(studies)] if len(studies) > 1 else [])],
    }
