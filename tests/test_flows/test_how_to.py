"""Every sh block of the how-tos is typed into a shell as it stands, on a tiny model, and ends well."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from flows.initialise import make_workspace
from tests.models import save_tiny_checkpoint, tiny_text
from tests.test_flows.conftest import Commands

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"
TYPED = {
    page.name: re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for page in sorted(HOW_TO.glob("*.md"))
}
RUNS_ON = {"mlflow server": "Application startup complete", "dass serve": "Stop with Ctrl-C"}
"""What runs until it is stopped, and what it says when it is there."""
CONTEXT = 512


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with what a reader has: my-model, texts, and a workspace of them in a git repository."""
    save_tiny_checkpoint(tmp_path / "my-model", max_position_embeddings=CONTEXT)
    text = tiny_text(1000)
    size = len(text) // 40
    documents = [json.dumps({"text": text[at : at + size]}) + "\n" for at in range(0, len(text) - size, size)]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "train.jsonl").write_text("".join(documents[:29]), encoding="utf-8")
    (tmp_path / "texts" / "held-out.jsonl").write_text("".join(documents[30:]), encoding="utf-8")
    return tmp_path


def workspace(desk: Path) -> Path:
    texts = str(desk / "texts" / "train.jsonl"), str(desk / "texts" / "held-out.jsonl")
    small = ["calibration.samples=8", "evaluate.samples=8", "engine.device=cpu"]
    folder = make_workspace(desk / "ws", str(desk / "my-model"), *texts, changes=small).root
    for line in ("init -q", "add --all", "-c user.name=me -c user.email=me@home commit -q -m begun"):
        subprocess.run(["git", *line.split()], cwd=folder, check=True, capture_output=True)
    return folder


def script(blocks: list[str], log: Path) -> str:
    """The lines for bash. One that runs on goes into the background, and the next waits until it is there."""
    lines = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT"]
    for line in "\n".join(blocks).splitlines():
        begun = next((ready for start, ready in RUNS_ON.items() if line.startswith(start)), None)
        if begun is None:
            lines.append(line)
        else:
            there = f"grep -q '{begun}' {log}"
            lines += [f"{line} > {log} 2>&1 &", f"for _ in {{1..600}}; do {there} && break; sleep 0.2; done; {there}"]
    return "\n".join(lines)


def test_the_shell_waits_for_what_runs_on(tmp_path: Path) -> None:
    lines = script(["dass serve --cron x\ndass show\n"], tmp_path / "log").splitlines()
    assert lines[2] == f"dass serve --cron x > {tmp_path / 'log'} 2>&1 &"
    assert lines[3].endswith(f"done; grep -q 'Stop with Ctrl-C' {tmp_path / 'log'}")  # or the script ends here
    assert lines[4] == "dass show"


def test_pages_without_a_line_to_type_need_a_card_a_login_or_servers() -> None:
    servers = "stack.md"  # its commands are those of tests/test_flows/test_stack
    assert {name for name, blocks in TYPED.items() if not blocks} == {"gpu.md", "private-model.md", servers}


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name, blocks in TYPED.items() if blocks])
def test_a_how_to_s_lines_do_what_it_says(page: str, desk: Path, commands: Commands) -> None:
    here = desk if page == "own-data.md" else workspace(desk)
    author = {f"GIT_{who}_{what}": "me@home" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["bash", "-c", script(TYPED[page], desk / "log")],
        cwd=here,
        env={
            **commands.environment,
            **author,
            "XDG_CONFIG_HOME": str(desk / "config"),
            "DASS_CACHE": str(desk / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    log = (desk / "log").read_text(encoding="utf-8") if (desk / "log").exists() else ""
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{log}"
