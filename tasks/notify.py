"""Webhooks: what section `notify` asks to be told, to whom it asks.

A delivery is a POST as Standard Webhooks has it: a JSON body of "type", "timestamp" and "data", and the headers
webhook-id, webhook-timestamp and, with a secret, webhook-signature: HMAC-SHA256 over "ID.TIMESTAMP.BODY". Telling never
fails and never holds up what is told of: it has `notify.timeout` seconds in all, and then a warning.
"""

import base64
import binascii
import hmac
import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from dass.errors import InputError
from tasks.workspace.redaction import redacted
from tasks.workspace.settings.notify import FROM_ENVIRONMENT, Event, Notify

logger = logging.getLogger("dass")

_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_TRIES, _PAUSE = 3, 0.5  # seconds before the second try, and twice as many before the third
_ENCODED = "whsec_"


def check_notify(notify: Notify) -> None:
    """Refuse, before any work, what nobody could be told with.

    Raises:
        InputError: an environment variable that the section names is not set, or holds no address.
    """
    _addresses(notify)
    _secret(notify)


def tell(notify: Notify, event: Event, data: Mapping[str, Any]) -> None:
    """Tell every address of an event, when the settings ask for it. Returns when all were told, or time is up.

    Args:
        notify: section `notify`.
        event: what happened.
        data: JSON values that say who, what and why; secrets in them are hidden.
    """
    if not notify.urls or event not in notify.events:
        return
    try:
        addresses, secret = _addresses(notify), _secret(notify)
    except InputError as error:
        logger.warning("nobody was told of %s: %s", event, error)
        return
    said = {"type": f"dass.{event}", "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds"), "data": data}
    body = json.dumps(_clean(said), ensure_ascii=False).encode("utf-8", "backslashreplace")
    outcomes: dict[int, str | None] = {}
    until = time.monotonic() + notify.timeout

    def post(number: int, address: str) -> None:
        outcomes[number] = _post(address, body, secret, until)

    threads = [
        threading.Thread(target=post, args=each, daemon=True, name="dass webhook") for each in enumerate(addresses)
    ]
    for thread in threads:
        thread.start()
    for number, (thread, address) in enumerate(zip(threads, addresses, strict=True)):
        thread.join(max(0.0, until - time.monotonic()))
        told = outcomes.get(number, f"no answer within {notify.timeout} s")
        if told is not None:
            logger.warning("the webhook at %s was not told of %s: %s", _host(address), event, told)


def signature_of(secret: bytes, delivery: str, timestamp: str, body: bytes) -> str:
    """The header webhook-signature: what a receiver computes again and compares.

    Args:
        secret: shared with the receiver.
        delivery: the header webhook-id.
        timestamp: the header webhook-timestamp, seconds since 1970.
        body: the request's, byte for byte.
    """
    digest = hmac.digest(secret, b".".join((delivery.encode(), timestamp.encode(), body)), "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"


def _post(address: str, body: bytes, secret: bytes | None, until: float) -> str | None:
    """Deliver once, with tries again until a moment of the monotonic clock. Returns why it was not, or None."""
    import requests

    delivery, timestamp = f"msg_{uuid4().hex}", str(int(time.time()))
    headers = {"Content-Type": "application/json", "webhook-id": delivery, "webhook-timestamp": timestamp}
    if secret is not None:
        headers["webhook-signature"] = signature_of(secret, delivery, timestamp, body)
    told = "there was no time"
    # Not by urllib3's Retry: it logs the address, whose path may be the secret.
    for attempt in range(_TRIES):
        left = until - time.monotonic() - _PAUSE * attempt
        if left <= 0:
            break
        time.sleep(_PAUSE * attempt)
        try:
            status = _answer(address, body, headers, left)
        except requests.RequestException as error:
            told = f"{type(error).__name__} in {attempt + 1} tries"
            continue
        except Exception as error:  # an address that no URL library takes
            return type(error).__name__
        if 200 <= status < 300:
            return None
        told = f"it answered {status}"
        if status not in _AGAIN:
            break
    return told


def _answer(address: str, body: bytes, headers: dict[str, str], seconds: float) -> int:
    """The status alone: what is said beside it may never end, and a redirection leads to nobody that was asked for."""
    import requests

    with requests.post(
        address, data=body, headers=headers, timeout=seconds, allow_redirects=False, stream=True
    ) as answer:
        return answer.status_code


def _addresses(notify: Notify) -> list[str]:
    return [_address(url) for url in notify.urls]


def _address(url: str) -> str:
    if not url.startswith(FROM_ENVIRONMENT):
        return url
    name = url.removeprefix(FROM_ENVIRONMENT)
    address = os.environ.get(name, "").strip()
    if not address.startswith(("http://", "https://")):
        what = "holds no address" if address else "is not set"
        raise InputError(f"notify.urls names {name}, which {what}: expected https://... there. Set it, or take it out.")
    return address


def _secret(notify: Notify) -> bytes | None:
    if notify.secret_env is None:
        return None
    text = os.environ.get(notify.secret_env, "").strip()
    if not text:
        raise InputError(f"notify.secret_env names {notify.secret_env}, which is not set. Set it to the secret.")
    if not text.startswith(_ENCODED):
        return text.encode()
    try:
        return base64.b64decode(text.removeprefix(_ENCODED), validate=True)
    except binascii.Error:
        raise InputError(f"{notify.secret_env} begins with {_ENCODED}, and no base64 follows.") from None


def _host(address: str) -> str:
    """What may be shown of an address: its path may be the secret."""
    try:
        parts = urlsplit(address)
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return "an address that is none"


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: _clean(each) for key, each in value.items()}
    return [_clean(each) for each in value] if isinstance(value, list | tuple) else value
