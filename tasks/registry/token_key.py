"""A signing key that never leaves its token: PKCS#11, found by its URI (RFC 7512) and used by way of model-signing."""

import hashlib
import os
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, SecretsHandler, Signature, Signer, SSlibKey

from dass.errors import InfrastructureError, InputError

if TYPE_CHECKING:
    from model_signing._signing import sign_pkcs11
    from model_signing._signing.pkcs11uri import Pkcs11URI


_URI = "The pkcs11: URI in DASS_SIGNING_KEY"  # which is not shown: parts of it may be secret


class TokenSigner(Signer):
    """Signs with a key on a token, ECDSA over the digest that its curve asks for."""

    def __init__(self, token: "sign_pkcs11.Signer", public_key: SSlibKey):
        self._token: Any = token
        self._public_key = public_key
        self._one_at_a_time = threading.Lock()  # a session does one thing

    @property
    def public_key(self) -> SSlibKey:
        return self._public_key

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> NoReturn:
        raise NotImplementedError("use token_signer")

    def sign(self, payload: bytes) -> Signature:
        """A signature over a payload, looked at before it is given out.

        Raises:
            InputError: the token's private and public keys of this name are two keys.
            InfrastructureError: the token does not answer.
        """
        import PyKCS11

        digest = hashlib.new(self._public_key.get_hash_algorithm_name(), payload).digest()
        try:
            with self._one_at_a_time:
                raw = bytes(
                    self._token.session.sign(
                        self._token._private_key, digest, PyKCS11.Mechanism(PyKCS11.CKM_ECDSA, None)
                    )
                )
        except PyKCS11.PyKCS11Error as error:
            raise InfrastructureError(f"{_URI} did not sign ({error}).") from None
        half = len(raw) // 2
        both = (int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))
        signature = Signature(self._public_key.keyid, encode_dss_signature(*both).hex())
        try:
            self._public_key.verify_signature(signature, payload)
        except UnverifiedSignatureError:
            raise InputError(
                f"{_URI} names a private key and another one's public key. Name one key, by its id."
            ) from None
        return signature


def token_signer(uri: str, name: Callable[[ec.EllipticCurvePublicKey], str]) -> Signer:
    """What signs with the key that a pkcs11: URI names. One session a process: a token takes a login only once.

    Args:
        uri: names the module by module-path, the token, the key by object or id, and the PIN's file by pin-source.
        name: gives the keyid of a public key.

    Raises:
        InputError: PyKCS11 is not installed, the URI holds a PIN, or no key can be used by it.
    """
    return _open(os.getpid(), uri, name)


@lru_cache
def _open(process: int, uri: str, name: Callable[[ec.EllipticCurvePublicKey], str]) -> Signer:
    try:
        import PyKCS11
        from model_signing._signing.pkcs11uri import Pkcs11URI
        from model_signing._signing.sign_pkcs11 import Signer as Token
    except ImportError:
        raise InputError(f"{_URI} needs PyKCS11, which is not installed. Run: pip install PyKCS11") from None
    try:
        parsed = Pkcs11URI()
        parsed.parse(uri)
        pin = _pin(parsed)
        try:
            if pin is not None:
                parsed.set_query_attribute("pin-value", pin, pctencode=True)
            token = Token(parsed.format())
        except PyKCS11.PyKCS11Error as error:
            if error.value != PyKCS11.CKR_USER_ALREADY_LOGGED_IN:
                raise
            parsed.remove_query_attribute("pin-value")  # by this process, for another key of the token
            token = Token(parsed.format())
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{_URI}: the file of pin-source cannot be read ({error.strerror}).") from None
    except (ValueError, PyKCS11.PyKCS11Error) as error:
        raise InputError(f"{_URI} cannot be used ({error}). See docs/keys.md for what it takes.") from None
    public = token.public_key()
    return TokenSigner(token, SSlibKey.from_crypto(public, name(public)))


def _pin(uri: "Pkcs11URI") -> str | None:
    """The PIN in the file that a URI names, which is taken out of the URI."""
    if uri.get_query_attribute("pin-value") is not None:
        raise InputError(f"{_URI} holds its PIN. Write the PIN to a file of mode 0600 and name that by pin-source.")
    module = uri.get_query_attribute("module-path")
    if module is not None and not Path(module).exists():
        raise InputError(f"{_URI}: module-path is {module}, which is not there: expected a PKCS#11 module.")
    if not uri.has_pin():
        return None
    pin = str(uri.get_pin()).rstrip("\r\n")  # model-signing would take the line's end for a part of it
    if not pin.isascii():
        raise InputError(f"{_URI}: the PIN in the file of pin-source has characters beyond ASCII.")
    uri.remove_query_attribute("pin-source")
    return pin
