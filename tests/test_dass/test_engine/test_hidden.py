"""The buffer of hidden states holds the same bits wherever it lies."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dass.engine import hidden
from dass.engine.hidden import HiddenStates, Place, choose_place
from dass.errors import InputError

SHAPE = (7, 4, 8)
BYTES = 7 * 4 * 8 * 4
CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]
PLACES: list[Place] = ["device", "host", "disk"]


def random_states(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)


def filled(place: Place, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> HiddenStates:
    states = HiddenStates(SHAPE, dtype, device, place)
    states.write(slice(0, 7), random_states(dtype).to(device))
    return states


def content(states: HiddenStates) -> torch.Tensor:
    return states.read(slice(0, 7)).cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("device", DEVICES)
def test_what_is_written_is_read(device: str, place: Place, dtype: torch.dtype) -> None:
    with filled(place, torch.device(device), dtype) as states:
        assert states.place == place
        assert torch.equal(content(states), random_states(dtype))
        some = states.read(slice(2, 4))
        assert (some.device.type, some.dtype) == (device, dtype)
        assert torch.equal(some.cpu(), random_states(dtype)[2:4])


@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("device", DEVICES)
def test_batches_are_all_windows_in_order_and_may_be_replaced(device: str, place: Place, size: int) -> None:
    with filled(place, torch.device(device)) as states:
        for layer in range(3):
            seen = []
            for rows, batch in states.batches([slice(start, min(start + size, 7)) for start in range(0, 7, size)]):
                seen.append(rows)
                states.write(rows, batch * 2 + layer)
            assert [window for rows in seen for window in range(7)[rows]] == list(range(7))
        assert torch.equal(content(states), ((random_states() * 2 + 0) * 2 + 1) * 2 + 2)


@pytest.mark.parametrize("place", PLACES)
def test_a_read_on_the_cpu_copies_nothing(place: Place) -> None:
    with filled(place) as states:
        assert states.read(slice(1, 3)).data_ptr() == states.read(slice(0, 7))[1:].data_ptr()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("device", DEVICES)
def test_saved_states_are_loaded_again(device: str, place: Place, tmp_path: Path) -> None:
    with filled(place, torch.device(device), torch.bfloat16) as states:
        states.save(tmp_path / "h.safetensors")
    assert torch.equal(load_file(tmp_path / "h.safetensors")["hidden_states"], random_states(torch.bfloat16))
    assert [path.name for path in tmp_path.iterdir()] == ["h.safetensors"]
    with HiddenStates(SHAPE, torch.bfloat16, torch.device(device), place) as states:
        states.load(tmp_path / "h.safetensors")
        assert torch.equal(content(states), random_states(torch.bfloat16))


@pytest.mark.parametrize(
    ("shape", "dtype"), [((7, 4, 4), torch.float32), ((8, 4, 8), torch.float32), (SHAPE, torch.bfloat16)]
)
def test_states_of_another_run_are_refused(shape: tuple[int, int, int], dtype: torch.dtype, tmp_path: Path) -> None:
    filled("host").save(tmp_path / "h")
    with (
        HiddenStates(shape, dtype, CPU) as states,
        pytest.raises(InputError, match=r"shape \(7, 4, 8\) in torch\.float32: expected .* another run"),
    ):
        states.load(tmp_path / "h")


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path) -> None:
    states = filled("host")
    with pytest.raises(InputError, match="cannot be read"):
        states.load(tmp_path / "h")
    states.save(tmp_path / "h")
    (tmp_path / "h").write_bytes((tmp_path / "h").read_bytes()[:-1])
    with pytest.raises(InputError, match="cannot be read"):
        states.load(tmp_path / "h")
    save_file({"weights": torch.ones(3)}, tmp_path / "h")
    with pytest.raises(InputError, match="cannot be read"):
        states.load(tmp_path / "h")
    assert torch.equal(content(states), random_states())


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """What a full disk does to a growing file, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_without_room_is_an_error_before_any_work(tmp_path: Path) -> None:
    with no_file_beyond(BYTES - 1), pytest.raises(OSError):
        HiddenStates(SHAPE, torch.float32, CPU, "disk", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_save_without_room_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    states = filled("host")
    states.save(tmp_path / "h")
    before = (tmp_path / "h").read_bytes()
    states.write(slice(0, 7), torch.zeros(SHAPE))
    with no_file_beyond(BYTES - 1), pytest.raises(OSError, match=r"File too large: '.*/h'"):
        states.save(tmp_path / "h")
    assert (tmp_path / "h").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["h"]


def test_the_file_has_its_blocks_and_no_name(tmp_path: Path) -> None:
    with HiddenStates(SHAPE, torch.float32, CPU, "disk", tmp_path) as states:
        assert not list(tmp_path.iterdir())
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
        assert len(mapped) == 1
        assert torch.equal(content(states), torch.zeros(SHAPE))
        states.close()
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(("free", "place"), [(10 * BYTES, "host"), (BYTES, "disk")])
def test_auto_takes_the_disk_where_memory_is_short(free: int, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden, "free_host_memory", lambda: free)
    assert HiddenStates(SHAPE, torch.float32, CPU).place == place


@pytest.mark.parametrize(
    ("on_device", "on_host", "place"),
    [(10_000, 0, "device"), (1_999, 10_000, "host"), (1_999, 1_024 / 0.6 - 1, "disk")],
)
def test_auto_prefers_the_device_then_the_host(
    on_device: int, on_host: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hidden, "free_device_memory", lambda device: on_device)
    monkeypatch.setattr(hidden, "free_host_memory", lambda: on_host)
    assert choose_place(1_000, torch.device("cuda"), "auto") == place  # 1024 bytes page-locked


def test_an_unknown_place_is_refused() -> None:
    with pytest.raises(InputError, match=r"engine\.hidden_states is 'moon': expected one of auto, device, host, disk"):
        HiddenStates(SHAPE, torch.float32, CPU, "moon")  # type: ignore[arg-type]


def test_a_buffer_larger_than_the_memory_says_what_would_fit() -> None:
    with pytest.raises(InputError, match=r"need 4194304\.0 GiB, more than is free on cpu\. Set engine\.hidden_states"):
        HiddenStates((2**20, 2**20, 2**10), torch.float32, CPU, "host")


class Clock:
    """Stands for CUDA's streams and events: notes what was asked for, in order."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: "Clock") -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> "Clock":
        return self

    def wait_event(self, event: "Clock") -> None:
        self.log.append(f"{self.name} waits for {event.name}")


@pytest.mark.parametrize("place", ["host", "disk"])
@pytest.mark.parametrize("taken", [1, 3])
def test_batches_that_are_copied_ahead_are_waited_for(
    place: Place, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Clock("compute", log))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Clock("copy", log))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    states = filled(place)
    states._is_away = True
    batches = states.batches([slice(0, 3), slice(3, 6), slice(6, 7)])
    for _ in range(taken):
        rows, batch = next(batches)
        assert torch.equal(batch, random_states()[rows])
        states._states_STH[rows] = 0.0
        log.append("given")
    batches.close()  # type: ignore[attr-defined]
    ahead, arrived = "copy waits for compute", "compute waits for copy"
    if taken == 1:
        assert log == [ahead, ahead, arrived, "given", arrived]
    else:
        assert log == [ahead, ahead, arrived, "given", ahead, arrived, "given", arrived, "given", arrived]
