"""Content identifiers as IPFS has them: version 1, raw codec, SHA-256 (https://github.com/multiformats/cid)."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Self

from edgellm.errors import UsageError

# version 1, codec raw (0x55), multihash sha2-256 (0x12) of 32 bytes
_PREFIX = b"\x01\x55\x12\x20"
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True, order=True)
class Cid:
    """What a block is called; `str` gives the usual text, which begins with "bafkrei"."""

    digest: bytes

    @classmethod
    def of(cls, block: bytes | memoryview) -> Self:
        """The name of this content."""
        return cls(hashlib.sha256(block).digest())

    @classmethod
    def from_bytes(cls, binary: bytes) -> Self:
        """Raises UsageError for anything that is not the binary form of such a CID."""
        if len(binary) != len(_PREFIX) + _DIGEST_BYTES or not binary.startswith(_PREFIX):
            raise UsageError(f"{binary[:40].hex()} is not the CID of a raw block with SHA-256")
        return cls(binary[len(_PREFIX) :])

    @classmethod
    def parse(cls, text: str) -> Self:
        """From its text in base32. Raises UsageError."""
        try:
            if not text.startswith("b"):
                raise ValueError
            binary = base64.b32decode(text[1:].upper() + "=" * (-len(text[1:]) % 8))
        except ValueError:
            raise UsageError(f"{text[:80]!r} is not a CID in base32") from None
        return cls.from_bytes(binary)

    def __bytes__(self) -> bytes:
        return _PREFIX + self.digest

    def __str__(self) -> str:
        return "b" + base64.b32encode(bytes(self)).decode().lower().rstrip("=")

    def matches(self, block: bytes | memoryview) -> bool:
        """Whether this is its content."""
        return hashlib.sha256(block).digest() == self.digest
