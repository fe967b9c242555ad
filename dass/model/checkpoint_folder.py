"""Which files of a checkpoint folder are the checkpoint: the weights that are read, and what goes along with them.

Weights of another format, adapters, other variants and an index nobody follows belong to another model than the one
that is read. They are named, and stay where they are.
"""

import json
import shutil
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isfinite
from pathlib import Path, PurePath

from dass.errors import InputError
from dass.files import read_json, write_json

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

BESIDE_WEIGHTS = (
    *("config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tekken.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "dict.txt", "tokenizer.model", "tokenizer.model.v*", "*.tiktoken"),
    *("spiece.model", "spm.model", "sentencepiece.model", "sentencepiece.bpe.model", "tiktoken.model"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
)
"""What goes with the weights: config, tokenizer, chat templates, processor. Patterns, relative to the folder."""

TERMS = ("*license*", "*licence*", "*notice*", "*copying*", "*use_policy*", "*terms_of_use*")
"""The terms that weights come under, in whatever case, as text."""

CARD = "README.md"
BASE_CARD = "BASE_README.md"
"""Where the base's model card goes: it names the licence, and what it measures is not the pruned model."""

RECORDS = ("source.json", "dass.json")
"""What `dass` writes of one folder. It is not true of another."""

_TEXT = ("", ".txt", ".md", ".rst", ".html", ".pdf")
_NAMED = 8
_LARGEST_INDEX = 100_000_000  # bytes: as safetensors bounds the header of a file


@dataclass(frozen=True)
class Contents:
    """A checkpoint folder, sorted out.

    Attributes:
        beside: config, tokenizer, licence and the like, as names relative to the folder, sorted.
        weights: the safetensors files that are read, and their index when they are shards.
        left: what is not part of the checkpoint: files, and folders with a slash. Cards, records of `dass` and hidden
            files are not named.
    """

    beside: list[str]
    weights: list[str]
    left: list[str]

    @property
    def names(self) -> list[str]:
        """Everything that belongs to the checkpoint, sorted."""
        return sorted([*self.beside, *self.weights])

    def told(self, folder: Path) -> str | None:
        """One line about what is left behind, if anything is."""
        if not self.left:
            return None
        more = f" and {len(self.left) - _NAMED} more" if len(self.left) > _NAMED else ""
        return (
            f"Left behind in {folder}, not part of the checkpoint that is read: {', '.join(self.left[:_NAMED])}{more}"
        )


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files of a checkpoint: `model.safetensors`, else the shards that the index names.

    Raises:
        InputError: there is neither, a shard is missing, or the index is damaged.
    """
    if (folder / SINGLE_FILE).is_file():
        return [SINGLE_FILE]
    if not (folder / INDEX_FILE).is_file():
        raise InputError(f"No {SINGLE_FILE} or {INDEX_FILE} in {folder}: expected a safetensors checkpoint.")
    shards = sorted(set(read_weight_map(folder).values()))
    for shard in shards:
        if not (folder / shard).is_file():
            raise InputError(f"{folder / shard} is missing. Fetch the checkpoint again.")
    return shards


def read_weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, out of a folder's index.

    Raises:
        InputError: the index is damaged, larger than 100 MB, or names a file outside the folder.
    """
    index, again = folder / INDEX_FILE, "Fetch the checkpoint again."
    if (size := index.stat().st_size) > _LARGEST_INDEX:
        raise InputError(f"{index} has {size} bytes: expected an index of at most {_LARGEST_INDEX}. {again}")
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{index} is not JSON ({error}). {again}") from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f'{index} has no "weight_map": expected tensor names with the file that holds each. {again}')
    for name, file in weight_map.items():
        if not isinstance(file, str) or file in ("", ".", "..") or "/" in file or "\\" in file:
            raise InputError(f"{index} says {name} is in {file!r}: expected the name of a file beside it. {again}")
    return weight_map


def declared_bytes(folder: Path) -> int | None:
    """Size of all tensors, as the index says that is followed; None where there is none, or it does not say."""
    if (folder / SINGLE_FILE).is_file() or not (folder / INDEX_FILE).is_file():
        return None
    metadata = read_json(folder / INDEX_FILE).get("metadata")
    size = metadata.get("total_size") if isinstance(metadata, dict) else None
    return int(size) if isinstance(size, int | float) and isfinite(size) else None


def contents(folder: Path) -> Contents:
    """Sort out a checkpoint folder.

    Raises:
        InputError: as `weight_files`.
    """
    files = weight_files(folder)
    weights = files if files == [SINGLE_FILE] else [*files, INDEX_FILE]
    top = {path.name: path.is_dir() for path in folder.iterdir()}
    inside = [path.relative_to(folder).as_posix() for path in folder.glob("additional_chat_templates/*")]
    names = [*(name for name, is_folder in top.items() if not is_folder), *inside]
    beside = sorted(name for name in names if name not in weights and _goes_with_weights(name))
    carried = {*beside, *weights, CARD, BASE_CARD, *RECORDS}
    kept_folders = {name.partition("/")[0] for name in beside if "/" in name}
    left = [name for name in names if name not in carried]
    left += [f"{name}/" for name, is_folder in top.items() if is_folder and name not in kept_folders]
    return Contents(beside, weights, sorted(name for name in left if not name.startswith(".")))


def _goes_with_weights(name: str) -> bool:
    if any(fnmatchcase(name, pattern) for pattern in BESIDE_WEIGHTS):
        return True
    is_text = "/" not in name and PurePath(name).suffix.lower() in _TEXT
    return is_text and any(fnmatchcase(name.lower(), pattern) for pattern in TERMS)


def copy_beside(folder: Path, found: Contents, target: Path) -> list[str]:
    """Copy what goes beside the weights of a checkpoint that is changed, and its card under another name.

    The config's `_name_or_path` stays behind: the copy is not what lies there.

    Returns:
        The name that the card got, if there is one.
    """
    for name in found.beside:
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / name, target / name)
    _forget_origin(target / CONFIG_FILE)
    for card in (CARD, BASE_CARD):
        if (folder / card).is_file():
            shutil.copyfile(folder / card, target / BASE_CARD)
            return [BASE_CARD]
    return []


def _forget_origin(config: Path) -> None:
    try:
        values = read_json(config)
    except (OSError, ValueError, RecursionError):  # whoever builds a model from it says so
        return
    if isinstance(values, dict) and values.pop("_name_or_path", None) is not None:
        write_json(config, values)
