"""A repository on the hub that versions are published to, through the hub's own client.

The token is the client's: HF_TOKEN, or what `hf auth login` keeps. The address is HF_ENDPOINT's. Neither is in anything
that is raised from here.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dass.errors import InfrastructureError, InputError
from dass.files import sha256_file
from tasks.sources.waiting import in_time
from tasks.workspace.patience import one_answer
from tasks.workspace.progress import progress_bar
from tasks.workspace.redaction import redacted, shown_address

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

_OF_THE_HUB = (".gitattributes",)
"""Files that a repository has of its own."""
_MAIN = "main"
_COMMITS_AT_ONCE = 412, 409


@dataclass(frozen=True)
class State:
    """What a repository is before anything is done to it.

    Attributes:
        private: whether it is; None: there is no such repository.
        head: the commit of main; None: there is none.
        tagged: the commit of the revision that is asked for; None: it is free.
    """

    private: bool | None
    head: str | None
    tagged: str | None


class Repository:
    """One repository, by name.

    Attributes:
        name: org/name.
        address: of the hub, without credentials.
    """

    def __init__(self, name: str) -> None:
        """Raises InputError: that is no repository's name, the hub may not be asked, or nobody is logged in."""
        from huggingface_hub import HfApi, constants, get_token
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils._validators import validate_repo_id
        from huggingface_hub.utils.tqdm import disable_progress_bars

        try:
            validate_repo_id(name)
            if "/" not in name:
                raise HFValidationError
        except HFValidationError:
            raise InputError(f"{name!r} is no repository's name: expected org/name.") from None
        if constants.HF_HUB_OFFLINE:
            raise InputError("HF_HUB_OFFLINE is set, and publishing needs the hub. Unset it for this command.")
        if not get_token():
            raise InputError("No login to the hub: set HF_TOKEN to a token that may write, or run: hf auth login")
        disable_progress_bars()  # there is one of ours
        self.name, self.address = name, shown_address(constants.ENDPOINT)
        self._api = HfApi()

    def state(self, revision: str) -> State:
        """Look at the repository.

        Args:
            revision: the tag that a version is to get.

        Raises:
            InputError: a branch is called so, or the login is refused.
            InfrastructureError: the hub does not answer.
        """
        from huggingface_hub.errors import RepositoryNotFoundError

        with self._telling(), one_answer() as seconds:
            try:
                info = in_time(lambda: self._api.repo_info(self.name, timeout=seconds), seconds)
            except RepositoryNotFoundError:
                return State(None, None, None)
            refs = in_time(lambda: self._api.list_repo_refs(self.name), seconds)
        if any(branch.name == revision for branch in refs.branches):
            raise InputError(f"{self.name} has a branch {revision}: a version is a tag. Name another one: --revision")
        tags = {tag.name: tag.target_commit for tag in refs.tags}
        heads = {branch.name: branch.target_commit for branch in refs.branches}
        return State(bool(info.private), heads.get(_MAIN), tags.get(revision))

    def differing(self, files: Mapping[str, Path], commit: str) -> tuple[list[str], list[str]]:
        """What of a commit is not what it should be.

        Args:
            files: name -> file, all that the commit should hold.
            commit: which.

        Returns:
            The names that are missing or have other bytes, and those that are there beside them.
        """
        from huggingface_hub.hf_api import RepoFile

        with self._telling():
            entries = self._api.list_repo_tree(self.name, recursive=True, revision=commit)
            there = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
        other = [name for name, path in files.items() if name not in there or not _is(path, there[name])]
        return other, sorted(there.keys() - files.keys() - set(_OF_THE_HUB))

    def create(self, private: bool) -> None:
        """Make the repository, unless it is there."""
        with self._telling():
            self._api.create_repo(self.name, private=private, exist_ok=True)

    def commit(self, files: Mapping[str, Path], surplus: list[str], parent: str | None, message: str) -> str:
        """One commit on main: what was uploaded before it failed is not sent again.

        Args:
            files: what it adds or replaces.
            surplus: what it removes.
            parent: the commit that main must be at.
            message: its message.

        Returns:
            The commit.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        added = [CommitOperationAdd(name, path) for name, path in sorted(files.items())]
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *added,
            *(CommitOperationDelete(name) for name in surplus),
        ]
        sizes = [path.stat().st_size for _, path in sorted(files.items())]
        with self._telling():
            with progress_bar(sum(sizes), f"publishing to {self.name}", "bytes") as advance:
                for operation, size in zip(added, sizes, strict=True):  # large ones; the others go with the commit
                    self._api.preupload_lfs_files(self.name, [operation], revision=_MAIN, free_memory=False)
                    advance(size)
            made = self._api.create_commit(
                self.name, operations, commit_message=message, revision=_MAIN, parent_commit=parent
            )
        return str(made.oid)

    def tag(self, revision: str, commit: str, message: str) -> None:
        """Name a commit, once and for all."""
        with self._telling():
            self._api.create_tag(self.name, tag=revision, revision=commit, tag_message=message)

    @contextmanager
    def _telling(self) -> Generator[None]:
        """The hub's errors as ours: what it refuses, and what does not answer."""
        from httpx import TransportError
        from huggingface_hub.errors import HfHubHTTPError

        try:
            yield
        except HfHubHTTPError as error:
            status = error.response.status_code
            reason = redacted(str(error.server_message or error).strip().splitlines()[0].rstrip("."))
            if status in (401, 403, 404):
                raise InputError(
                    f"The hub at {self.address} does not let this login write to {self.name} ({status}: {reason}). "
                    "Look at HF_TOKEN's rights, and at the name."
                ) from None
            if status in _COMMITS_AT_ONCE:
                raise InfrastructureError(
                    f"{self.name} was written to by somebody else meanwhile ({status}). Publish again: what was "
                    "uploaded is not sent twice."
                ) from None
            told = f"The hub at {self.address} failed ({status}: {reason}). Publish again."
            raise InfrastructureError(told) from None
        except InfrastructureError:
            raise
        except (TransportError, RuntimeError) as error:  # RuntimeError: an upload's, with the cause behind it
            cause = error.__cause__ or error
            told = redacted((str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip("."))
            raise InfrastructureError(
                f"The hub at {self.address} does not answer ({told}). Publish again: what was uploaded is not sent "
                "twice."
            ) from None


def _is(path: Path, entry: "RepoFile") -> bool:
    """Whether a file has the bytes of one on the hub, which names a large one by sha256 and a small one as git does."""
    from huggingface_hub.utils.sha import git_hash

    if path.stat().st_size != entry.size:
        return False
    return sha256_file(path) == entry.lfs.sha256 if entry.lfs else git_hash(path.read_bytes()) == entry.blob_id
