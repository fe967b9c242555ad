"""What Prefect's pages only show is left out when its server does not answer, and that is said once."""

import logging
from types import SimpleNamespace

import httpx
import pytest

from flows import heard
from flows.heard import if_heard


def test_what_is_not_heard_stops_nothing_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heard, "_rest_until", 0.0)
    heard._tell.cache_clear()
    asked = []

    @if_heard
    def show(what: str) -> None:
        asked.append(what)
        raise httpx.ConnectError("refused.")

    with caplog.at_level(logging.WARNING, logger="dass"):
        show("one")
        monkeypatch.setattr(heard, "_rest_until", 0.0)
        show("two")
    assert asked == ["one", "two"]
    assert [record.message for record in caplog.records] == [
        "Prefect's server does not answer (refused): its pages miss what is done meanwhile"
    ]


def test_a_fault_of_what_is_shown_is_one() -> None:
    @if_heard
    def show() -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        show()


def test_a_server_that_took_long_to_say_nothing_is_not_asked_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heard, "_rest_until", 0.0)
    now = iter([100.0, 190.0, 200.0])
    monkeypatch.setattr(heard, "time", SimpleNamespace(monotonic=lambda: next(now)))
    asked = []

    @if_heard
    def show() -> None:
        asked.append(1)
        raise httpx.ReadTimeout("")

    show()
    show()
    assert asked == [1]
