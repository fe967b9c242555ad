"""Free memory, as the machine and its container say."""

from pathlib import Path

import pytest

from dass.model import memory

GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB available."""
    (tmp_path / "meminfo").write_text(f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable:   {8 * GIB // 1024} kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    return tmp_path


def test_without_a_container_it_is_what_is_available(machine: Path) -> None:
    assert memory.free_host_memory() == 8 * GIB


@pytest.mark.parametrize(("limit", "free"), [("max", 8), (str(4 * GIB), 3), (str(64 * GIB), 8), (str(GIB), 0)])
def test_a_container_is_left_its_limit_without_what_is_used(limit: str, free: int, machine: Path) -> None:
    (machine / "memory.max").write_text(f"{limit}\n")
    (machine / "memory.current").write_text(f"{3 * GIB}\n")
    (machine / "memory.stat").write_text(f"anon {GIB}\ninactive_file {2 * GIB}\n")  # the last is given up on demand
    assert memory.free_host_memory() == free * GIB


def test_a_system_without_proc_has_its_physical_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "nothing")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.free_host_memory() > 0
