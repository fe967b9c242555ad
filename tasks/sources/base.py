"""The dense model: fetched from wherever it is, and kept as a plain safetensors checkpoint.

No code that comes with a model is ever run.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dass.files import complete_folder, digest_of, files_in, read_json, write_json
from dass.masks.pruned_record import history
from dass.model.checkpoint_folder import CARD
from dass.model.older_keys import write_older_keys
from tasks.sources.checkpoint_folder import copy_checkpoint, make_plain
from tasks.sources.hub import HubId, commit_of, fetch_checkpoint
from tasks.sources.locate import check_digest, check_model_file, locate, uri_of
from tasks.sources.pinned import pinned
from tasks.workspace.digests import known_digests
from tasks.workspace.folder import Workspace
from tasks.workspace.progress import working
from tasks.workspace.settings import DType, Settings, Source

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json"),
)


@dataclass(frozen=True)
class FetchedModel:
    """What is known of a model's origin.

    Attributes:
        sha256: digest of the file; None for a folder.
        revision: commit on the hub; None elsewhere.
        license: as the hub spells it ("apache-2.0"), from the model card or the GGUF file; None when neither says.
        pruned: how it was pruned by `dass` before (`dass.masks.pruned_record.history`); None when it was not.
    """

    sha256: str | None
    revision: str | None
    license: str | None
    pruned: dict[str, Any] | None = None


def fetch_base(ws: Workspace, settings: Settings) -> None:
    """Write artifacts/base: the dense model as a plain safetensors checkpoint with its tokenizer, and source.json.

    Raises:
        InputError: the model cannot be fetched or read, is not what dass.lock.json says, or its tokenizer cannot be
            read. artifacts/base is then as it was.
    """
    from tasks.sources.tokens import check_tokenizer

    source = settings.sources.model
    pin_ = pinned(ws, "model", source)
    with complete_folder(ws.base) as folder:
        fetched = fetch_model(source, pin_, ws.root, settings.sources.dtype, folder)
        check_tokenizer(folder)
        files = {name: known_digests(path, md5=True).sha256 for name, path in sorted(files_in(folder).items())}
        config = read_json(folder / "config.json")
        record = {
            "uri": source.uri,
            **asdict(fetched),
            "dtype": config.get("dtype", config.get("torch_dtype")),
            "files": files,
            "digest": digest_of(files),
            "tokenizer": digest_of({name: sha for name, sha in files.items() if name in _TOKENIZER_FILES}),
        }
        write_json(folder / "source.json", record)


def fetch_model(source: Source, pin_: dict[str, Any], root: Path, dtype: DType, folder: Path) -> FetchedModel:
    """Fill `folder` with the checkpoint, which older transformers read too: see `write_older_keys`.

    Raises:
        InputError: the model cannot be fetched or read, or is not what `source` and `pin_` say.
    """
    fetched = _fetch(source, pin_, root, dtype, folder)
    write_older_keys(folder)
    return fetched


def _fetch(source: Source, pin_: dict[str, Any], root: Path, dtype: DType, folder: Path) -> FetchedModel:
    where = locate(source, root)
    if isinstance(where, HubId):
        commit = pin_.get("revision") or commit_of(where, "model")
        with working(f"Fetching {uri_of(source)}"):
            snapshot = fetch_checkpoint(where, commit)
            copy_checkpoint(snapshot, folder)
        make_plain(folder, dtype)
        return FetchedModel(None, commit, _license(snapshot), history(snapshot))
    if where.is_dir():
        with working(f"Copying {where}"):
            copied = copy_checkpoint(where, folder)
        check_digest(source, digest_of(copied), pin_)
        make_plain(folder, dtype)
        return FetchedModel(None, None, _license(where), history(where))
    return _convert_file(source, where, pin_, dtype, folder)


def _license(folder: Path) -> str | None:
    """The licence that a checkpoint's model card names."""
    from huggingface_hub import ModelCard

    try:
        card = ModelCard((folder / CARD).read_text(encoding="utf-8"), ignore_metadata_errors=True)
    except (OSError, ValueError):  # none, or one that cannot be read: the model is what counts
        return None
    named = card.data.get("license")
    return named if isinstance(named, str) else None


def _convert_file(source: Source, file: Path, pin_: dict[str, Any], dtype: DType, folder: Path) -> FetchedModel:
    check_model_file(source, file)
    import torch

    from tasks.sources.gguf import convert_gguf

    found = known_digests(file).sha256
    check_digest(source, found, pin_)
    with working(f"Converting {file.name}"):
        license_ = convert_gguf(file, folder, torch.bfloat16 if dtype == "auto" else getattr(torch, dtype))
    return FetchedModel(found, None, license_)
