"""Secrets: made, digested, compared and sealed. The only user of randomness for keys.

Engine keys lie in the journal sealed by a master key; the engine's id is sealed with
them, so a key cannot be moved to another engine by editing a file. Nothing here
shows a secret: not in a repr, not in an error.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_KEY_BYTES: Final = 32  # 43 characters of URL-safe base64
_MASTER_KEY: Final = re.compile(r"[A-Za-z0-9_-]{43}=")
_ID_MESSAGE: Final = b"enginegate master key id"
_SEAL_MESSAGE: Final = b"enginegate engine keys"
_SEPARATOR: Final = "\n"  # in neither an engine id nor a key
_GCM: Final = "gcm1."  # what a seal begins with; without it, it is a Fernet token
_NONCE_BYTES: Final = 12


class KeyUnsealError(Exception):
    """A sealed key that no master key opens, or that was sealed for another engine."""

    def __init__(self, engine_id: str, why: str) -> None:
        super().__init__(f"the sealed key of engine {engine_id} {why}")
        self.engine_id = engine_id


def new_engine_key() -> str:
    return f"sk-eg-{secrets.token_urlsafe(_KEY_BYTES)}"


def new_platform_key() -> str:
    return f"pk-eg-{secrets.token_urlsafe(_KEY_BYTES)}"


def new_admin_key() -> str:
    return f"ak-eg-{secrets.token_urlsafe(_KEY_BYTES)}"


def new_master_key() -> str:
    return Fernet.generate_key().decode()


def valid_master_key(key: str) -> bool:
    """Return whether this is a Fernet key: 32 bytes in padded URL-safe base64."""
    return _MASTER_KEY.fullmatch(key) is not None


def digest(key: str | bytes) -> bytes:
    """Return the SHA-256 of a key. Keys are random and long: no salt, no stretching."""
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).digest()


def digest_hex(key: str | bytes) -> str:
    return digest(key).hex()


def same(a: str | bytes, b: str | bytes) -> bool:
    """Compare two secrets in a time that tells neither content nor length."""
    return hmac.compare_digest(digest(a), digest(b))


class Keyring:
    """The master keys: the first one seals, every one opens.

    The others are the keys of before: `enginegate rekey` seals anew what they sealed.

    Raises:
        ValueError: no key, or one that is no Fernet key; it says which, not what.
    """

    __slots__ = ("_sealers", "key_ids")

    def __init__(self, master_keys: Sequence[str]) -> None:
        if not master_keys:
            raise ValueError("no master key")
        for position, key in enumerate(master_keys, start=1):
            if not valid_master_key(key):
                raise ValueError(f"master key {position} is not a Fernet key")
        self._sealers = [_Sealer(key) for key in master_keys]
        self.key_ids = tuple(_key_id(key) for key in master_keys)

    def __repr__(self) -> str:
        return "Keyring(***)"

    @property
    def key_id(self) -> str:
        """The name of the key that seals; it tells keys apart and nothing about them."""
        return self.key_ids[0]

    @property
    def resealer(self) -> "Keyring | None":
        """The ring itself if it has older keys, whose seals are to be made anew."""
        return self if len(self.key_ids) > 1 else None

    def seal(self, engine_id: str, key: str) -> str:
        """Return the key encrypted together with the engine it belongs to."""
        plain = f"{engine_id}{_SEPARATOR}{key}"
        return self._sealers[0].seal(plain)

    def open(self, engine_id: str, sealed: str) -> str:
        """Return the key that was sealed for this engine.

        Raises:
            KeyUnsealError: no master key opens it, or it belongs to another engine.
        """
        for sealer in self._sealers:
            plain = sealer.open(sealed)
            if plain is None:
                continue
            owner, _, key = plain.partition(_SEPARATOR)
            if owner != engine_id:
                raise KeyUnsealError(engine_id, "was sealed for another engine")
            return key
        raise KeyUnsealError(engine_id, "opens with none of the master keys")

    def reseal(self, engine_id: str, sealed: str) -> str:
        """Return the key sealed with the first master key, as it is where it is that already.

        Raises:
            KeyUnsealError: no master key opens it, or it belongs to another engine.
        """
        key = self.open(engine_id, sealed)
        return self.seal(engine_id, key) if self.needs_reseal(sealed) else sealed

    def needs_reseal(self, sealed: str) -> bool:
        """Return whether it takes another key than the first to open this."""
        return self._sealers[0].open(sealed) is None


class _Sealer:
    """One master key at work: seals with AES-256-GCM, opens that and Fernet tokens.

    A start opens every key of the fleet, and GCM does it in a fifth of the time. Its nonces
    are random, which is sound for 2**32 seals of one key (NIST SP 800-38D, section 8.3).
    """

    __slots__ = ("_fernet", "_gcm")

    def __init__(self, master_key: str) -> None:
        self._fernet = Fernet(master_key)
        # A key of its own: none is to serve two ciphers.
        self._gcm = AESGCM(hmac.digest(master_key.encode(), _SEAL_MESSAGE, "sha256"))

    def seal(self, plain: str) -> str:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._gcm.encrypt(nonce, plain.encode(), None)
        return _GCM + base64.b64encode(sealed).decode()

    def open(self, sealed: str) -> str | None:
        """Return what was sealed, None where this key does not open it."""
        try:
            if not sealed.startswith(_GCM):
                return self._fernet.decrypt(sealed).decode()
            content = binascii.a2b_base64(sealed.removeprefix(_GCM), strict_mode=True)
            nonce, hidden = content[:_NONCE_BYTES], content[_NONCE_BYTES:]
            return self._gcm.decrypt(nonce, hidden, None).decode()
        except (InvalidTag, InvalidToken, ValueError):  # a ValueError where it is no seal at all
            return None


def _key_id(master_key: str) -> str:
    return hmac.new(master_key.encode(), _ID_MESSAGE, hashlib.sha256).hexdigest()[:16]
