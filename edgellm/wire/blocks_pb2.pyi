from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Region(_message.Message):
    __slots__ = ("first_layer", "end_layer", "first_head", "end_head")
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    FIRST_HEAD_FIELD_NUMBER: _ClassVar[int]
    END_HEAD_FIELD_NUMBER: _ClassVar[int]
    first_layer: int
    end_layer: int
    first_head: int
    end_head: int
    def __init__(self, first_layer: _Optional[int] = ..., end_layer: _Optional[int] = ..., first_head: _Optional[int] = ..., end_head: _Optional[int] = ...) -> None: ...

class FindRequest(_message.Message):
    __slots__ = ("names", "region", "chunk_tokens")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[bytes]
    region: Region
    chunk_tokens: int
    def __init__(self, names: _Optional[_Iterable[bytes]] = ..., region: _Optional[_Union[Region, _Mapping]] = ..., chunk_tokens: _Optional[int] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("region", "size_bytes", "holder")
    REGION_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    region: Region
    size_bytes: int
    holder: str
    def __init__(self, region: _Optional[_Union[Region, _Mapping]] = ..., size_bytes: _Optional[int] = ..., holder: _Optional[str] = ...) -> None: ...

class FoundChunk(_message.Message):
    __slots__ = ("pieces",)
    PIECES_FIELD_NUMBER: _ClassVar[int]
    pieces: _containers.RepeatedCompositeFieldContainer[Piece]
    def __init__(self, pieces: _Optional[_Iterable[_Union[Piece, _Mapping]]] = ...) -> None: ...

class FindReply(_message.Message):
    __slots__ = ("chunks",)
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    chunks: _containers.RepeatedCompositeFieldContainer[FoundChunk]
    def __init__(self, chunks: _Optional[_Iterable[_Union[FoundChunk, _Mapping]]] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("name", "region")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    region: Region
    def __init__(self, name: _Optional[bytes] = ..., region: _Optional[_Union[Region, _Mapping]] = ...) -> None: ...

class FetchPart(_message.Message):
    __slots__ = ("data", "holder")
    DATA_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    holder: str
    def __init__(self, data: _Optional[bytes] = ..., holder: _Optional[str] = ...) -> None: ...

class StorePart(_message.Message):
    __slots__ = ("name", "region", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    region: Region
    data: bytes
    def __init__(self, name: _Optional[bytes] = ..., region: _Optional[_Union[Region, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class StoreReply(_message.Message):
    __slots__ = ("kept",)
    KEPT_FIELD_NUMBER: _ClassVar[int]
    kept: bool
    def __init__(self, kept: bool = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("name", "region", "holder", "outcome", "tokens")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    region: Region
    holder: str
    outcome: str
    tokens: int
    def __init__(self, name: _Optional[bytes] = ..., region: _Optional[_Union[Region, _Mapping]] = ..., holder: _Optional[str] = ..., outcome: _Optional[str] = ..., tokens: _Optional[int] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
