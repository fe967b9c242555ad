"""Webhooks: who is told what, signed, tried again, and never waited for long."""

import base64
import hmac
import json
import logging
import time
from typing import Any

import pytest

from dass.errors import InputError
from tasks.notify import check_notify, tell
from tasks.workspace.settings import Notify, validate_settings
from tests.peers import BAD, peer
from tests.receivers import receiver
from tests.workspaces import tiny_settings

SECRET = "a secret that both sides know"


@pytest.fixture(autouse=True)
def _tries_follow_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.notify._PAUSE", 0.05)


def test_a_body_says_what_happened_and_its_signature_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    with receiver() as there:
        tell(Notify(urls=[there.address], secret_env="HOOK_SECRET"), "refused", {"version": "3", "why": "max_ratio"})
    ((headers, body),) = there.got
    said = json.loads(body)
    assert (said["type"], said["data"]) == ("dass.refused", {"version": "3", "why": "max_ratio"})
    signed = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    expected = base64.b64encode(hmac.digest(SECRET.encode(), signed, "sha256")).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 60


def test_a_secret_in_the_form_of_standard_webhooks_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", f"whsec_{base64.b64encode(b'raw bytes').decode()}")
    with receiver() as there:
        tell(Notify(urls=[there.address], secret_env="HOOK_SECRET"), "failed", {})
    ((headers, body),) = there.got
    signed = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    expected = base64.b64encode(hmac.digest(b"raw bytes", signed, "sha256")).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


def test_it_is_tried_again_under_the_same_id(caplog: pytest.LogCaptureFixture) -> None:
    with receiver(503, 500, 200) as there:
        tell(Notify(urls=[there.address]), "promoted", {})
    assert len(there.got) == 3
    assert len({headers["webhook-id"] for headers, _ in there.got}) == 1
    assert not caplog.records
    assert "webhook-signature" not in there.got[0][0]


@pytest.mark.parametrize(("answer", "tries"), [(400, 1), (302, 1), (500, 3)])
def test_one_that_refuses_is_named_without_its_secret_path(
    answer: int, tries: int, caplog: pytest.LogCaptureFixture
) -> None:
    with receiver(answer) as there, receiver() as other, caplog.at_level(logging.WARNING, "dass"):
        tell(Notify(urls=[there.address, other.address]), "promoted", {})
    assert len(there.got) == tries
    assert len(other.got) == 1
    (told,) = caplog.messages
    assert told.endswith(f"was not told of promoted: it answered {answer}")
    assert "127.0.0.1" in told
    assert not any(secret in told for secret in ("T0KEN", "alsosecret"))


@pytest.mark.parametrize("behaviour", BAD, ids=lambda each: each.__name__)
def test_none_is_waited_for_longer_than_it_may_take(behaviour: Any, caplog: pytest.LogCaptureFixture) -> None:
    begin = time.monotonic()
    with peer(behaviour) as port, caplog.at_level(logging.WARNING, "dass"):
        tell(Notify(urls=[f"http://127.0.0.1:{port}/"], timeout=1), "failed", {})
    assert time.monotonic() - begin < 3
    assert len(caplog.messages) == (behaviour.__name__ not in ("drips_its_body", "answers_without_end"))


def test_nobody_there_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with peer(BAD[0]) as port:
        pass
    with caplog.at_level(logging.WARNING, "dass"):
        tell(Notify(urls=[f"http://127.0.0.1:{port}/"]), "failed", {})
    assert caplog.messages == [
        f"the webhook at http://127.0.0.1:{port} was not told of failed: ConnectionError in 3 tries"
    ]


def test_only_what_was_asked_for_is_told() -> None:
    with receiver() as there:
        tell(Notify(urls=[there.address], events=["refused"]), "promoted", {})
        tell(Notify(), "refused", {})
    assert not there.got


def test_secrets_are_hidden_in_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "planted-secret")
    with receiver() as there:
        tell(
            Notify(urls=[there.address]),
            "failed",
            {"why": "login planted-secret", "rules": [{"told": "planted-secret"}]},
        )
    assert "planted-secret" not in there.got[0][1].decode()


def test_an_address_from_the_environment_is_asked_for_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Notify(urls=["env:MY_HOOK"], secret_env="MY_HOOK_SECRET")
    with pytest.raises(InputError, match=r"notify.urls names MY_HOOK, which is not set"):
        check_notify(asked)
    monkeypatch.setenv("MY_HOOK", "mailto:x")
    with pytest.raises(InputError, match=r"MY_HOOK, which holds no address"):
        check_notify(asked)
    with receiver() as there:
        monkeypatch.setenv("MY_HOOK", there.address)
        with pytest.raises(InputError, match=r"notify.secret_env names MY_HOOK_SECRET, which is not set"):
            check_notify(asked)
        monkeypatch.setenv("MY_HOOK_SECRET", "whsec_***")
        with pytest.raises(InputError, match="begins with whsec_, and no base64 follows"):
            check_notify(asked)
        monkeypatch.setenv("MY_HOOK_SECRET", SECRET)
        check_notify(asked)
        tell(asked, "refused", {})
    assert len(there.got) == 1


def test_what_went_missing_since_is_a_warning_and_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "dass"):
        tell(Notify(urls=["env:NEVER_SET"]), "failed", {})
    assert caplog.messages[0].startswith("nobody was told of failed: notify.urls names NEVER_SET")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("urls", ["ftp://x"], r"notify.urls.*: entry 1: expected https://..., or env:NAME"),
        ("urls", ["https://x/", "env:1X"], r"entry 2: expected"),
        ("events", ["registered"], r"notify.events"),
        ("secret_env", "not a name", r"notify.secret_env is 'not a name'"),
        ("timeout", 0, r"notify.timeout is 0"),
    ],
)
def test_what_cannot_be_used_is_refused(key: str, value: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        validate_settings(tiny_settings(**{f"notify__{key}": value}), "params.yaml")


def test_no_record_of_a_result_holds_the_addresses() -> None:
    settings = validate_settings(tiny_settings(notify__urls=["https://host/T0KEN"]), "params.yaml")
    assert "notify" not in settings.model_dump(mode="json", by_alias=True)
