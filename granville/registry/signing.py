"""Signed indexes: an Ed25519 signature over the exact bytes of registry.json, in `registry.json.sig` beside it.

The signature is 64 bytes in base64; a public key is written `ed25519:` and 32 bytes in base64; a private key lies in a
PEM file (PKCS 8) that its owner alone may read. openssl makes and understands both (docs/registry.md).
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from granville.errors import StartupError

PREFIX = "ed25519:"
SIGNATURE_BYTES = 64
MAX_SIGNATURE_FILE_BYTES = 1024
MAX_KEY_FILE_BYTES = 16 << 10


class BadSignature(StartupError):
    """An index that is not what the owner of the key has signed. Nothing of it may be used."""


def parse_public_key(text: str) -> bytes:
    """The 32 bytes of `ed25519:BASE64`. Raises StartupError."""
    try:
        if not text.startswith(PREFIX):
            raise ValueError
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
        Ed25519PublicKey.from_public_bytes(key)
    except ValueError:  # binascii.Error is one
        raise StartupError(f"key: expected {PREFIX} and 32 bytes in base64, got {text[:80]!r}") from None
    return key


def verify(data: bytes, signature: bytes | None, key: bytes, where: str) -> None:
    """Raises BadSignature unless `signature`, the content of the .sig file, is the key's over these bytes."""
    if signature is None:
        raise BadSignature(
            f"{where}: its registry has a key, and there is no {where}.sig; nothing is installed from it"
        )
    try:
        raw = base64.b64decode(signature.strip(), validate=True)
    except binascii.Error:
        raw = b""
    if len(raw) != SIGNATURE_BYTES:
        raise BadSignature(f"{where}.sig: not a signature, which is {SIGNATURE_BYTES} bytes in base64")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(raw, data)
    except InvalidSignature:
        raise BadSignature(
            f"{where}: the signature is not that of the registry's key: the file or the signature was changed, or the "
            "registry has a new key; nothing is installed from it"
        ) from None


class Signer:
    """A private key, read once."""

    def __init__(self, path: Path) -> None:
        """Raises StartupError for a file that others may read, or that holds no such key."""
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                data = file.read(MAX_KEY_FILE_BYTES)
        except OSError as error:
            raise StartupError(f"{path}: the key cannot be read: {error.strerror}") from None
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise StartupError(f"{path}: others may read this key; `chmod 600 {path}` and think of whether they have")
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError) as error:
            raise StartupError(f"{path}: not a private key in PEM that needs no password: {error}") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise StartupError(f"{path}: another kind of key than Ed25519; `granville driver keygen FILE` makes one")
        self._key = key

    @property
    def public_key(self) -> str:
        return PREFIX + base64.b64encode(self._key.public_key().public_bytes_raw()).decode()

    def sign(self, data: bytes) -> bytes:
        """The content of the .sig file."""
        return base64.b64encode(self._key.sign(data)) + b"\n"


def make_key(path: Path) -> Signer:
    """A new private key in a new file, on the disk when this returns. Raises StartupError, also when there is one."""
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise StartupError(f"{path}: is there already; a key is never replaced, name another file") from None
    except OSError as error:
        raise StartupError(f"{path}: the key cannot be written: {error.strerror}") from None
    return Signer(path)
