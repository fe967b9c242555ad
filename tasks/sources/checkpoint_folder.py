"""A transformers checkpoint folder as a source: which of its files count, whether they are whole, and their copy."""

import shutil
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.files import read_json, sha256_file, write_json
from tasks.workspace.settings import DType

CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*")
"""What makes up a checkpoint. Everything else in its folder (pickles, code, other formats) stays where it is."""

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of a checkpoint folder, sorted, after checking that they are one.

    Raises:
        InputError: no config, no safetensors, pickled weights only, or a link that leaves the folder.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"No config.json in {folder}: expected a transformers checkpoint folder.")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        found = f"only pickled weights ({pickles[0]}), which can run code when read" if pickles else "no weights"
        raise InputError(f"{folder} holds {found}: expected safetensors. Save it again with save_pretrained.")
    names = {path.name: path for pattern in CHECKPOINT_FILES for path in folder.glob(pattern)}
    names.pop("source.json", None)  # of a base checkpoint that is used as a source
    files = [path for name, path in sorted(names.items()) if path.is_file() or path.is_symlink()]
    # The hub's cache keeps the files of a snapshot beside it: blobs/ and snapshots/COMMIT/ of one repository.
    home = folder.resolve().parent.parent if folder.resolve().parent.name == "snapshots" else folder.resolve()
    for path in files:
        if not path.resolve().is_relative_to(home):
            raise InputError(f"{path} is a link that leaves {folder}: expected the file itself. Copy it there.")
        if not path.is_file():
            raise InputError(f"{path} is a link to nothing. Fetch the checkpoint again.")
    return files


def copy_checkpoint(origin: Path, folder: Path) -> dict[str, str]:
    """Copy a checkpoint's files, after checking them. Returns name -> sha256 of what was copied.

    Raises:
        InputError: this is no whole checkpoint, transformers does not read its config, it has no tokenizer, or weights
            that are not pruned.
    """
    from dass.model.checkpoint import Checkpoint
    from tasks.sources.tokens import load_config

    files = checkpoint_files(origin)
    load_config(origin)
    Checkpoint(origin).check_prunable()
    if not any((origin / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        raise InputError(f"No tokenizer in {origin}: expected tokenizer.json. Put the model's own there.")
    for path in files:
        shutil.copyfile(path, folder / path.name)
    return {path.name: sha256_file(folder / path.name) for path in files}


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
