"""What a sweep leaves on disk, each file complete or absent, so that a sweep that was killed goes on where it was.

.dass/sweeps/points/KEY.json        a finished point, by everything that its figures depend on
.dass/sweeps/measured/KEY.json      figures of masks, for points whose masks are the same
.dass/sweeps/masks/FINGERPRINT/     masks, for points that prune alike: as artifacts/masks
.dass/sweeps/work/                  what points are being worked on
.dass/sweeps/ID/                    one sweep: sweep.json, sweep.html, figures.parquet
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.files import digest_of, read_json, write_json
from tasks.sweep.space import Space
from tasks.workspace.flat import flat
from tasks.workspace.flocked import flocked
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, load_settings

SWEEP, PAGE, FIGURES = "sweep.json", "sweep.html", "figures.parquet"
_ID = 12  # hex digits


@dataclass(frozen=True)
class Record:
    """What became of a point. Small: masks stay where they are and are named by their digest.

    Attributes:
        key: digest of everything that its figures depend on.
        fingerprint: of its pruning, as `dass run` has it; it names the folder of masks. "" of one that failed before.
        masks: their digest.
        figures: numbers of its evaluation by dotted name, as `dass run` registers them.
        seconds: of pruning, recovery and evaluation; what another point had done takes none.
        failed: why there are no figures; None: there are.
        for_good: whether it would fail again.
    """

    key: str
    fingerprint: str = ""
    masks: str = ""
    figures: dict[str, float] | None = None
    seconds: dict[str, float] | None = None
    failed: str | None = None
    for_good: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Records:
    """The finished points of a workspace, of every sweep."""

    def __init__(self, ws: Workspace) -> None:
        self._folder = ws.sweeps

    def find(self, key: str) -> Record | None:
        """A point that was finished, or failed for good."""
        path = self._folder / "points" / f"{key}.json"
        return Record(**read_json(path)) if path.is_file() else None

    def keep(self, record: Record) -> None:
        if record.failed is None or record.for_good:
            write_json(self._folder / "points" / f"{record.key}.json", record.as_json())

    def masks(self, fingerprint: str) -> Path:
        """Where masks are, or will be."""
        return self._folder / "masks" / fingerprint

    def measured(self, key: str) -> Path:
        """Where the figures of masks are, or will be."""
        return self._folder / "measured" / f"{key}.json"

    def work(self, name: str) -> Path:
        """A folder for what is being made."""
        return self._folder / "work" / name

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Nobody else makes the thing of that name meanwhile, in this process or another."""
        path = self._folder / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with flocked(path, f"What points share ({name})"):
            yield


def group_of(settings: Settings) -> str:
    """Digest of what points share whose base, calibration and dense evaluation are the same."""
    return digest_of(settings.model_dump(mode="json", include={"sources", "calibration", "engine", "evaluate"}))


def sweep_id(space: Space) -> str:
    """Equal questions, equal names: the same command goes on with the same sweep."""
    first = space.asked.model_dump(mode="json", include={"search", "trials", "seed"})
    asked = {"fixed": space.fixed, "choices": {key: repr(values) for key, values in space.choices.items()}}
    if space.asked.search in ("tpe", "nsga2"):
        first |= {"objectives": space.asked.objectives, "parallel": space.asked.parallel}
    elif space.asked.search == "grid":
        first = {"search": "grid"}
    return digest_of([first, asked, space.base])[:_ID]


def settings_of(ws: Workspace, name: str, number: int) -> dict[str, Any]:
    """What a point's result depends on and params.yaml says otherwise: "section.key" -> the point's value.

    Args:
        ws: where the sweep was made.
        name: the sweep's, or how it begins; "last" is the newest.
        number: the point's.

    Raises:
        InputError: there is no such sweep, or no such point in it.
    """
    known = sorted(ws.sweeps.glob(f"*/{SWEEP}"), key=lambda path: path.stat().st_mtime)
    found = known[-1:] if name == "last" else [path for path in known if path.parent.name.startswith(name)]
    if len(found) != 1:
        names = ", ".join(path.parent.name for path in known) or "none: dass sweep makes one"
        raise InputError(f"--from-sweep {name}: expected one sweep of this workspace. There are: {names}.")
    points = {each["number"]: each for each in read_json(found[0])["points"]}
    if number not in points:
        raise InputError(f"--from-sweep {name} {number}: the sweep has the points {min(points)} to {max(points)}.")
    now = load_settings(ws.params).model_dump(mode="json", by_alias=True)
    return {
        f"{section}.{key}": value
        for section, values in points[number]["settings"].items()
        for key, value in values.items()
        if now[section][key] != value
    }


def remove_work(folder: Path) -> None:
    """Forget what a point was made in."""
    shutil.rmtree(folder, ignore_errors=True)


def figures_of(*records: dict[str, Any]) -> dict[str, float]:
    """Every number of nested records, by dotted name."""
    whole = {name: value for record in records for name, value in flat(record).items()}
    return {name: value for name, value in whole.items() if type(value) in (int, float)}
