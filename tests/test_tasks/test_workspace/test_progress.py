import io
import logging
import sys
import time

import pytest

from tasks.workspace import progress as module
from tasks.workspace.progress import TERMINAL, TimeLeft, duration, progress, progress_bar, working


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
    assert caplog.messages[4].endswith(" left")
    assert not caplog.messages[-1].endswith(" left")


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


@pytest.mark.parametrize("variable", [("TERM", "dumb"), ("NO_COLOR", "1")])
def test_a_plain_terminal_gets_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: tuple[str, str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(*variable)
    with caplog.at_level(logging.INFO, logger="dass"):
        list(progress(range(3), "reading"))
    assert terminal.getvalue() == ""
    assert len(caplog.messages) == 3


def test_quiet_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    handler = logging.StreamHandler(io.StringIO())
    handler.name = TERMINAL
    handler.setLevel(logging.WARNING)
    monkeypatch.setattr(logging.getLogger("dass"), "handlers", [handler])
    list(progress(range(3), "reading"))
    assert terminal.getvalue() == ""


def test_work_of_unknown_length_is_told_ever_more_seldom_while_it_lasts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.02)
    with caplog.at_level(logging.INFO, logger="dass"):
        with working("fetching", lambda: "12 MB"):
            time.sleep(0.15)
        told = len(caplog.messages)
        time.sleep(0.1)
    assert 1 <= told <= 2  # after 0.02 s and 0.1 s
    assert len(caplog.messages) == told
    assert caplog.messages[0].startswith("fetching: 12 MB, ")


def test_quick_work_of_unknown_length_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="dass"), working("fetching"):
        pass
    assert caplog.messages == []


def test_work_that_fails_passes_its_own_error_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(RuntimeError, match="disk"), progress_bar(3, "reading"):
        raise RuntimeError("disk")


def test_items_without_a_length_need_a_total() -> None:
    with pytest.raises(TypeError, match="pass total"):
        next(progress(iter("abc"), "reading"))


def test_a_length_of_time_is_told_as_well_as_it_is_known() -> None:
    told = {0.0: "0.1 s", 0.44: "0.4 s", 9.94: "9.9 s", 12.3: "12 s", 89: "89 s", 200: "3 min", 5399: "90 min"}
    assert {seconds: duration(seconds) for seconds in told} == told
    assert duration(9000) == "2.5 h"


def test_what_is_left_goes_by_what_was_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    left = TimeLeft(50)
    assert left.told(40) is None, "an earlier run did that"
    now[0] += 20
    assert left.told(42) == "about 80 s left"
    assert left.told(50) is None
