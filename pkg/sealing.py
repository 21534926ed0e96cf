"""Encrypts what lies in a place that others may read or write, such as Redis."""

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

NONCE_BYTES = 12
TAG_BYTES = 16


class Sealer:
    """AES-256-GCM (NIST SP 800-38D) under a key of its own for each purpose, made of one secret (HKDF, RFC 5869).

    A value is bound to its name: under another one, another tenant's for instance, it doesn't open. Nonces are drawn;
    that is sound for some billion values a key, so not for what is kept for ever.
    """

    def __init__(self, secret: str, purpose: str) -> None:
        self._cipher = AESGCM(HKDF(SHA256(), length=32, salt=None, info=purpose.encode()).derive(secret.encode()))

    def seal(self, name: str, data: bytes) -> bytes:
        """Longer than `data` by NONCE_BYTES and TAG_BYTES."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, name.encode())

    def open(self, name: str, sealed: bytes) -> bytes | None:
        """None for what wasn't sealed with this secret, for this purpose, under this name, or was changed."""
        if len(sealed) < NONCE_BYTES + TAG_BYTES:
            return None
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], name.encode())
        except InvalidTag:
            return None
