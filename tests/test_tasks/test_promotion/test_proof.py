"""A step of a proof: what fails it, and what is the machine's fault."""

import errno
from pathlib import Path

import pytest

from tasks.promotion.proof import take_step
from tasks.registry.version_folder import MASKS


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device", "/tmp/x"),
        PermissionError(errno.EACCES, "Permission denied", "/x"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/nowhere/base/model.safetensors"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        MemoryError(),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_a_fault_of_the_machine_is_no_failed_step(fault: Exception, tmp_path: Path) -> None:
    def check() -> str:
        raise fault

    step = take_step("weights", check, tmp_path)
    assert (step.passed, step.fault) == (None, fault)


def test_a_file_that_the_version_lacks_is_a_failed_step(tmp_path: Path) -> None:
    step = take_step("pattern", lambda: (tmp_path / MASKS).read_text(), tmp_path)
    assert step.passed is False
    assert MASKS in step.told
