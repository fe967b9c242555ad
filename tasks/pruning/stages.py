"""Stages `prune` and `materialize`, from start to end."""

import logging
from collections.abc import Callable

from dass.engine.choice import Choice
from dass.engine.ranks import joined_ranks
from dass.engine.run import LayerRecord, finished_reports
from dass.errors import InputError
from dass.files import complete_folder
from dass.masks.mask_file import MaskFile, apply_to_checkpoint
from dass.masks.updates import named_updates
from dass.model.checkpoint import Checkpoint
from tasks.pruning.recovered import RECOVERY, check_recovery_fits
from tasks.pruning.run import MANIFEST, MASKS, UPDATES, PruningRun, read_stage
from tasks.workspace.digests import remember
from tasks.workspace.folder import Workspace
from tasks.workspace.progress import progress
from tasks.workspace.settings import Settings

logger = logging.getLogger("dass")


def prune(
    workspace: Workspace,
    settings: Settings,
    do_layer: Callable[[PruningRun, int], LayerRecord] = PruningRun.layer,
    choose: Callable[[PruningRun], Choice | None] = PruningRun.choose,
) -> None:
    """Stage `prune`: artifacts/base and artifacts/calibration to artifacts/masks.

    Under torchrun every process does its share, and rank 0 writes.

    Args:
        workspace: where.
        settings: sections `prune` and `engine`.
        do_layer: does one layer; the flow gives one that is a Prefect task.
        choose: lets `method: auto` choose, likewise.

    Raises:
        InputError, NumericalError, ProcessesError: as in PruningRun.
    """
    with joined_ranks() as ranks:
        run = PruningRun(workspace, settings, ranks)
        try:
            if settings.prune.method == "auto" and (choice := choose(run)) is not None and ranks.is_first:
                logger.info("auto chose %s", choice.told)
            layers = range(run.layer_count)
            for index in progress(layers, "prune layers") if ranks.is_first else layers:
                do_layer(run, index)
        finally:
            run.close()
        if ranks.is_first:
            run.finish(workspace.masks)
            run.discard()


def materialize(workspace: Workspace, settings: Settings) -> None:
    """Stage `materialize`: artifacts/base × artifacts/masks, and what artifacts/recovered changed, to artifacts/pruned.

    Raises:
        InputError: the masks belong to another base, or what was recovered to other masks.
    """
    source = read_stage(workspace.base / "source.json", "sources")
    manifest = read_stage(workspace.masks / MANIFEST, "prune")
    if manifest["base"]["digest"] != source["digest"]:
        raise InputError(f"{workspace.masks} was made from another base than {workspace.base}. Run: dass run")
    masks = MaskFile(workspace.masks / MASKS)
    recovery = read_stage(workspace.recovered / RECOVERY, "recover")
    check_recovery_fits(recovery, manifest, workspace.recovered)
    named = [(workspace.masks / UPDATES, manifest["updates"]), (workspace.recovered / UPDATES, recovery.get("updates"))]
    updates, tuned = named_updates(masks, named)
    with complete_folder(workspace.pruned) as folder:
        left = apply_to_checkpoint(
            Checkpoint(workspace.base),
            masks,
            folder,
            updates,
            tuned=tuned,
            settings=manifest["settings"]["prune"],
            history=source.get("pruned"),
            remember=remember,
        )
        if line := left.told(workspace.base):
            logger.warning(line)


def seconds_per_layer(workspace: Workspace) -> list[float] | None:
    """Wall seconds each layer of the workspace's masks took, or None when they were not made here."""
    fingerprint = read_stage(workspace.masks / MANIFEST, "prune")["fingerprint"]
    reports = list(finished_reports(workspace.work / fingerprint))
    return [report.seconds for report in reports] if reports else None
