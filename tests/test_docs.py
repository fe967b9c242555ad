"""What README and docs say of the code and of each other is so."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import dass

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def sources() -> list[Path]:
    return [path for floor in ("dass", "tasks", "flows") for path in sorted((ROOT / floor).rglob("*.py"))]


def literals() -> list[str]:
    """Every piece of text in the code; neighbouring pieces are one, as Python joins them."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sources()]
    nodes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return [node.value for node in nodes if isinstance(node.value, str)]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def test_the_files_that_contributing_names_are_there() -> None:
    said = re.findall(r"`((?:dass|tasks|flows|tests|docs)/[\w./]+)`", (ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert len(said) > 10
    assert not [name for name in said if not (ROOT / name).exists()]


def test_every_page_is_in_the_navigation_once() -> None:
    navigation = YAML(typ="safe").load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]

    def pages(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        parts = entry.values() if isinstance(entry, dict) else entry
        return [page for part in parts for page in pages(part)]  # type: ignore[attr-defined]

    assert sorted(pages(navigation)) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_the_api_page_has_every_public_name_once() -> None:
    shown = re.findall(r"^::: dass\.(\w+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(shown) == sorted(set(dass.__all__) - {"__version__"})


def test_the_lock_of_the_docs_has_what_the_extra_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {re.split(r"[\[<>=]", each)[0] for each in project["optional-dependencies"]["docs"]}
    lock = (ROOT / "requirements-docs.lock").read_text(encoding="utf-8")
    assert wanted <= set(re.findall(r"^([\w-]+)==", lock, re.MULTILINE))


@pytest.mark.slow
def test_the_pages_build_as_a_site_without_a_warning(tmp_path: Path) -> None:
    python, lock, site = tmp_path / "venv" / "bin" / "python", ROOT / "requirements-docs.lock", tmp_path / "site"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--requirement", str(lock)], check=True)
    build = [str(python), "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reference = (site / "api" / "index.html").read_text(encoding="utf-8")
    assert all(f'id="dass.{name}"' in reference for name in set(dass.__all__) - {"__version__"})


def test_environment_md_names_the_variables_that_the_code_reads_and_no_others() -> None:
    variable = re.compile(r"\bDASS_[A-Z_]+[A-Z]\b")
    read = {name for path in sources() for name in variable.findall(path.read_text(encoding="utf-8"))}
    said = set(variable.findall((DOCS / "environment.md").read_text(encoding="utf-8")))
    assert said == read


def test_the_messages_that_are_explained_are_in_the_code() -> None:
    table = re.findall(r"^\| `([^`]+)` \|", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(table) > 15
    known = [text.lower() for text in literals()]
    missing = [phrase for phrase in table if not any(phrase.lower() in text for text in known)]
    assert not missing


def test_reliability_md_names_the_faults_that_are_injected_and_no_others() -> None:
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    injected = {fault for text in tests for fault in re.findall(r'mark\.faults\(\s*"([^"]+)"', text)}
    said = re.findall(r"^\| ([^|`]+) \| \d+ \|", (DOCS / "reliability.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(said) == len(set(said))
    assert set(said) == injected
