"""Who may do what: the keys that a ledger lists, as of each of its entries.

The list begins with the entry `keys_started` and is changed by entries that a key manager signed. A key that was
rotated signs no more, and what it signed holds. A key that was revoked is distrusted: what it signed before stays in
the history, and no version that it registered is used any more.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from tasks.registry.entry import KEY_EVENTS, Entry
from tasks.registry.key_file import fingerprint

REGISTER, PROMOTE, MANAGE = "register", "promote", "keys"
ROLES = (REGISTER, PROMOTE, MANAGE)
"""What a key may be allowed: to register versions, to promote, roll back and publish, to change this list."""

_NEEDED = {
    "registered": (REGISTER,),
    **dict.fromkeys(("gate", "promoted", "refused", "rolled_back", "published"), (PROMOTE,)),
    **dict.fromkeys(("verified", "failed"), ROLES),  # anyone of the list
    **dict.fromkeys(("keys_started", "key_added", "key_revoked"), (MANAGE,)),
}


@dataclass(frozen=True)
class Key:
    """A key of the list.

    Attributes:
        name: what people call it: the actor of what it signs.
        fingerprint: sha256 (hex) of its DER SubjectPublicKeyInfo.
        public: its public half, PEM.
        roles: of ROLES.
        state: "trusted", "rotated" or "revoked".
        since: number of the entry that last changed it.
    """

    name: str
    fingerprint: str
    public: str
    roles: tuple[str, ...]
    state: str = "trusted"
    since: int = 0

    @property
    def told(self) -> str:
        """Name and the start of the fingerprint."""
        return f"{self.name} ({self.fingerprint[:16]})"

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "roles": list(self.roles), "public": self.public}

    @classmethod
    def read(cls, values: Any, since: int = 0) -> "Key":
        """Raises ValueError: this describes no key."""
        if not isinstance(values, dict) or values.keys() != {"name", "roles", "public"}:
            raise ValueError("other keys")
        name, roles, public = values["name"], values["roles"], values["public"]
        if not isinstance(name, str) or not name or not name.isprintable() or not isinstance(public, str):
            raise ValueError("no name, or no key")
        if not isinstance(roles, list) or not roles or any(role not in ROLES for role in roles):
            raise ValueError(f"other roles than {', '.join(ROLES)}")
        return cls(name, fingerprint(public), public, tuple(role for role in ROLES if role in roles), since=since)


@dataclass(frozen=True)
class Keyring:
    """The keys that an entry found.

    Attributes:
        keys: by fingerprint; the rotated and revoked ones too.
    """

    keys: dict[str, Key] = field(default_factory=dict)

    def find(self, wanted: str) -> list[Key]:
        """The keys of a name, or whose fingerprint begins so; trusted ones first."""
        found = [
            key
            for key in self.keys.values()
            if key.name == wanted or (len(wanted) >= 8 and key.fingerprint.startswith(wanted))
        ]
        return sorted(found, key=lambda key: key.state != "trusted")

    def with_role(self, role: str) -> list[Key]:
        """The trusted keys of a role."""
        return [key for key in self.keys.values() if key.state == "trusted" and role in key.roles]

    def lacks(self, key: str, event: str) -> str | None:
        """Why a key may not sign an event, in words; None: it may."""
        known = self.keys.get(key)
        if known is None:
            return f"key {key[:16]} is not in its list of keys"
        if known.state != "trusted":
            return f"key {known.told} was {known.state} in entry {known.since}"
        if event != "key_rotated" and not set(_NEEDED[event]) & set(known.roles):
            return f"key {known.told} has not the role {' or '.join(_NEEDED[event])}"
        return None

    def after(self, entry: Entry) -> "Keyring":
        """The list behind an entry.

        Raises:
            ValueError: it changes the list in a way that it cannot be changed.
        """
        if entry.event not in KEY_EVENTS:
            return self
        keys, details = dict(self.keys), entry.details
        if entry.event == "keys_started":
            if self.keys:
                raise ValueError("a second list of keys")
            for each in details["keys"]:
                key = Key.read(each, entry.n)
                keys[key.fingerprint] = key
        elif entry.event == "key_added":
            key = Key.read(details["key"], entry.n)
            if keys.get(key.fingerprint, key).state != "trusted":
                raise ValueError("a key that was given up comes back")
            keys[key.fingerprint] = key
        elif entry.event == "key_revoked":
            keys[entry.manifest] = replace(keys[entry.manifest], state="revoked", since=entry.n)
        else:
            old, new = keys[entry.key], Key.read(details["key"], entry.n)
            if new.fingerprint in keys or new.roles != old.roles:
                raise ValueError("another key or other roles")
            keys[old.fingerprint] = replace(old, state="rotated", since=entry.n)
            keys[new.fingerprint] = new
        after = Keyring(keys)
        if not after.with_role(MANAGE):
            raise ValueError("nobody could change the list any more")
        return after
