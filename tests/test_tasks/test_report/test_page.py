"""The page: what it says, what it leaves out, and that no text in it becomes markup or code."""

import base64
import hashlib
import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from dass.engine.choice import Choice, Proposal
from dass.method.methods import Score
from tasks.report.facts import Change, Facts, read_facts
from tasks.report.page import render, sections_of
from tasks.workspace.folder import Workspace
from tests.test_tasks.test_report.conftest import MODEL, RULES


class Read(HTMLParser):
    """A page as a browser takes it apart."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.words = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self._inside != "style":
            self.words += data

    @property
    def charts(self) -> dict[str, Any]:
        """Name -> specification."""
        found: dict[str, Any] = json.loads(next(text for kind, text in self.scripts if kind == "application/json"))
        return found


@pytest.fixture(scope="module")
def page(full: Facts) -> str:
    return render(full)


def names(facts: Facts) -> list[str]:
    return [section.name for section in sections_of(facts)]


def test_what_was_not_measured_has_no_section(plain: Facts, full: Facts) -> None:
    always = ["headline", "rules", "perplexity", "layers", "neurons", "change", "provenance", "history", "verify"]
    nothing: dict[str, Any] = {
        "interval": None,
        "divergence": None,
        "generations": [],
        "overlap": {},
        "verdicts": [],
        "texts": {},
    }
    bare = replace(plain, evaluation={**plain.evaluation, **nothing})
    assert names(bare) == always
    assert "None" not in Read(render(bare)).words
    assert set(names(plain)) - set(always) == {"divergence", "generations"}
    assert set(names(full)) - set(always) == {"tasks", "divergence", "generations"}


def test_it_shows_every_figure(page: str, full: Facts) -> None:
    words = Read(page).words
    assert full.manifest["calibration"]["digest"] in words
    assert full.origin["evaluated_on"]["evaluation"]["digest"] in words
    for told in (
        "version 2",
        "1.500 to 2.500",
        "0.3456",
        "71.00%",
        "arc_easy, acc_norm",
        "0.5200 ± 0.0250",
        "-0.0600 to +0.0100",
        "dense 0.5200, pruned 0.4900",
        "anomalous",
        "12.50%",
        "different 3-grams: dense 100%, pruned 25%",
        "Since the champion, version 1",
        "prune.sparsity",
        "mask bits moved",
        "wholly dead",
        "dass verify 2 --replay",
        "promoted",
    ):
        assert told in words, told


def test_every_chart_has_a_place_a_title_and_a_unit(page: str) -> None:
    read = Read(page)
    places = {attrs["id"]: attrs["aria-label"] for tag, attrs in read.tags if attrs.get("class") == "chart"}
    assert places.keys() == {f"chart-{name}" for name in read.charts}
    assert {
        "perplexity",
        "tasks",
        "sparsity",
        "error",
        "norms",
        "density",
        "moved",
        "by_position",
    } <= read.charts.keys()
    assert all(places.values())
    for name, spec in read.charts.items():
        layers = spec.get("layer", [spec])
        assert any(
            axis.get("title") for layer in layers for axis in layer["encoding"].values() if isinstance(axis, dict)
        ), name


def test_the_map_is_binned_and_says_how_much_is_kept(page: str, full: Facts) -> None:
    (rows,) = (spec["data"]["values"] for name, spec in Read(page).charts.items() if name == "density")
    assert len(rows) == 48 * len(full.densities)
    kept = sum(row["kept"] * (row["to"] - row["from"]) for row in rows) / len(full.densities)
    assert kept == pytest.approx(0.25, abs=0.001)


def test_no_text_becomes_markup_or_code(page: str) -> None:
    read = Read(page)
    assert [kind for kind, _ in read.scripts] == ["application/json", None, None]
    assert not [tag for tag, _ in read.tags if tag in ("img", "link", "iframe", "object", "embed", "form", "i")]
    assert not [name for _, attrs in read.tags for name in attrs if name.startswith("on") or name == "src"]
    assert all(str(attrs["href"]).startswith("#") for _, attrs in read.tags if "href" in attrs)
    assert MODEL in read.words
    assert "</script><script>alert(1)</script><img src=x onerror=alert(1)>" in read.words


def test_the_policy_allows_its_own_scripts_and_nothing_else(page: str) -> None:
    read = Read(page)
    (policy,) = (attrs["content"] for _, attrs in read.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    digests = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for kind, text in read.scripts if not kind
    ]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    assert f"default-src 'none'; script-src {allowed}; " in str(policy)
    assert "unsafe-eval" not in str(policy)


def test_equal_facts_give_equal_pages_of_a_size_to_mail(page: str, full: Facts) -> None:
    assert render(full) == page
    assert len(page.encode()) < 6_000_000


def test_a_version_without_a_proof_says_so_and_the_champion_has_the_ledgers_last(
    plain: Facts, registered: Workspace
) -> None:
    assert "The proof was not taken yet" in Read(render(plain)).words
    champion = read_facts(registered, MODEL, "champion", RULES)
    assert champion.aliases == ["champion"]
    assert "change" not in names(champion)
    assert "The proof is the ledger's last." in Read(render(champion)).words


def test_a_champion_of_another_model_is_told_and_the_page_is_drawn(plain: Facts) -> None:
    facts = replace(plain, change=Change("1", None, "they are masks of different models."))
    assert "They were not compared: they are masks of different models." in Read(render(facts)).words


def test_a_choice_is_shown_with_every_proposal(plain: Facts) -> None:
    proposals = [
        Proposal("wanda", [0, 0, 0], 0.5),
        Proposal("dass α 0.5", [1, 1, 1], 0.75),
        Proposal("mix", [0, 1, 0], 0.4),
    ]
    found = Choice([Score("wanda"), Score("dass", 0.5)], proposals, "mix", 4, 64)
    read = Read(render(replace(plain, manifest={**plain.manifest, "auto": found.named})))
    assert "choice" not in names(plain)
    assert found.told in read.words
    for told in ("wanda in 2 of 3 layers", "0.75000", "+25.00%", "4 calibration windows (64 tokens)"):
        assert told in read.words
