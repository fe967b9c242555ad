"""Whether a checkpoint holds the model that its config describes: every tensor, no other, in the config's shapes.

transformers makes up what is missing, drops what is left over, and says so in a notice. Here both are refused, by name.
"""

import logging
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

from dass.errors import InputError
from dass.model.checkpoint import Checkpoint
from dass.model.checkpoint_folder import INDEX_FILE, declared_bytes
from dass.model.config_bounds import check_config_bounds
from dass.model.names import StoredNames
from dass.model.pretrained import is_recomputed, load_config, untied, untrained

logger = logging.getLogger("dass")


def check_checkpoint(folder: Path) -> None:
    """Compare what a checkpoint folder declares with what it holds. Reads headers only, but for weights stored twice.

    Raises:
        InputError: a config that makes no causal LM, quantized weights, or as `check_complete`.
    """
    checkpoint = Checkpoint(folder)
    check_config_bounds(checkpoint)
    checkpoint.check_prunable()
    declared = declared_bytes(folder)
    if declared not in (None, checkpoint.stored_bytes):
        logger.warning(
            "%s says that the tensors take %s bytes (total_size), and they take %d. It names the tensors rightly.",
            *(folder / INDEX_FILE, declared, checkpoint.stored_bytes),
        )
    config = load_config(folder)
    with torch.device("meta"):
        model = untrained(config)
    check_complete(checkpoint, StoredNames.of(checkpoint, model), model)


def check_complete(checkpoint: Checkpoint, names: StoredNames, model: PreTrainedModel) -> None:
    """Compare a checkpoint with its model.

    Args:
        checkpoint: the stored tensors.
        names: what they are in the model.
        model: made from the config; may be on the meta device.

    Raises:
        InputError: a parameter or buffer that is not stored, a stored tensor that has no place in the model, one of
            another shape than the config's, or two values for weights that the config ties.
    """
    folder, kind = checkpoint.folder, type(model).__name__
    missing, left_over = names.unmatched()
    unexpected = [name for name in left_over if not is_recomputed(name)]
    if missing:
        raise InputError(
            f"{folder} does not hold {missing[0]} ({len(missing)} of {kind}'s parameters): expected what config.json "
            "describes. Fetch the checkpoint again, or correct config.json."
        )
    if unexpected:
        raise InputError(
            f"{folder} holds {unexpected[0]} ({len(unexpected)} such), for which the {kind} that config.json describes "
            "has no place. Correct config.json, or fetch the checkpoint again."
        )
    names.check_shapes()
    for target, source in names.stored_twice():
        pairs = zip(names.pieces(target), names.pieces(source), strict=True)
        if not all(torch.equal(checkpoint.bits(one.stored), checkpoint.bits(other.stored)) for one, other in pairs):
            raise InputError(untied(str(folder), target, source))


def class_to_name(folder: Path) -> str | None:
    """The class that a checkpoint's config ought to name in `architectures`, where it names none that generates text.

    MLflow's flavour, for one, loads the class that is named there: a bare decoder or a classifier would lose the head,
    and a class that transformers does not have would be looked for in code that comes with the model.
    """
    config = load_config(folder)
    named = getattr(transformers, next(iter(config.architectures or []), ""), None)
    if isinstance(named, type) and issubclass(named, PreTrainedModel) and named.can_generate():
        return None
    with torch.device("meta"):
        return type(untrained(config)).__name__


def check_declared_dtype(folder: Path) -> None:
    """Refuse a config whose dtype cannot hold the stored weights: whoever loads it "as it is" would round them.

    Raises:
        InputError: it names a narrower type than the weights are stored in.
    """
    declared, stored = load_config(folder).dtype, Checkpoint(folder).main_dtype
    if isinstance(declared, torch.dtype) and torch.promote_types(declared, stored) != declared:
        asked, is_ = (str(dtype).removeprefix("torch.") for dtype in (declared, stored))
        raise InputError(
            f"{folder / 'config.json'} says dtype {asked}, and the weights are stored as {is_}: loading would round "
            f"them. Set sources.dtype to the one that is meant, {asked} or {is_}."
        )
