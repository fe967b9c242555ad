"""What may be shown of texts and addresses that hold secrets: everything that prints, logs, tags or raises asks here.

Of an address (any scheme, with or without a host) user information and query are never shown; in other texts also what
stands behind `password=` and its like, tokens by their form, and the secrets that this process's environment holds,
however they are spelled. What looks like a secret is hidden: showing too little is the smaller fault.
"""

import logging
import os
import re
from collections.abc import Sequence
from urllib.parse import parse_qsl, unquote, unquote_plus

HIDDEN = "…"

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")
_CLOSING = re.compile(r"[)\]}>'\"`.,:;]*\Z")
# What pathlib makes of an address: one slash. models:/NAME@ALIAS is none.
_FLATTENED = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]+:/)[^\s/:@]*:[^\s@]*@")
_SECRET_KEY = (
    r"pass(?:word|wd|phrase)?|pwd|pin-value|secret|token|credentials?|(?:api|access|account|private|secret)[_-]?key|sig"
)
_ASSIGNED = re.compile(
    rf"(?i)(?<![A-Za-z])((?:[a-z]+[_-])?(?:{_SECRET_KEY})['\"]?\s*=\s*|['\"](?:\w+[_-])?(?:{_SECRET_KEY})['\"]\s*:\s*)"
    r"('[^']*'|\"[^\"]*\"|\{[^}]*\}|[^\s;&,]+)"
)
_AUTHORIZATION = re.compile(r"(?i)\b(basic|bearer)\s+[A-Za-z0-9+/=._~-]{8,}")
_TOKEN = re.compile(r"\b(?:hf_|gh[pousr]_|github_pat_|glpat-|pypi-|xox[abp]-)[A-Za-z0-9_-]{12,}")
_SECRET_NAME = re.compile(r"(?:PASSWORD|PASSWD|PASSPHRASE|TOKEN|SECRET|CREDENTIALS|API_KEY|ACCESS_KEY|AUTH_STRING)\Z")
_SHORTEST = 4  # a shorter one would be found in every word


def shown_address(address: str) -> str:
    """An address without user, password, query and fragment: what may be printed, logged, tagged and stored."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return _FLATTENED.sub(r"\1", address)
    return f"{scheme}://{re.split('[?#]', _split_login(rest)[1], maxsplit=1)[0]}"


def source_name(uri: str | Sequence[str]) -> str:
    """What a source is called in a title: the end of its address, of one in several parts what they are parts of."""
    first = uri if isinstance(uri, str) else uri[0]
    return re.sub(r"\.part\d+\Z", "", shown_address(first).rstrip("/").rpartition("/")[2])


def _split_login(rest: str) -> tuple[str, str]:
    """What stands before the host ("" when nothing does), and the rest of an address behind "://".

    A password may hold an @, a slash or a question mark, though it should not: a login goes up to the last @.
    """
    first = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" not in rest or not re.search("[:@]", first):
        return "", rest  # no host, or a plain one: the path may hold an @
    login, _, behind = rest.rpartition("@")
    return login, behind


def redacted(text: str) -> str:
    """A text without the secrets in it."""
    for secret in _secrets():
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    text = _ADDRESS.sub(_shown_match, text)
    text = _FLATTENED.sub(r"\1", text)
    text = _ASSIGNED.sub(rf"\1{HIDDEN}", text)
    text = _AUTHORIZATION.sub(rf"\1 {HIDDEN}", text)
    return _TOKEN.sub(HIDDEN, text)


class RedactingFilter(logging.Filter):
    """Takes the secrets out of every record, whichever handler it goes to."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redacted(record.getMessage()), None
        return True


def _shown_match(match: re.Match[str]) -> str:
    address = match[0]
    closing = _CLOSING.search(address)
    end = closing[0] if closing else ""
    shown = shown_address(address.removesuffix(end))
    return shown + end


def _secrets() -> list[str]:
    """Every secret of the environment in every spelling, the longest first."""
    found: set[str] = set()
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name):
            found |= {value, value.partition(":")[2]}  # an auth string is user:password
        if "://" in value:
            found |= _secrets_of(value)
    return sorted((secret for secret in found if len(secret) >= _SHORTEST), key=len, reverse=True)


def _secrets_of(address: str) -> set[str]:
    """Passwords and tokens in an address: raw and decoded, of its login and of its query."""
    login, rest = _split_login(address.partition("://")[2])
    user, colon, password = login.partition(":")
    raw = {password if colon else user}  # a login of one word is a token
    for name, value in parse_qsl(rest.partition("?")[2]):
        if re.search(rf"(?i){_SECRET_KEY}", name):
            raw.add(value)
        raw |= {found[2].strip("'\"{}") for found in _ASSIGNED.finditer(value)}  # odbc_connect=DRIVER=...;PWD=...
    spellings = (str, unquote, unquote_plus, lambda secret: repr(secret)[1:-1])
    return {spell(secret) for secret in raw for spell in spellings}
