from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BitswapMessage(_message.Message):
    __slots__ = ("wantlist", "bare_blocks", "blocks", "presences", "pending_bytes")
    class PresenceType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        HAVE: _ClassVar[BitswapMessage.PresenceType]
        DONT_HAVE: _ClassVar[BitswapMessage.PresenceType]
    HAVE: BitswapMessage.PresenceType
    DONT_HAVE: BitswapMessage.PresenceType
    class Wantlist(_message.Message):
        __slots__ = ("entries", "full")
        class WantType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
            __slots__ = ()
            BLOCK: _ClassVar[BitswapMessage.Wantlist.WantType]
            HAVE: _ClassVar[BitswapMessage.Wantlist.WantType]
        BLOCK: BitswapMessage.Wantlist.WantType
        HAVE: BitswapMessage.Wantlist.WantType
        class Entry(_message.Message):
            __slots__ = ("block", "priority", "cancel", "want_type", "send_dont_have")
            BLOCK_FIELD_NUMBER: _ClassVar[int]
            PRIORITY_FIELD_NUMBER: _ClassVar[int]
            CANCEL_FIELD_NUMBER: _ClassVar[int]
            WANT_TYPE_FIELD_NUMBER: _ClassVar[int]
            SEND_DONT_HAVE_FIELD_NUMBER: _ClassVar[int]
            block: bytes
            priority: int
            cancel: bool
            want_type: BitswapMessage.Wantlist.WantType
            send_dont_have: bool
            def __init__(self, block: _Optional[bytes] = ..., priority: _Optional[int] = ..., cancel: bool = ..., want_type: _Optional[_Union[BitswapMessage.Wantlist.WantType, str]] = ..., send_dont_have: bool = ...) -> None: ...
        ENTRIES_FIELD_NUMBER: _ClassVar[int]
        FULL_FIELD_NUMBER: _ClassVar[int]
        entries: _containers.RepeatedCompositeFieldContainer[BitswapMessage.Wantlist.Entry]
        full: bool
        def __init__(self, entries: _Optional[_Iterable[_Union[BitswapMessage.Wantlist.Entry, _Mapping]]] = ..., full: bool = ...) -> None: ...
    class Block(_message.Message):
        __slots__ = ("prefix", "data")
        PREFIX_FIELD_NUMBER: _ClassVar[int]
        DATA_FIELD_NUMBER: _ClassVar[int]
        prefix: bytes
        data: bytes
        def __init__(self, prefix: _Optional[bytes] = ..., data: _Optional[bytes] = ...) -> None: ...
    class Presence(_message.Message):
        __slots__ = ("cid", "type")
        CID_FIELD_NUMBER: _ClassVar[int]
        TYPE_FIELD_NUMBER: _ClassVar[int]
        cid: bytes
        type: BitswapMessage.PresenceType
        def __init__(self, cid: _Optional[bytes] = ..., type: _Optional[_Union[BitswapMessage.PresenceType, str]] = ...) -> None: ...
    WANTLIST_FIELD_NUMBER: _ClassVar[int]
    BARE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PRESENCES_FIELD_NUMBER: _ClassVar[int]
    PENDING_BYTES_FIELD_NUMBER: _ClassVar[int]
    wantlist: BitswapMessage.Wantlist
    bare_blocks: _containers.RepeatedScalarFieldContainer[bytes]
    blocks: _containers.RepeatedCompositeFieldContainer[BitswapMessage.Block]
    presences: _containers.RepeatedCompositeFieldContainer[BitswapMessage.Presence]
    pending_bytes: int
    def __init__(self, wantlist: _Optional[_Union[BitswapMessage.Wantlist, _Mapping]] = ..., bare_blocks: _Optional[_Iterable[bytes]] = ..., blocks: _Optional[_Iterable[_Union[BitswapMessage.Block, _Mapping]]] = ..., presences: _Optional[_Iterable[_Union[BitswapMessage.Presence, _Mapping]]] = ..., pending_bytes: _Optional[int] = ...) -> None: ...
