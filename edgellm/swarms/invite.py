"""An invite: text that makes whoever has it a member, until it has expired, was used up or was revoked. Pure.

It names one issuer, which alone redeems it: so its uses are counted in one place.
"""

from __future__ import annotations

from dataclasses import dataclass

import base58
from google.protobuf.message import DecodeError

from edgellm.errors import MembershipError
from edgellm.p2p.identity import Identity, public_key_of_peer, verify
from edgellm.swarms.certificate import checked_name, peer_from_wire, roles_from_bits, roles_to_bits
from edgellm.wire import swarm_pb2

PREFIX = "edgellm1"
MAX_TOKEN_CHARACTERS = 1200
MAX_TOKEN_BYTES = 800
MAX_ADDRESSES = 4
MAX_USES = 10_000
ID_BYTES = 8
_DOMAIN = b"edgellm-invite-v1\0"


@dataclass(frozen=True, slots=True)
class Invite:
    swarm: str
    name: str
    """The swarm's, as its maker calls it."""
    id: str
    """16 hexadecimal digits."""
    roles: frozenset[str]
    uses: int
    expires_at: float
    issuer: str
    """The peer that redeems it."""
    addresses: tuple[str, ...]
    """Of the issuer, without /p2p."""


def token_of(root: Identity, invite: Invite) -> bytes:
    """The invite, signed by the swarm's root; `written` makes it text."""
    from multiaddr import Multiaddr

    body = swarm_pb2.Invite(
        swarm=public_key_of_peer(invite.swarm),
        name=invite.name,
        id=bytes.fromhex(invite.id),
        roles=roles_to_bits(invite.roles),
        uses=invite.uses,
        expires_unix_s=int(invite.expires_at),
        issuer=public_key_of_peer(invite.issuer),
        addresses=[Multiaddr(address).to_bytes() for address in invite.addresses],
    ).SerializeToString()
    return swarm_pb2.Token(invite=body, signature=root.sign(_DOMAIN + body)).SerializeToString()


def written(token: bytes) -> str:
    """As text of letters and digits, so that a double click selects all of it."""
    return PREFIX + base58.b58encode(token).decode("ascii")


def read(text: str) -> bytes:
    """The token in a text, whatever blanks and line breaks came into it. Raises MembershipError."""
    word = "".join(text.split())
    if not word.startswith(PREFIX) or len(word) > MAX_TOKEN_CHARACTERS:
        raise _no_invite()
    try:
        return base58.b58decode(word.removeprefix(PREFIX))
    except ValueError as error:
        raise _no_invite() from error


def open_token(token: bytes) -> Invite:
    """The invite in a token, after its signature by the swarm that it names was checked. Raises MembershipError."""
    from multiaddr import Multiaddr

    if len(token) > MAX_TOKEN_BYTES:
        raise _no_invite()
    try:
        signed = swarm_pb2.Token.FromString(token)
        body = swarm_pb2.Invite.FromString(signed.invite)
    except DecodeError as error:
        raise _no_invite() from error
    if len(body.swarm) != 32 or len(body.issuer) != 32:
        raise _no_invite()
    swarm = peer_from_wire(body.swarm)
    if len(signed.signature) != 64 or not verify(swarm, _DOMAIN + signed.invite, signed.signature):
        raise MembershipError(
            "the invite is not as it was signed",
            remedy="copy all of it, or ask for a new one",
            fault="forged",
        )
    if len(body.id) != ID_BYTES or not 0 < body.uses <= MAX_USES or len(body.addresses) > MAX_ADDRESSES:
        raise _no_invite()
    try:
        addresses = tuple(str(Multiaddr(address)) for address in body.addresses)
    except ValueError as error:
        raise _no_invite() from error
    return Invite(
        swarm=swarm,
        name=checked_name(body.name),
        id=body.id.hex(),
        roles=roles_from_bits(body.roles),
        uses=body.uses,
        expires_at=float(body.expires_unix_s),
        issuer=peer_from_wire(body.issuer),
        addresses=addresses,
    )


def _no_invite() -> MembershipError:
    return MembershipError(
        "that is no invite",
        remedy=f"paste all of what `edgellm swarm invite` printed; it begins with {PREFIX}",
        fault="malformed",
    )
