"""`dass.apply_masks`: a checkpoint that lost its zeros gets them back."""

import warnings
from pathlib import Path

from dass.arguments import check_flag, check_path
from dass.errors import InputError
from dass.files import complete_folder
from dass.masks.mask_file import MASKS, MaskFile, apply_to_checkpoint, check_masks_fit
from dass.masks.pruned_record import check_replaceable, history, read_record
from dass.model.checkpoint import Checkpoint
from dass.outputs import check_place
from dass.reports import AppliedReport


def apply_masks(folder: Path | str, masks: Path | str, out: Path | str, *, overwrite: bool = False) -> AppliedReport:
    """Put a model's masks on a checkpoint again, whose weights somebody has changed since it was pruned.

    A merged LoRA and a quantizer that corrects its errors (GPTQ) write into removed weights; rounding to the nearest
    does not. Removed weights become +0.0, everything else is the input's byte for byte. Never more than one tensor of
    the model is in memory.

    Args:
        folder: a transformers checkpoint folder with safetensors, with the tensors that were pruned, not quantized.
        masks: what `prune_checkpoint(..., masks=FOLDER)` kept, artifacts/masks of a workspace, or a mask file.
        out: where to write, as `folder_out` of `prune_checkpoint`.
        overwrite: as for `prune_checkpoint`.

    Returns:
        How many removed weights had come back.

    Raises:
        InputError: a value that cannot be used, masks of another model, or weights that are quantized. Nothing was
            written.

    Example:
        >>> dass.prune_checkpoint("llama", "llama-2-4", input_ids, pattern="2:4", masks="llama-2-4.masks")
        >>> dass.apply_masks("llama-2-4-with-lora", "llama-2-4.masks", "llama-2-4-tuned").restored  # had come back
    """
    folder, masks, out = check_path("folder", folder), check_path("masks", masks), check_path("out", out)
    check_flag("overwrite", overwrite)
    file = masks / MASKS if masks.is_dir() else masks
    if not file.exists():
        raise InputError(
            f"masks is {masks}: expected a mask file, or a folder with {MASKS} in it, as "
            "prune_checkpoint(..., masks=FOLDER) keeps."
        )
    check_place(out, {"the input": folder, "the masks": masks})
    check_replaceable(out, overwrite)
    base, keep = Checkpoint(folder), MaskFile(file)
    base.check_prunable()
    check_masks_fit(base, keep)
    removed = restored = 0
    for name in keep:
        lost = keep[name].logical_not()
        removed += int(lost.sum())
        restored += int(base.load([name])[name].ne(0).logical_and(lost).sum())
    with complete_folder(out) as writing:
        record = read_record(masks) or {}
        settings = record.get("settings")
        found = apply_to_checkpoint(base, keep, writing, settings=settings, history=history(folder))
        check_replaceable(out, overwrite)  # once more: minutes have passed
    if (line := found.told(folder)) is not None:
        warnings.warn(line, stacklevel=2)
    return AppliedReport(removed, restored, found.left)
