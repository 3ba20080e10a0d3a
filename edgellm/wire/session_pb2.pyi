from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Description(_message.Message):
    __slots__ = ("name", "model", "state", "detail", "opened_unix_ms", "idle_expires_unix_ms", "running_requests", "tensor_parallel", "max_model_len", "stages", "shares_kv", "kv_holders", "digest", "predicted_prefill_tok_s", "endpoint", "swapping_to", "recovering", "recoveries", "spares", "network", "isolation", "cost_s", "max_cost_s", "kv_scope", "bootstrap", "unfinished", "swarm", "api_socket")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    OPENED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    IDLE_EXPIRES_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLEL_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    SHARES_KV_FIELD_NUMBER: _ClassVar[int]
    KV_HOLDERS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_PREFILL_TOK_S_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    SWAPPING_TO_FIELD_NUMBER: _ClassVar[int]
    RECOVERING_FIELD_NUMBER: _ClassVar[int]
    RECOVERIES_FIELD_NUMBER: _ClassVar[int]
    SPARES_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_FIELD_NUMBER: _ClassVar[int]
    COST_S_FIELD_NUMBER: _ClassVar[int]
    MAX_COST_S_FIELD_NUMBER: _ClassVar[int]
    KV_SCOPE_FIELD_NUMBER: _ClassVar[int]
    BOOTSTRAP_FIELD_NUMBER: _ClassVar[int]
    UNFINISHED_FIELD_NUMBER: _ClassVar[int]
    SWARM_FIELD_NUMBER: _ClassVar[int]
    API_SOCKET_FIELD_NUMBER: _ClassVar[int]
    name: str
    model: str
    state: str
    detail: str
    opened_unix_ms: int
    idle_expires_unix_ms: int
    running_requests: int
    tensor_parallel: int
    max_model_len: int
    stages: _containers.RepeatedCompositeFieldContainer[StageDescription]
    shares_kv: bool
    kv_holders: _containers.RepeatedCompositeFieldContainer[KvHolder]
    digest: str
    predicted_prefill_tok_s: float
    endpoint: str
    swapping_to: str
    recovering: str
    recoveries: int
    spares: _containers.RepeatedScalarFieldContainer[str]
    network: str
    isolation: str
    cost_s: float
    max_cost_s: float
    kv_scope: str
    bootstrap: _containers.RepeatedScalarFieldContainer[str]
    unfinished: _containers.RepeatedCompositeFieldContainer[Unfinished]
    swarm: str
    api_socket: str
    def __init__(self, name: _Optional[str] = ..., model: _Optional[str] = ..., state: _Optional[str] = ..., detail: _Optional[str] = ..., opened_unix_ms: _Optional[int] = ..., idle_expires_unix_ms: _Optional[int] = ..., running_requests: _Optional[int] = ..., tensor_parallel: _Optional[int] = ..., max_model_len: _Optional[int] = ..., stages: _Optional[_Iterable[_Union[StageDescription, _Mapping]]] = ..., shares_kv: bool = ..., kv_holders: _Optional[_Iterable[_Union[KvHolder, _Mapping]]] = ..., digest: _Optional[str] = ..., predicted_prefill_tok_s: _Optional[float] = ..., endpoint: _Optional[str] = ..., swapping_to: _Optional[str] = ..., recovering: _Optional[str] = ..., recoveries: _Optional[int] = ..., spares: _Optional[_Iterable[str]] = ..., network: _Optional[str] = ..., isolation: _Optional[str] = ..., cost_s: _Optional[float] = ..., max_cost_s: _Optional[float] = ..., kv_scope: _Optional[str] = ..., bootstrap: _Optional[_Iterable[str]] = ..., unfinished: _Optional[_Iterable[_Union[Unfinished, _Mapping]]] = ..., swarm: _Optional[str] = ..., api_socket: _Optional[str] = ...) -> None: ...

class Unfinished(_message.Message):
    __slots__ = ("path", "request_id", "model", "begun_unix_ms", "lost_unix_ms")
    PATH_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BEGUN_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    LOST_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    path: str
    request_id: str
    model: str
    begun_unix_ms: int
    lost_unix_ms: int
    def __init__(self, path: _Optional[str] = ..., request_id: _Optional[str] = ..., model: _Optional[str] = ..., begun_unix_ms: _Optional[int] = ..., lost_unix_ms: _Optional[int] = ...) -> None: ...

class KvHolder(_message.Message):
    __slots__ = ("peer", "tokens", "name")
    PEER_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    peer: str
    tokens: int
    name: str
    def __init__(self, peer: _Optional[str] = ..., tokens: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class StageDescription(_message.Message):
    __slots__ = ("peer", "name", "first_layer", "end_layer", "relay")
    PEER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    RELAY_FIELD_NUMBER: _ClassVar[int]
    peer: str
    name: str
    first_layer: int
    end_layer: int
    relay: str
    def __init__(self, peer: _Optional[str] = ..., name: _Optional[str] = ..., first_layer: _Optional[int] = ..., end_layer: _Optional[int] = ..., relay: _Optional[str] = ...) -> None: ...

class UseRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Engine(_message.Message):
    __slots__ = ("socket", "digest", "model")
    SOCKET_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    socket: str
    digest: str
    model: str
    def __init__(self, socket: _Optional[str] = ..., digest: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class SwapRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class SwapEvent(_message.Message):
    __slots__ = ("who", "phase", "detail", "failure", "remedy", "exit_code")
    WHO_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    who: str
    phase: str
    detail: str
    failure: str
    remedy: str
    exit_code: int
    def __init__(self, who: _Optional[str] = ..., phase: _Optional[str] = ..., detail: _Optional[str] = ..., failure: _Optional[str] = ..., remedy: _Optional[str] = ..., exit_code: _Optional[int] = ...) -> None: ...

class CloseRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CloseReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
