"""dvc.yaml, the template of dvc.yaml, the stages and the code agree."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows.initialise import template
from flows.stages import STAGES
from tasks.versioning.code import STAGE_MODULES, code_digest, code_paths
from tasks.versioning.pins import ROLES
from tasks.workspace.settings import Settings

ROOT = Path(__file__).parents[2]


def stages_of(text: str) -> dict[str, dict[str, Any]]:
    stages: dict[str, dict[str, Any]] = YAML(typ="safe").load(text)["stages"]
    return stages


PIPELINE_TEXT = (ROOT / "dvc.yaml").read_text()
PIPELINE = stages_of(PIPELINE_TEXT)
TEMPLATE = stages_of(template("pipeline.yaml"))


def code_of(stage: dict[str, Any]) -> list[str]:
    return [dep for dep in stage.get("deps", []) if not dep.startswith(("artifacts/", "metrics/"))]


def params_of(stage: dict[str, Any], file: str = "params.yaml") -> list[str]:
    if file == "params.yaml":
        return [key for key in stage.get("params", []) if isinstance(key, str)]
    return [key for entry in stage.get("params", []) if isinstance(entry, dict) for key in entry.get(file, [])]


def test_stages_of_dvc_and_of_the_command_line_are_the_same_in_order() -> None:
    assert list(PIPELINE) == list(STAGES) == list(STAGE_MODULES) == list(TEMPLATE)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_all_the_code_it_runs(name: str) -> None:
    assert code_of(PIPELINE[name]) == code_paths(name)


def test_the_import_closure_sees_imports_at_any_depth() -> None:
    assert {"dass", "tasks/evaluation/stages.py", "tasks/sources/documents.py", "tasks/sources/tokens.py"} <= set(
        code_paths("evaluate")
    )
    assert "dass" in code_paths("prune")


def test_a_code_digest_changes_with_the_code_and_with_nothing_else(tmp_path: Path) -> None:
    for name in code_paths("prune"):
        for file in [ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*.py"):
            copy = tmp_path / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    (tmp_path / "dass" / "__pycache__").mkdir()
    (tmp_path / "dass" / "__pycache__" / "mask.pyc").write_bytes(b"compiled")
    before = code_digest("prune", tmp_path)
    assert before == code_digest("prune")
    (tmp_path / "dass" / "method" / "score.py").write_text("changed = True\n")
    assert code_digest("prune", tmp_path) != before


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_reads_settings_that_exist(name: str) -> None:
    for key in params_of(PIPELINE[name]):
        section, _, field = key.partition(".")
        model = Settings.model_fields[section].annotation
        assert not field or field in model.model_fields, key  # type: ignore[union-attr]
    for key in params_of(PIPELINE[name], "dass.lock.json"):
        kind, _, source = key.partition(".")
        assert kind == "sources"
        assert source in ROLES


@pytest.mark.parametrize("name", STAGES)
def test_the_template_is_the_roots_stage_with_pinned_code(name: str) -> None:
    ours, theirs = dict(PIPELINE[name]), dict(TEMPLATE[name])
    assert params_of(theirs) == params_of(ours)
    assert params_of(theirs, "dass.lock.json") == [f"code.{name}", *params_of(ours, "dass.lock.json")]
    assert code_of(theirs) == []
    assert theirs.get("deps", []) == [dep for dep in ours["deps"] if dep not in code_of(ours)]
    for entry in (ours, theirs):
        entry.pop("deps", None)
        entry.pop("params", None)
    assert theirs == ours


def test_both_lay_the_same_rows_of_every_revision_over_one_another() -> None:
    ours, theirs = (YAML(typ="safe").load(text)["plots"] for text in (PIPELINE_TEXT, template("pipeline.yaml")))
    assert ours == theirs
    files = {file for plot in ours for how in plot.values() for file in how["y"]}
    assert files == {file for out in PIPELINE["plots"]["outs"] for file in out}
    # In git: `dvc exp save` adds what is laid over one another there, where DVC must not keep it too.
    assert all(how == {"cache": False} for out in PIPELINE["plots"]["outs"] for how in out.values())


@pytest.mark.parametrize("name", STAGES)
def test_a_stages_command_is_its_name(name: str) -> None:
    assert PIPELINE[name]["cmd"] == f"python -P -m flows {name}"
