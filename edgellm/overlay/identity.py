"""The identity of one member of one cluster: a key pair made for it and a self-signed certificate.

The certificate's DER travels in the signed plan, which alone says whose it is; the names and dates in it mean
nothing. Both are forgotten with the lease.
"""

from __future__ import annotations

import datetime
import secrets
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

# TLS checks the dates against each peer's own clock, which may be wrong.
_CLOCK_SKEW = datetime.timedelta(days=2)
_LIFETIME = datetime.timedelta(days=60)


@dataclass(frozen=True)
class MemberIdentity:
    """`certificate_der` is public and goes into the plan; `private_key_pem` (PKCS #8) never leaves the machine."""

    certificate_der: bytes
    private_key_pem: bytes = field(repr=False)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM."""
        certificate = x509.load_der_x509_certificate(self.certificate_der)
        return certificate.public_bytes(serialization.Encoding.PEM)


def make_member_identity() -> MemberIdentity:
    """A new identity on P-256, about 1 ms."""
    key = ec.generate_private_key(ec.SECP256R1())
    # OpenSSL looks trusted certificates up by name, and of several with one name it finds one.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"edgellm {secrets.token_hex(16)}")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + _LIFETIME)
        .sign(key, hashes.SHA256())
    )
    return MemberIdentity(
        certificate.public_bytes(serialization.Encoding.DER),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
