"""What runs over a link between two carriers once TLS has authenticated it: large AES-128-GCM records.

TLS has records of at most 16 KiB, and OpenSSL makes two system calls for each one; that costs 1.2 s of a core
for each GB. Records of up to 512 KiB under the same cipher cost 0.1 s. Keys are random, made for one connection
and one direction, and travel inside the TLS connection that they replace. A record is

    4 bytes   kind (1 byte), length of what follows (3 bytes): authenticated as associated data
    n bytes   AES-GCM ciphertext with its 16-byte tag; the nonce is the record's number in its direction

so records cannot be changed, dropped, repeated or reordered, and a connection that ends without FIN was cut.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 16
TAG_BYTES = 16
HEADER_BYTES = 4
MAX_PLAINTEXT_BYTES = 512 << 10


class RecordKind(IntEnum):
    DATA = 1
    FIN = 2


class BadRecord(Exception):
    """A record that the other side cannot have made: changed on the way, or not of this protocol."""


@dataclass(frozen=True)
class LinkKeys:
    """Keys of one connection: from the side that dialled, and towards it."""

    forward: bytes
    backward: bytes

    @classmethod
    def make(cls) -> Self:
        """Fresh random ones."""
        return cls(os.urandom(KEY_BYTES), os.urandom(KEY_BYTES))

    def reversed(self) -> LinkKeys:
        """As the side that accepted sees them."""
        return LinkKeys(self.backward, self.forward)


class Sealer:
    """Makes the records of one direction."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._number = 0

    def seal(self, kind: RecordKind, plaintext: bytes | memoryview) -> tuple[bytes, bytes]:
        """Header and body of the next record, which must be sent in this order."""
        length = len(plaintext) + TAG_BYTES
        header = (kind << 24 | length).to_bytes(HEADER_BYTES, "big")
        body = self._cipher.encrypt(self._number.to_bytes(12, "big"), plaintext, header)
        self._number += 1
        return header, body


class Opener:
    """Checks and opens the records of one direction."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)
        self._number = 0

    def parse(self, header: bytes | bytearray) -> tuple[RecordKind, int]:
        """Kind and body length (bytes). Not yet authenticated. Raises `BadRecord`."""
        word = int.from_bytes(header, "big")
        kind, length = word >> 24, word & 0xFFFFFF
        if kind not in (RecordKind.DATA, RecordKind.FIN):
            raise BadRecord(f"kind {kind}")
        if not TAG_BYTES <= length <= MAX_PLAINTEXT_BYTES + TAG_BYTES:
            raise BadRecord(f"length {length}")
        return RecordKind(kind), length

    def open(self, header: bytes | bytearray, body: bytes | bytearray | memoryview) -> bytes:
        """The plaintext. Raises `BadRecord` where the record is not the next one of the other side."""
        try:
            plaintext = self._cipher.decrypt(self._number.to_bytes(12, "big"), body, bytes(header))
        except InvalidTag:
            raise BadRecord("not authentic") from None
        self._number += 1
        return plaintext
