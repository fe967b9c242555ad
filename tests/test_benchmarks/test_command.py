import pytest

from benchmarks import command
from benchmarks.job import JobFailed
from dass.errors import InputError


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (KeyboardInterrupt(), 130, "Interrupted. The same command, without --fresh, goes on"),
        (InputError("no such folder"), 2, "no such folder"),
        (JobFailed("it ended with status 1."), 2, "it ended with status 1."),
    ],
)
def test_what_ends_a_benchmark_is_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, told: str
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        command.run(main)
    assert left.value.code == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(told)
