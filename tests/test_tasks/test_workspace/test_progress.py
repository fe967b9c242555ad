import io
import logging
import sys

import pytest

from tasks.workspace.progress import progress, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_items_pass_through_unchanged_and_in_order(caplog: pytest.LogCaptureFixture) -> None:
    assert list(progress(iter("abc"), "reading", total=3)) == ["a", "b", "c"]


def test_a_log_gets_about_ten_lines_however_many_items(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="dass"):
        list(progress(range(1000), "reading", unit="windows"))
    assert len(caplog.messages) == 10
    assert caplog.messages[4].startswith("reading: 500 of 1000 windows, ")


def test_a_log_gets_one_line_an_item_when_they_are_few(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="dass"):
        list(progress(range(3), "reading"))
    assert [line.split(",")[0] for line in caplog.messages] == [f"reading: {n} of 3" for n in (1, 2, 3)]


def test_steps_of_many_items_are_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="dass"), progress_bar(64, "evaluating", "windows") as advance:
        for _ in range(8):
            advance(8)
    assert len(caplog.messages) == 8
    assert caplog.messages[-1].startswith("evaluating: 64 of 64 windows")


def test_a_terminal_gets_a_bar_and_the_log_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with caplog.at_level(logging.INFO, logger="dass"):
        list(progress(range(20), "reading", unit="windows"))
    assert "reading" in terminal.getvalue()
    assert "20/20" in terminal.getvalue()
    assert caplog.messages == []
    assert capsys.readouterr().out == ""


def test_work_that_fails_passes_its_own_error_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(RuntimeError, match="disk"), progress_bar(3, "reading"):
        raise RuntimeError("disk")


def test_items_without_a_length_need_a_total() -> None:
    with pytest.raises(TypeError, match="pass total"):
        next(progress(iter("abc"), "reading"))
