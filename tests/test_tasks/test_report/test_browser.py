"""The page in a real Chromium: it draws every chart, says nothing in the console and asks the network for nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.report.facts import Facts
from tasks.report.page import render, sections_of
from tests.browser import CHROMIUM, Page, browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def file(full: Facts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(full), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser() as found:
        yield found


DRAWN = """new Promise(go => {
    const look = () => document.body.dataset.drawn ? go(+document.body.dataset.drawn) : setTimeout(look, 50);
    look();
})"""
MARKS = """[...document.querySelectorAll(".chart")].map(
    each => each.querySelectorAll("svg [class*=mark-] path, svg [class*=mark-] line").length)"""
FOREIGN = """(() => {
    const put = document.createElement("script");
    put.text = "window.ran = true";
    document.body.append(put);
})()"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_draws_every_chart_in_any_light_and_width(
    page: Page, file: Path, full: Facts, width: int, dark: bool
) -> None:
    page.faults.clear()
    page.requests.clear()
    page.shaped(width, dark=dark)
    page.open(file)
    charts = sum(len(section.charts) for section in sections_of(full))
    assert page.value(DRAWN) == charts
    assert min(page.value(MARKS)) > 0
    assert len(page.value(MARKS)) == charts
    assert page.faults == []
    assert {address.partition(":")[0] for address in page.requests} <= {"file", "data"}
    assert [address for address in page.requests if address.startswith("file:")] == [file.resolve().as_uri()]
    assert page.value("document.documentElement.scrollWidth") <= width
    paper = page.value("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") is not dark


def test_a_text_that_is_an_attack_is_only_text(page: Page, file: Path) -> None:
    page.faults.clear()
    page.shaped(1280)
    page.call("Page.addScriptToEvaluateOnNewDocument", source="window.alert = () => { window.attacked = true; };")
    page.open(file)
    page.value(DRAWN)
    assert page.value("window.attacked") is None
    assert page.value("document.querySelectorAll('img, iframe').length") == 0


def test_a_script_from_elsewhere_is_not_run(page: Page, file: Path) -> None:
    page.shaped(1280)
    page.open(file)
    page.value(FOREIGN)
    assert page.value("window.ran") is None
    assert any("Content Security Policy" in fault for fault in page.faults)


def test_a_heading_sorts_by_its_column_up_and_down(page: Page, file: Path) -> None:
    page.shaped(1280)
    page.open(file)
    press = "document.querySelector('#neurons th:nth-child(6) button').click()"
    column = "[...document.querySelectorAll('#neurons tbody tr')].map(row => +row.cells[5].dataset.order)"
    page.value(press)
    up = page.value(column)
    assert up == sorted(up)
    assert page.value("document.querySelector('#neurons th:nth-child(6)').ariaSort") == "ascending"
    page.value(press)
    assert page.value(column) == up[::-1]


def test_on_paper_it_is_light_and_every_table_is_open(page: Page, file: Path) -> None:
    page.shaped(800, dark=True, media="print")
    page.open(file)
    assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert (
        page.value("dispatchEvent(new Event('beforeprint')), document.querySelectorAll('details:not([open])').length")
        == 0
    )
    assert len(page.call("Page.printToPDF")["data"]) > 10_000
