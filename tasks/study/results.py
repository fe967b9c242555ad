"""What the commands of `dass study` leave behind: tables, pictures and a page in one folder."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.files import complete_file
from tasks.study.cells import Asked
from tasks.study.figures import draw, draw_across
from tasks.study.outliers import OutlierStudy
from tasks.study.page import page
from tasks.study.tables import check_ours, read_study, write_study
from tasks.study.verdict import Study, across_models, by_size, paragraph
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
    about["command"] = command
    write_study(folder, OUTLIERS, about, tables)
    pictures = draw(folder, about, tables)
    text = page([(about, tables)], command, [pictures])
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


def write_page(folders: Sequence[Path], file: Path) -> dict[str, Any]:
    """One page of several studies of outliers, with its pictures in a folder beside it, NAME-plots.

    Raises:
        InputError: a folder without such a study; two studies of one model.
    """
    studies: list[Study] = [read_study(folder, OUTLIERS, _TABLES) for folder in folders]
    names = [about["model"] for about, _ in studies]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"Two of the folders are studies of {', '.join(sorted(twice))}: expected one a model.")
    studies = by_size(studies)
    plots = file.parent / f"{file.stem}-plots"
    folders = [plots / re.sub(r"[^\w.-]+|^\.+", "-", about["model"]) for about, _ in studies]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    pictures = [
        [f"{plots.name}/{folder.name}/{name}" for name in draw(folder, *study)]
        for folder, study in zip(folders, studies, strict=True)
    ]
    across = f"{plots.name}/{draw_across(plots, studies)}" if len(studies) > 1 else None
    commands = [f"{about['command']} --workspace {about['model']}" for about, _ in studies]
    places = " ".join(f"{about['model']}/study/{OUTLIERS}" for about, _ in studies)
    commands.append(f"dass study page {places} --output {file.name}")
    text = page(studies, "\n".join(commands), pictures, across)
    with complete_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    told = [paragraph(about, tables) for about, tables in studies]
    return {
        "models": names,
        "page": str(file),
        "verdict": [*told, *([across_models(studies)] if len(studies) > 1 else [])],
    }
