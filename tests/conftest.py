"""One environment for every test: offline but for pip, quiet, and nothing of this user's touched but the downloads.

Set before anything is imported, because the libraries read their environment when they are.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_HOME = Path(tempfile.mkdtemp(prefix="dass-tests-"))

os.environ |= {
    "HF_HOME": str(_HOME / "hub"),
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PREFECT_HOME": str(_HOME / "prefect"),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "DVC_SITE_CACHE_DIR": str(_HOME / "dvc"),
    "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false",
    "XDG_CONFIG_HOME": str(_HOME / "config"),
    "DASS_SIGNING_KEY": str(_HOME / "signing-key.pem"),
}
for _name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "DASS_WORKSPACE", "DVC_ROOT"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402
import torch  # noqa: E402

from tests.injected import pytest_collection_modifyitems, pytest_terminal_summary  # noqa: E402, F401
from tests.models import save_tiny_checkpoint  # noqa: E402
from tests.scheduling import pytest_xdist_make_scheduler  # noqa: E402, F401
from tests.stores import Store, postgres_store, sqlite_store  # noqa: E402

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1))


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def _log_handlers_end_with_their_test() -> Iterator[None]:
    """A command line run inside a test sends the log to that test's stderr, which is closed afterwards."""
    logger = logging.getLogger("dass")
    before = list(logger.handlers)
    yield
    logger.handlers[:] = before


@pytest.fixture(autouse=True)
def _environment_ends_with_its_test() -> Iterator[None]:
    """A command line run inside a test sets defaults for the tools it starts, and the next test's programs are none of
    them: PYTHONSAFEPATH would hide this repository's folder from them."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def _tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tiny_checkpoint(_tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint folder of a test's own: a random Llama of 3 layers with its tokenizer."""
    return shutil.copytree(_tiny_checkpoint, tmp_path / "model")


@pytest.fixture(scope="session")
def _sqlite_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with sqlite_store(tmp_path_factory.mktemp("sqlite")) as made:
        yield made


@pytest.fixture(scope="session")
def _postgres_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with postgres_store(tmp_path_factory.mktemp("postgres")) as made:
        yield made


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    """SQLite, and MLflow's server on Postgres: one of each for all tests, so name models after the test."""
    made: Store = request.getfixturevalue(f"_{request.param}_store")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.uri)
    return made


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A download cache of a test's own."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("DASS_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session")
def real_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Fetches the model of a params.yaml and gives its base checkpoint: once a session, converting takes a minute."""
    from filelock import FileLock

    from dass.files import sha256_file
    from tasks.sources.base import fetch_base
    from tasks.versioning.pins import refresh_pins
    from tasks.workspace.folder import Workspace
    from tasks.workspace.settings import load_settings

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # one folder for all workers

    def base_of(params: Path) -> Path:
        ws, settings = Workspace(shared / f"real-{sha256_file(params)[:16]}"), load_settings(params)
        with FileLock(f"{ws.root}.lock"):
            if not ws.base.exists():
                refresh_pins(ws, settings)
                fetch_base(ws, settings)
        return ws.base

    return base_of
