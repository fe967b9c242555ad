"""Bytes flipped at random in a version's files, and looked for by the step of a proof that looks at files."""

import random
from collections.abc import Sequence
from pathlib import Path

from tasks.promotion.proof import Step, take_step
from tasks.promotion.proof_steps import check_files
from tasks.registry.tracking import tracking
from tasks.workspace.folder import Workspace


def check_flips_are_caught(
    ws: Workspace, folder: Path, version: str, files: Sequence[Path], times: int, seed: int
) -> None:
    """Flip a bit so often, in one file after the other. Each is as before when this ends."""
    draw = random.Random(seed)
    with tracking(ws) as client:

        def step() -> Step:
            return take_step("files", lambda: check_files(ws, client, "tiny", folder, version), folder)

        assert step().passed
        for number in range(times):
            path = files[number % len(files)]
            content = path.read_bytes()
            at = draw.randrange(len(content))
            put(path, content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :])
            assert step().passed is False, (path, at)
            put(path, content)
        assert step().passed


def put(path: Path, content: bytes) -> None:
    """Another file of that name: this one may have a second name in artifacts/."""
    path.unlink()
    path.write_bytes(content)
