"""Content identifiers as IPFS has them: version 1, raw codec, SHA-256 (https://github.com/multiformats/cid)."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import ClassVar, Self

from edgellm.errors import UsageError

# version 1, codec raw (0x55), multihash sha2-256 (0x12) of 32 bytes
_PREFIX = b"\x01\x55\x12\x20"
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True, order=True)
class Cid:
    """What a block is called; `str` gives the usual text, which begins with "bafkrei"."""

    PREFIX: ClassVar[bytes] = _PREFIX
    """All of its binary form but the digest."""

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
    def of_same_bytes(cls, binary: bytes) -> Self:
        """The CID of the same block, given one of version 1 with any codec, or of version 0. Raises UsageError.

        Only for SHA-256; codecs above 127 (blocks of Ethereum, say) are not understood.
        """
        digest = binary[-_DIGEST_BYTES:]
        prefix = binary[:-_DIGEST_BYTES]
        if prefix == b"\x12\x20" or (
            len(prefix) == 4 and prefix[0] == 1 and prefix[1] < 128 and prefix[2:] == b"\x12\x20"
        ):
            return cls(digest)
        raise UsageError(f"{binary[:40].hex()} is not the CID of a block with SHA-256")

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
