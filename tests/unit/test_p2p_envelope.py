import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.envelope import make_unsigned, unmarshal_envelope
from libp2p.peer.id import ID

from edgellm.errors import ProtocolViolation
from edgellm.p2p.envelope import open_envelope, seal
from edgellm.p2p.identity import Identity
from edgellm.wire import envelope_pb2

IDENTITY = Identity.from_seed(bytes(range(32)))
DOMAIN, KIND = "edgellm-test-v1", b"/edgellm/test"


@given(payload=st.binary(max_size=4096), domain=st.text(max_size=40), kind=st.binary(max_size=40))
def test_what_was_sealed_opens_with_its_signer(payload, domain, kind):
    assert open_envelope(seal(IDENTITY, domain, kind, payload), domain, kind) == (IDENTITY.peer, payload)


@given(garbage=st.binary(max_size=600))
def test_garbage_is_a_protocol_violation(garbage):
    with pytest.raises(ProtocolViolation):
        open_envelope(garbage, DOMAIN, KIND)


@settings(max_examples=300)
@given(data=st.data())
def test_any_changed_byte_is_refused_or_harmless(data):
    sealed = bytearray(seal(IDENTITY, DOMAIN, KIND, b"payload"))
    index = data.draw(st.integers(0, len(sealed) - 1))
    sealed[index] ^= data.draw(st.integers(1, 255))
    try:
        opened = open_envelope(bytes(sealed), DOMAIN, KIND)
    except ProtocolViolation:
        return
    assert opened == (IDENTITY.peer, b"payload")


def test_another_domain_type_or_signer_is_refused():
    sealed = seal(IDENTITY, DOMAIN, KIND, b"payload")
    with pytest.raises(ProtocolViolation, match="was not signed"):
        open_envelope(sealed, "edgellm-other-v1", KIND)
    with pytest.raises(ProtocolViolation, match="instead of"):
        open_envelope(sealed, DOMAIN, b"/edgellm/other")
    forged = envelope_pb2.Envelope.FromString(sealed)
    forged.public_key.data = Identity.generate().public_key
    with pytest.raises(ProtocolViolation, match="was not signed"):
        open_envelope(forged.SerializeToString(), DOMAIN, KIND)


def test_the_border_between_type_and_payload_is_signed():
    """The same concatenation cut at another place must not verify."""
    moved = envelope_pb2.Envelope.FromString(seal(IDENTITY, DOMAIN, b"ab", b"cd"))
    moved.payload_type, moved.payload = b"abc", b"d"
    with pytest.raises(ProtocolViolation, match="was not signed"):
        open_envelope(moved.SerializeToString(), DOMAIN, b"abc")


def test_oversize_is_refused():
    sealed = seal(IDENTITY, DOMAIN, KIND, bytes(2000))
    with pytest.raises(ProtocolViolation, match="over the limit of 1000"):
        open_envelope(sealed, DOMAIN, KIND, max_bytes=1000)


def test_a_key_of_another_kind_is_refused():
    envelope = envelope_pb2.Envelope.FromString(seal(IDENTITY, DOMAIN, KIND, b"payload"))
    envelope.public_key.type = envelope_pb2.SECP256K1
    with pytest.raises(ProtocolViolation, match="Ed25519"):
        open_envelope(envelope.SerializeToString(), DOMAIN, KIND)


def test_libp2p_reads_and_accepts_our_envelopes():
    envelope = unmarshal_envelope(seal(IDENTITY, DOMAIN, KIND, b"payload"))
    envelope.validate(DOMAIN)
    assert (envelope.payload_type, envelope.raw_payload) == (KIND, b"payload")
    assert ID.from_pubkey(envelope.public_key).to_base58() == IDENTITY.peer


def test_we_read_and_accept_libp2ps_envelopes():
    keys = create_new_key_pair()
    envelope = unmarshal_envelope(seal(IDENTITY, DOMAIN, KIND, b"payload"))
    envelope.public_key = keys.public_key
    envelope.signature = keys.private_key.sign(make_unsigned(DOMAIN, KIND, b"payload"))
    peer = ID.from_pubkey(keys.public_key).to_base58()
    assert open_envelope(envelope.marshal_envelope(), DOMAIN, KIND) == (peer, b"payload")
