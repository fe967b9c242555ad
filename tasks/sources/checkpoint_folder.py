"""A transformers checkpoint folder as a source: which of its files count, whether they are whole, and their copy."""

import logging
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.files import read_json, write_json
from dass.masks.pruned_record import history, told
from dass.model.checkpoint_folder import Contents, contents
from tasks.workspace.digests import copy_remembered
from tasks.workspace.settings import DType

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

logger = logging.getLogger("dass")


def checkpoint_files(folder: Path) -> dict[str, Path]:
    """The files of the checkpoint in a folder, by name relative to it, sorted, after checking that it is one.

    Raises:
        InputError: no config, no safetensors, pickled weights only, shards that are not whole, or a link that leaves
            the folder or leads to nothing.
    """
    return {name: folder / name for name in _sorted_out(folder).names}


def _sorted_out(folder: Path) -> Contents:
    if not (folder / "config.json").is_file():
        raise InputError(f"No config.json in {folder}: expected a transformers checkpoint folder.")
    for path in folder.iterdir():
        if path.is_symlink() and not path.exists():
            raise InputError(f"{path} is a link to nothing. Fetch the checkpoint again.")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        found = f"only pickled weights ({pickles[0]}), which can run code when read" if pickles else "no weights"
        raise InputError(f"{folder} holds {found}: expected safetensors. Save it again with save_pretrained.")
    sorted_out = contents(folder)
    # The hub's cache keeps the files of a snapshot beside it: blobs/ and snapshots/COMMIT/ of one repository.
    home = folder.resolve().parent.parent if folder.resolve().parent.name == "snapshots" else folder.resolve()
    for name in sorted_out.names:
        if not (folder / name).resolve().is_relative_to(home):
            raise InputError(
                f"{folder / name} is a link that leaves {folder}: expected the file itself. Copy it there."
            )
    return sorted_out


def copy_checkpoint(origin: Path, folder: Path) -> dict[str, str]:
    """Copy the files of a checkpoint, after checking them. What is left behind is told in one line.

    Returns:
        Name -> sha256 of what was copied.

    Raises:
        InputError: this is no whole checkpoint, transformers does not read its config, its weights are not exactly
            those that the config describes or are not pruned, or it has no tokenizer.
    """
    from dass.model.complete import check_checkpoint

    found = _sorted_out(origin)
    check_checkpoint(origin)
    if not any((origin / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        raise InputError(f"No tokenizer in {origin}: expected tokenizer.json. Put the model's own there.")
    for line in (found.told(origin), told(origin, history(origin))):
        if line is not None:
            logger.warning(line)
    for name in found.names:
        (folder / name).parent.mkdir(exist_ok=True)
    return {name: copy_remembered(origin / name, folder / name).sha256 for name in found.names}


def make_plain(folder: Path, dtype: DType) -> None:
    """Make a copied checkpoint one that anybody can load: in `dtype`, and with configs that refer to nothing outside.

    What is dropped is said in the log.

    Raises:
        InputError: `dtype` is "auto", and the config names a type that cannot hold the stored weights.
    """
    from dass.model.complete import check_declared_dtype, class_to_name
    from dass.model.references import drop_references

    for dropped in drop_references(folder):
        logger.warning("Left out of the base checkpoint's %s: what they refer to is not in it.", dropped)
    config = read_json(folder / "config.json")
    named, read_as = config.get("architectures"), class_to_name(folder)
    if read_as is not None:
        logger.warning("The base checkpoint's config.json now names the class %s, not %s.", read_as, named)
        write_json(folder / "config.json", {**config, "architectures": [read_as]})
    if dtype == "auto":
        check_declared_dtype(folder)
    cast_checkpoint(folder, dtype)


def cast_checkpoint(folder: Path, dtype: DType) -> None:
    """Store every floating-point tensor of a copied checkpoint as `dtype`; "auto" leaves the bytes as they are."""
    if dtype == "auto":
        return
    import torch
    from safetensors.torch import load_file, save_file

    wanted: torch.dtype = getattr(torch, dtype)
    stored = 0
    for file in sorted(folder.glob("*.safetensors")):
        tensors = {
            name: tensor.to(wanted) if tensor.is_floating_point() else tensor
            for name, tensor in load_file(file).items()
        }
        save_file(tensors, file, metadata={"format": "pt"})
        file.chmod(0o644)
        stored += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_json(folder / "config.json", _with_dtype(read_json(folder / "config.json"), dtype))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        values = read_json(index)
        write_json(index, {**values, "metadata": {**values.get("metadata", {}), "total_size": stored}})


def _with_dtype(config: dict[str, Any], dtype: DType) -> dict[str, Any]:
    """A config that says `dtype`, also by the key's name before transformers 5, and in the configs inside it."""
    inside = {
        key: _with_dtype(value, dtype)
        for key, value in config.items()
        if key.endswith("_config") and isinstance(value, dict) and {"dtype", "torch_dtype"} & {*value}
    }
    return {**config, **inside, "dtype": dtype, "torch_dtype": dtype}
