"""One of the ranks of `test_divided`, as a program: FOLDER holds what `Pruned` made."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from dass.engine.ranks import joined_ranks
from dass.files import sha256_file, write_json
from dass.model.pretrained import load_model
from dass.recovery.divided import divide, here
from dass.recovery.loop import Recovery
from dass.recovery.teacher import LiveTeacher
from tests.test_dass.test_recovery.pruned import WINDOWS, Pruned, recipe, trained


class Killed(BaseException):
    """Ends a run where it stands."""


def main(folder: Path, changes: dict[str, Any]) -> None:
    asked, cpu, pruned = recipe(steps=6, **changes), torch.device("cpu"), Pruned.of(folder)
    with joined_ranks(folder / "meet") as ranks:

        def begun(work: str) -> Recovery:
            student, teacher = pruned.student(asked.train), load_model(folder / "base", torch.float32)
            student.divide(ranks, cpu)
            divide(teacher, ranks, cpu)
            live = LiveTeacher(teacher, WINDOWS[0], asked.temperature, asked.mse > 0)
            return pruned.recovery(asked, work, ranks, student=student, teacher=live)

        def stop(entry: dict[str, Any]) -> None:
            if entry["step"] == 3:
                raise Killed

        undisturbed = begun("undisturbed")
        state = trained(undisturbed)
        try:
            trained(begun("killed"), stop)
        except Killed:
            ranks.wait()
        again = begun("killed")
        resumed_at = again.state.step
        assert trained(again) == state
        found, values = again._student.stored_values(), undisturbed._student.stored_values()
        held = sum(here(parameter).numel() for parameter in again._student.trained.values())
        if ranks.is_first:
            write_json(
                folder / "told.json",
                {
                    "history": state.history,
                    "resumed_at": resumed_at,
                    "same": all(torch.equal(value, values[name]) for name, value in found.items()),
                    "zeros": all(not values[name][~keep].any() for name, keep in pruned.masks.items()),
                    "share": held / sum(value.numel() for value in values.values()),
                    "states": [
                        sha256_file(next((folder / each).glob("state_*"))) for each in ("undisturbed", "killed")
                    ],
                },
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
