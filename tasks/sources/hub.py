"""The hub, through its own libraries: commits, checkpoints and data sets.

What was fetched once is used again when the hub cannot be reached. No code that comes with a repository is run.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from dass.errors import InfrastructureError, InputError
from dass.model.checkpoint_folder import (
    BESIDE_WEIGHTS,
    CARD,
    INDEX_FILE,
    RECORDS,
    SINGLE_FILE,
    TERMS,
    read_weight_map,
)
from tasks.sources.waiting import in_time
from tasks.workspace.patience import answer_seconds, one_answer
from tasks.workspace.redaction import redacted
from tasks.workspace.settings import Source

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

RepoType = Literal["model", "dataset"]

T = TypeVar("T")
_WRITES = 10
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubId:
    """A repository on the hub; revision None is its main branch."""

    repo: str
    revision: str | None


def commit_of(hub: HubId, repo_type: RepoType) -> str:
    """The commit a revision stands for: asked of the hub, or of what was fetched before when it cannot be reached.

    Raises:
        InputError: neither knows it.
        InfrastructureError: the hub does not answer, and it was not fetched before.
    """
    if hub.revision is not None and _COMMIT.fullmatch(hub.revision):
        return hub.revision
    from huggingface_hub import HfApi, constants, file_download
    from huggingface_hub.errors import (
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        with one_answer() as seconds:
            info = in_time(
                lambda: HfApi().repo_info(hub.repo, revision=hub.revision, repo_type=repo_type, timeout=seconds),
                seconds,
            )
        return str(info.sha)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise _not_on_hub(hub, error) from error
    except Exception as error:  # no connection, in whichever library's words
        folder = file_download.repo_folder_name(repo_id=hub.repo, repo_type=repo_type)
        ref = Path(constants.HF_HUB_CACHE) / folder / "refs" / (hub.revision or "main")
        if ref.is_file():
            return ref.read_text(encoding="ascii").strip()
        raise _not_on_hub(hub, error) from error


def fetch_checkpoint(hub: HubId, commit: str) -> Path:
    """A model's checkpoint in the hub's cache. Weights that would not be read are not fetched.

    Raises:
        InputError: it is neither on the hub nor in the cache, or its index is damaged.
    """
    snapshot = fetch_snapshot(hub, commit, [*BESIDE_WEIGHTS, *map(_any_case, TERMS), CARD, *RECORDS, SINGLE_FILE])
    if not (snapshot / SINGLE_FILE).is_file():
        snapshot = fetch_snapshot(hub, commit, [INDEX_FILE])
        if (snapshot / INDEX_FILE).is_file():
            fetch_snapshot(hub, commit, [escape(name) for name in sorted(set(read_weight_map(snapshot).values()))])
    return snapshot


def _any_case(pattern: str) -> str:
    return "".join(f"[{letter}{letter.upper()}]" if letter.isalpha() else letter for letter in pattern)


def fetch_snapshot(hub: HubId, commit: str, wanted: list[str]) -> Path:
    """A commit's files in the hub's cache: fetched, or as they were fetched before the connection went.

    Args:
        hub: a model's repository.
        commit: its commit.
        wanted: glob patterns of the files.

    Raises:
        InputError: it is neither on the hub nor in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    try:
        return _while_it_goes_on(lambda: Path(snapshot_download(hub.repo, revision=commit, allow_patterns=wanted)))
    except Exception as error:  # repository, revision, login and connection, in several libraries' words
        try:
            return Path(snapshot_download(hub.repo, revision=commit, allow_patterns=wanted, local_files_only=True))
        except LocalEntryNotFoundError:
            raise _not_on_hub(hub, error) from error


def fetch_rows(hub: HubId, source: Source, revision: str | None) -> "Dataset":
    """The rows of a data set: `source` says which subset, files and split.

    Raises:
        InputError: the hub does not give it.
    """
    import datasets

    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        return _while_it_goes_on(
            lambda: datasets.load_dataset(
                f"hf://datasets/{hub.repo}",  # without it, a folder of that name below the current one goes first
                name=source.subset,
                data_files=source.data_files,
                split=source.split or "train",
                revision=revision,
            )
        )
    except Exception as error:  # repository, revision, subset, split and connection, in several libraries' words
        raise _not_on_hub(hub, error) from error


def fetch_data_set(hub: HubId, commit: str | None, subset: str | None, options: dict[str, Any]) -> "DatasetDict":
    """A data set with all its splits.

    Args:
        hub: its repository.
        commit: of the repository; None is the revision's newest.
        subset: its configuration, when it has several.
        options: more of what `datasets.load_dataset` takes.

    Raises:
        InputError: the hub does not give it.
    """
    import datasets

    datasets.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    where = f"hf://datasets/{hub.repo}"  # without it, a folder of that name below the current one goes first
    revision = commit or hub.revision
    try:
        return _while_it_goes_on(
            lambda: datasets.load_dataset(where, **{**options, "name": subset, "revision": revision})
        )
    except Exception as error:  # repository, revision, subset and connection, in several libraries' words
        raise _not_on_hub(hub, error) from error


def _while_it_goes_on(fetch: Callable[[], T]) -> T:
    """Fetch, as long as something arrives.

    The hub's client writes 10 MB at once, so standing still shows late; each single read has a timeout of its own.
    """
    from huggingface_hub import constants

    return in_time(fetch, _WRITES * answer_seconds(), Path(constants.HF_HOME))


def _not_on_hub(hub: HubId, error: Exception) -> InputError | InfrastructureError:
    from httpx import TransportError
    from huggingface_hub.errors import OfflineModeIsEnabled

    reason = redacted((str(error).strip() or type(error).__name__).splitlines()[0].rstrip("."))
    if isinstance(error, OfflineModeIsEnabled):
        reason = "HF_HUB_OFFLINE is set"
    revision = f"@{hub.revision}" if hub.revision else ""
    kind = InfrastructureError if isinstance(error, (TransportError, InfrastructureError)) else InputError
    return kind(
        f"{hub.repo}{revision} is no local path, and the hub does not give it ({reason}). "
        "Check the name, the revision and the connection, or use a local folder or file."
    )
