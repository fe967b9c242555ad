"""Whether the model of a workspace can be pruned as the settings say, asked as soon as its config is at hand."""

from pathlib import Path

from dass.errors import InputError
from dass.files import digest_of, read_json, sha256_file, write_json
from tasks.sources.hub import HubId
from tasks.sources.locate import locate
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings

_CONFIG = "config.json"
_REMEMBERED = 16  # answers: a source's and its base's config may differ, and settings go back and forth


def check_model_fits(ws: Workspace, settings: Settings) -> None:
    """Refuse a model that the plan cannot prune. One that has to be fetched first is asked by `check_base_fits`.

    Raises:
        InputError: a layer without a GLU MLP, an axis that N:M groups cannot tile, no language model at all.
    """
    source = settings.sources.model
    if isinstance(source.uri, str) and "://" not in source.uri:
        where = locate(source, ws.root)
        if not isinstance(where, HubId) and (where / _CONFIG).is_file():
            _check(ws, settings, where)
            return
    record = ws.base / "source.json"
    if record.is_file() and read_json(record).get("uri") == source.uri:
        check_base_fits(ws, settings)


def check_base_fits(ws: Workspace, settings: Settings) -> None:
    """The same for artifacts/base.

    Raises:
        InputError: as `check_model_fits`.
    """
    _check(ws, settings, ws.base)


def _check(ws: Workspace, settings: Settings, folder: Path) -> None:
    question = digest_of({_CONFIG: sha256_file(folder / _CONFIG), "prune": settings.prune.model_dump(mode="json")})
    file = ws.private / "answered_fits.json"  # the check loads transformers, and most runs ask what was asked before
    answered: list[str] = read_json(file) if file.is_file() else []
    if question in answered:
        return
    from dass.engine.fits import check_checkpoint_fits

    try:
        check_checkpoint_fits(folder, settings.prune.plan)
    except InputError as error:
        raise InputError(f"sources.model cannot be pruned as `prune` says: {error}") from None
    write_json(file, [*answered, question][-_REMEMBERED:])
