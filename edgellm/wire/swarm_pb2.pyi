from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Certificate(_message.Message):
    __slots__ = ("swarm", "subject", "roles", "name", "serial", "issued_unix_s", "expires_unix_s")
    SWARM_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    ISSUED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    swarm: bytes
    subject: bytes
    roles: int
    name: str
    serial: bytes
    issued_unix_s: int
    expires_unix_s: int
    def __init__(self, swarm: _Optional[bytes] = ..., subject: _Optional[bytes] = ..., roles: _Optional[int] = ..., name: _Optional[str] = ..., serial: _Optional[bytes] = ..., issued_unix_s: _Optional[int] = ..., expires_unix_s: _Optional[int] = ...) -> None: ...

class Delegation(_message.Message):
    __slots__ = ("swarm", "subject", "issued_unix_s", "expires_unix_s")
    SWARM_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    ISSUED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    swarm: bytes
    subject: bytes
    issued_unix_s: int
    expires_unix_s: int
    def __init__(self, swarm: _Optional[bytes] = ..., subject: _Optional[bytes] = ..., issued_unix_s: _Optional[int] = ..., expires_unix_s: _Optional[int] = ...) -> None: ...

class Revocations(_message.Message):
    __slots__ = ("swarm", "sequence", "revoked")
    SWARM_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    swarm: bytes
    sequence: int
    revoked: _containers.RepeatedCompositeFieldContainer[Revoked]
    def __init__(self, swarm: _Optional[bytes] = ..., sequence: _Optional[int] = ..., revoked: _Optional[_Iterable[_Union[Revoked, _Mapping]]] = ...) -> None: ...

class Revoked(_message.Message):
    __slots__ = ("subject", "revoked_unix_s")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    REVOKED_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    subject: bytes
    revoked_unix_s: int
    def __init__(self, subject: _Optional[bytes] = ..., revoked_unix_s: _Optional[int] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("invite", "signature")
    INVITE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    invite: bytes
    signature: bytes
    def __init__(self, invite: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Invite(_message.Message):
    __slots__ = ("swarm", "name", "id", "roles", "uses", "expires_unix_s", "issuer", "addresses")
    SWARM_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    swarm: bytes
    name: str
    id: bytes
    roles: int
    uses: int
    expires_unix_s: int
    issuer: bytes
    addresses: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, swarm: _Optional[bytes] = ..., name: _Optional[str] = ..., id: _Optional[bytes] = ..., roles: _Optional[int] = ..., uses: _Optional[int] = ..., expires_unix_s: _Optional[int] = ..., issuer: _Optional[bytes] = ..., addresses: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Membership(_message.Message):
    __slots__ = ("chain", "revocations", "objection")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    REVOCATIONS_FIELD_NUMBER: _ClassVar[int]
    OBJECTION_FIELD_NUMBER: _ClassVar[int]
    chain: _containers.RepeatedScalarFieldContainer[bytes]
    revocations: int
    objection: str
    def __init__(self, chain: _Optional[_Iterable[bytes]] = ..., revocations: _Optional[int] = ..., objection: _Optional[str] = ...) -> None: ...

class Join(_message.Message):
    __slots__ = ("token", "name")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    name: str
    def __init__(self, token: _Optional[bytes] = ..., name: _Optional[str] = ...) -> None: ...

class Joined(_message.Message):
    __slots__ = ("certificate", "secret", "bootstrap")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    BOOTSTRAP_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    secret: bytes
    bootstrap: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, certificate: _Optional[bytes] = ..., secret: _Optional[bytes] = ..., bootstrap: _Optional[_Iterable[str]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("sealed", "join")
    SEALED_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    sealed: bytes
    join: Join
    def __init__(self, sealed: _Optional[bytes] = ..., join: _Optional[_Union[Join, _Mapping]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("sealed", "joined", "refused")
    SEALED_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    sealed: bytes
    joined: Joined
    refused: str
    def __init__(self, sealed: _Optional[bytes] = ..., joined: _Optional[_Union[Joined, _Mapping]] = ..., refused: _Optional[str] = ...) -> None: ...

class Question(_message.Message):
    __slots__ = ("revocations", "present", "renew")
    REVOCATIONS_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    revocations: bytes
    present: Present
    renew: Renew
    def __init__(self, revocations: _Optional[bytes] = ..., present: _Optional[_Union[Present, _Mapping]] = ..., renew: _Optional[_Union[Renew, _Mapping]] = ...) -> None: ...

class Present(_message.Message):
    __slots__ = ("chain",)
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    chain: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, chain: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Renew(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Reply(_message.Message):
    __slots__ = ("done", "certificate", "refused")
    DONE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    done: Done
    certificate: bytes
    refused: str
    def __init__(self, done: _Optional[_Union[Done, _Mapping]] = ..., certificate: _Optional[bytes] = ..., refused: _Optional[str] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
