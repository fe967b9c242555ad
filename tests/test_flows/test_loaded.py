"""Which libraries a command loads: those it uses."""

import subprocess
import sys

import pytest

from tasks.workspace.folder import Workspace
from tests.test_flows.conftest import ROOT, Commands

HEAVY = {"torch", "prefect", "mlflow", "dvc", "transformers"}


@pytest.mark.parametrize(
    "module",
    [
        "flows.cli.main",
        "flows.run",  # what is asked before there is work
        "tasks.promotion.history",
        "tasks.promotion.diff",
        "tasks.registry.show",
        "tasks.promotion.verification",
        "flows.dry_run",
        "flows.swept_before",
    ],
)
def test_a_command_starts_without_heavy_libraries_that_it_may_not_need(module: str) -> None:
    code = f"import sys, {module}; print(*{HEAVY} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == set()


def test_commands_load_what_they_use(commands: Commands, finished: Workspace) -> None:
    """What is refused, read or unchanged needs no model, no drawing and no Prefect, and on the workspace's own store no
    MLflow; what is looked up needs no DVC either."""
    code = (
        "import sys; from flows.cli.main import run_command\n"
        "looked_up = 'verify nonsense', 'verify 99', 'verify ./nonsense', 'show', 'show 1', 'history --json'\n"
        "status = [run_command(each.split()) for each in looked_up]\n"
        "print(status, *{'dvc', *sys.argv[1:]} & set(sys.modules), sep='|', file=sys.stderr)\n"
        "status = [run_command(['run', '--json'])]\n"
        "print(status, *{*sys.argv[1:]} & set(sys.modules), sep='|', file=sys.stderr)"
    )
    never = (
        *("torch", "transformers", "pandas", "scipy", "sklearn", "matplotlib", "lm_eval", "datasets", "pyarrow"),
        *("mlflow", "sqlalchemy", "alembic", "prefect"),
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *never],
        cwd=finished.root,
        env={**commands.environment, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    told = [line for line in done.stderr.splitlines() if line.startswith("[")]
    assert told == ["[2, 2, 2, 0, 0, 0]", "[0]"], done.stderr
