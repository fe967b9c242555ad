"""Where the page goes, and what it never overwrites."""

import re
from pathlib import Path

import pytest
from mlflow.artifacts import download_artifacts

from dass.errors import InputError
from tasks.registry.registration import Registration, register
from tasks.registry.tracking import tracking_uri
from tasks.report.draw import draw, draw_of_run
from tasks.report.file import is_drawn
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import load_settings
from tests.test_tasks.test_promotion.test_verification import PROVENANCE
from tests.test_tasks.test_report.conftest import MODEL


@pytest.fixture
def result(registered: Workspace, monkeypatch: pytest.MonkeyPatch) -> Registration:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return register(registered, load_settings(registered.params), PROVENANCE)


def test_the_workspaces_result_goes_to_plots_and_a_named_version_beside_it(
    registered: Workspace, result: Registration
) -> None:
    drawn, other = draw(registered), draw(registered, "champion")
    assert (drawn.version, drawn.file) == ("2", str(registered.plots / "report.html"))
    assert (other.version, other.file) == ("1", str(registered.plots / "report_v1.html"))
    assert drawn.size == (registered.plots / "report.html").stat().st_size
    assert is_drawn(registered, result)


def test_the_end_of_a_run_gives_it_to_mlflow_too(registered: Workspace, result: Registration, tmp_path: Path) -> None:
    registered.report.unlink(missing_ok=True)
    assert not is_drawn(registered, result)
    drawn = draw_of_run(registered, result, load_settings(registered.params).promote)
    assert is_drawn(registered, result)
    logged = download_artifacts(
        run_id=result.run_id, artifact_path="report.html", dst_path=str(tmp_path), tracking_uri=tracking_uri(registered)
    )
    assert Path(logged).read_bytes() == Path(drawn.file).read_bytes()


def test_a_page_is_drawn_over_and_nothing_else_is(registered: Workspace, result: Registration, tmp_path: Path) -> None:
    mine = tmp_path / "notes.html"
    mine.write_text("my own notes")
    with pytest.raises(InputError, match=r"notes\.html is there, and is no page of dass report\. Name another"):
        draw(registered, "2", mine)
    assert mine.read_text() == "my own notes"
    with pytest.raises(InputError, match=r"is a folder: name a file for the page, for example --output .*report\.html"):
        draw(registered, "2", tmp_path)
    page = tmp_path / "new" / "page.html"
    first = draw(registered, "1", page)
    assert draw(registered, "2", page) != first
    assert f"{MODEL.split()[1]}" in re.sub("&amp;", "&", page.read_text()[:4096])


def test_a_result_that_is_not_registered_has_no_page(finished: Workspace) -> None:
    with pytest.raises(InputError, match=r"The workspace's result is not registered, .* Run: dass run"):
        draw(finished)
    assert not finished.report.exists()
