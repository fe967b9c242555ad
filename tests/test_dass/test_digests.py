import hashlib
import random
from pathlib import Path

import pytest

from dass.digests import Digests, Hashing, copy_file, digests_of

CONTENT = random.Random(0).randbytes(9_000_001)  # more than two parts, and no whole number of them
EXPECTED = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()


def test_a_file_has_the_digests_of_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(CONTENT)
    assert digests_of(file) == Digests(len(CONTENT), EXPECTED[0], None)
    assert digests_of(file, md5=True) == Digests(len(CONTENT), *EXPECTED)


def test_a_copy_is_the_same_bytes_and_tells_their_digests(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(CONTENT)
    assert copy_file(tmp_path / "x", tmp_path / "y", md5=True) == Digests(len(CONTENT), *EXPECTED)
    assert (tmp_path / "y").read_bytes() == CONTENT


@pytest.mark.parametrize("md5", [False, True])
def test_digests_do_not_depend_on_how_bytes_come(md5: bool) -> None:
    hashing = Hashing(md5)
    part = bytearray(70_000)
    for begin in range(0, len(CONTENT), len(part)):
        size = len(CONTENT[begin : begin + len(part)])
        part[:size] = CONTENT[begin : begin + size]
        hashing.update(memoryview(part)[:size])
        hashing.update(b"")
        part[:size] = bytes(size)  # its owner may do with it what it wants
    assert hashing.digests() == Digests(len(CONTENT), EXPECTED[0], EXPECTED[1] if md5 else None)
