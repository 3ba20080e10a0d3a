from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Device(_message.Message):
    __slots__ = ("id", "kind", "name", "memory_bytes", "bandwidth_bytes_s", "flops", "kv_layout")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    BANDWIDTH_BYTES_S_FIELD_NUMBER: _ClassVar[int]
    FLOPS_FIELD_NUMBER: _ClassVar[int]
    KV_LAYOUT_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: str
    name: str
    memory_bytes: int
    bandwidth_bytes_s: float
    flops: float
    kv_layout: str
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[str] = ..., name: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., bandwidth_bytes_s: _Optional[float] = ..., flops: _Optional[float] = ..., kv_layout: _Optional[str] = ...) -> None: ...

class Engine(_message.Message):
    __slots__ = ("backend", "device_kind", "versions")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KIND_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    backend: str
    device_kind: str
    versions: _containers.ScalarMap[str, str]
    def __init__(self, backend: _Optional[str] = ..., device_kind: _Optional[str] = ..., versions: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ModelOffer(_message.Message):
    __slots__ = ("name", "digest", "layers", "weights_bytes", "max_context")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: bytes
    layers: int
    weights_bytes: int
    max_context: int
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[bytes] = ..., layers: _Optional[int] = ..., weights_bytes: _Optional[int] = ..., max_context: _Optional[int] = ...) -> None: ...

class HostAdvert(_message.Message):
    __slots__ = ("peer", "name", "sequence", "issued_unix_ms", "expires_unix_ms", "addresses", "engine", "devices", "free_devices", "free_memory_bytes", "models", "fabrics", "free_leases", "draining", "lent_memory_bytes", "lends_until_unix_ms")
    PEER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ISSUED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    FREE_DEVICES_FIELD_NUMBER: _ClassVar[int]
    FREE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    FABRICS_FIELD_NUMBER: _ClassVar[int]
    FREE_LEASES_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    LENT_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    LENDS_UNTIL_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    peer: str
    name: str
    sequence: int
    issued_unix_ms: int
    expires_unix_ms: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    engine: Engine
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    free_devices: _containers.RepeatedScalarFieldContainer[str]
    free_memory_bytes: int
    models: _containers.RepeatedCompositeFieldContainer[ModelOffer]
    fabrics: _containers.RepeatedScalarFieldContainer[str]
    free_leases: int
    draining: bool
    lent_memory_bytes: int
    lends_until_unix_ms: int
    def __init__(self, peer: _Optional[str] = ..., name: _Optional[str] = ..., sequence: _Optional[int] = ..., issued_unix_ms: _Optional[int] = ..., expires_unix_ms: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ..., engine: _Optional[_Union[Engine, _Mapping]] = ..., devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., free_devices: _Optional[_Iterable[str]] = ..., free_memory_bytes: _Optional[int] = ..., models: _Optional[_Iterable[_Union[ModelOffer, _Mapping]]] = ..., fabrics: _Optional[_Iterable[str]] = ..., free_leases: _Optional[int] = ..., draining: bool = ..., lent_memory_bytes: _Optional[int] = ..., lends_until_unix_ms: _Optional[int] = ...) -> None: ...

class AdvertRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AdvertReply(_message.Message):
    __slots__ = ("envelope",)
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    envelope: bytes
    def __init__(self, envelope: _Optional[bytes] = ...) -> None: ...

class ModelRequest(_message.Message):
    __slots__ = ("digest", "path")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    path: str
    def __init__(self, digest: _Optional[bytes] = ..., path: _Optional[str] = ...) -> None: ...

class ModelReply(_message.Message):
    __slots__ = ("error", "size_bytes")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    error: str
    size_bytes: int
    def __init__(self, error: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class Reserve(_message.Message):
    __slots__ = ("cluster", "model_digest", "first_layer", "end_layer", "devices", "memory_bytes", "fabric", "engine")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FABRIC_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    model_digest: bytes
    first_layer: int
    end_layer: int
    devices: int
    memory_bytes: int
    fabric: str
    engine: Engine
    def __init__(self, cluster: _Optional[str] = ..., model_digest: _Optional[bytes] = ..., first_layer: _Optional[int] = ..., end_layer: _Optional[int] = ..., devices: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., fabric: _Optional[str] = ..., engine: _Optional[_Union[Engine, _Mapping]] = ...) -> None: ...

class Granted(_message.Message):
    __slots__ = ("lease", "expires_unix_ms", "devices", "overlay_certificate", "overlay_endpoints", "lends_until_unix_ms", "signs_receipts")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    OVERLAY_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    OVERLAY_ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    LENDS_UNTIL_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    SIGNS_RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    lease: str
    expires_unix_ms: int
    devices: _containers.RepeatedScalarFieldContainer[str]
    overlay_certificate: bytes
    overlay_endpoints: _containers.RepeatedCompositeFieldContainer[Endpoint]
    lends_until_unix_ms: int
    signs_receipts: bool
    def __init__(self, lease: _Optional[str] = ..., expires_unix_ms: _Optional[int] = ..., devices: _Optional[_Iterable[str]] = ..., overlay_certificate: _Optional[bytes] = ..., overlay_endpoints: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ..., lends_until_unix_ms: _Optional[int] = ..., signs_receipts: bool = ...) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("host", "port")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    host: str
    port: int
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("reason", "code")
    REASON_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    code: str
    def __init__(self, reason: _Optional[str] = ..., code: _Optional[str] = ...) -> None: ...

class PlanMember(_message.Message):
    __slots__ = ("peer", "address", "overlay_certificate", "overlay_endpoints", "lease", "first_layer", "end_layer", "devices", "memory_bytes", "addresses")
    PEER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    OVERLAY_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    OVERLAY_ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    peer: str
    address: str
    overlay_certificate: bytes
    overlay_endpoints: _containers.RepeatedCompositeFieldContainer[Endpoint]
    lease: str
    first_layer: int
    end_layer: int
    devices: _containers.RepeatedScalarFieldContainer[str]
    memory_bytes: int
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, peer: _Optional[str] = ..., address: _Optional[str] = ..., overlay_certificate: _Optional[bytes] = ..., overlay_endpoints: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ..., lease: _Optional[str] = ..., first_layer: _Optional[int] = ..., end_layer: _Optional[int] = ..., devices: _Optional[_Iterable[str]] = ..., memory_bytes: _Optional[int] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class ClusterPlan(_message.Message):
    __slots__ = ("cluster", "model_digest", "tensor_parallel", "members", "fabric", "max_model_len", "kv_cache_bytes", "subnet", "cluster_token", "issued_unix_ms", "kv", "spares", "standby")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLEL_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    FABRIC_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SUBNET_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ISSUED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    SPARES_FIELD_NUMBER: _ClassVar[int]
    STANDBY_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    model_digest: bytes
    tensor_parallel: int
    members: _containers.RepeatedCompositeFieldContainer[PlanMember]
    fabric: str
    max_model_len: int
    kv_cache_bytes: int
    subnet: str
    cluster_token: str
    issued_unix_ms: int
    kv: KvSharing
    spares: _containers.RepeatedCompositeFieldContainer[PlanMember]
    standby: bool
    def __init__(self, cluster: _Optional[str] = ..., model_digest: _Optional[bytes] = ..., tensor_parallel: _Optional[int] = ..., members: _Optional[_Iterable[_Union[PlanMember, _Mapping]]] = ..., fabric: _Optional[str] = ..., max_model_len: _Optional[int] = ..., kv_cache_bytes: _Optional[int] = ..., subnet: _Optional[str] = ..., cluster_token: _Optional[str] = ..., issued_unix_ms: _Optional[int] = ..., kv: _Optional[_Union[KvSharing, _Mapping]] = ..., spares: _Optional[_Iterable[_Union[PlanMember, _Mapping]]] = ..., standby: bool = ...) -> None: ...

class KvSharing(_message.Message):
    __slots__ = ("scope", "scope_id", "secret", "tracker", "tracker_addresses", "prefill_tok_s")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    SCOPE_ID_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    TRACKER_FIELD_NUMBER: _ClassVar[int]
    TRACKER_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOK_S_FIELD_NUMBER: _ClassVar[int]
    scope: str
    scope_id: bytes
    secret: bytes
    tracker: str
    tracker_addresses: _containers.RepeatedScalarFieldContainer[str]
    prefill_tok_s: float
    def __init__(self, scope: _Optional[str] = ..., scope_id: _Optional[bytes] = ..., secret: _Optional[bytes] = ..., tracker: _Optional[str] = ..., tracker_addresses: _Optional[_Iterable[str]] = ..., prefill_tok_s: _Optional[float] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("plan_envelope",)
    PLAN_ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    plan_envelope: bytes
    def __init__(self, plan_envelope: _Optional[bytes] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("cluster", "lease", "host", "requester", "model_digest", "first_layer", "end_layer", "answers", "tokens", "seconds", "ended_unix_ms")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    REQUESTER_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    ENDED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    lease: str
    host: str
    requester: str
    model_digest: bytes
    first_layer: int
    end_layer: int
    answers: int
    tokens: int
    seconds: float
    ended_unix_ms: int
    def __init__(self, cluster: _Optional[str] = ..., lease: _Optional[str] = ..., host: _Optional[str] = ..., requester: _Optional[str] = ..., model_digest: _Optional[bytes] = ..., first_layer: _Optional[int] = ..., end_layer: _Optional[int] = ..., answers: _Optional[int] = ..., tokens: _Optional[int] = ..., seconds: _Optional[float] = ..., ended_unix_ms: _Optional[int] = ...) -> None: ...

class SealedReceipt(_message.Message):
    __slots__ = ("envelope",)
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    envelope: bytes
    def __init__(self, envelope: _Optional[bytes] = ...) -> None: ...

class FromRequester(_message.Message):
    __slots__ = ("reserve", "commit", "heartbeat", "release", "receipt")
    RESERVE_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    reserve: Reserve
    commit: Commit
    heartbeat: Heartbeat
    release: Release
    receipt: SealedReceipt
    def __init__(self, reserve: _Optional[_Union[Reserve, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., release: _Optional[_Union[Release, _Mapping]] = ..., receipt: _Optional[_Union[SealedReceipt, _Mapping]] = ...) -> None: ...

class LeaseEvent(_message.Message):
    __slots__ = ("phase", "detail")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    phase: str
    detail: str
    def __init__(self, phase: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class Ended(_message.Message):
    __slots__ = ("reason", "code")
    REASON_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    code: str
    def __init__(self, reason: _Optional[str] = ..., code: _Optional[str] = ...) -> None: ...

class Draining(_message.Message):
    __slots__ = ("deadline_unix_ms",)
    DEADLINE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    deadline_unix_ms: int
    def __init__(self, deadline_unix_ms: _Optional[int] = ...) -> None: ...

class FromHost(_message.Message):
    __slots__ = ("granted", "refused", "event", "heartbeat", "ended", "draining", "receipt")
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    granted: Granted
    refused: Refused
    event: LeaseEvent
    heartbeat: Heartbeat
    ended: Ended
    draining: Draining
    receipt: SealedReceipt
    def __init__(self, granted: _Optional[_Union[Granted, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., event: _Optional[_Union[LeaseEvent, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., ended: _Optional[_Union[Ended, _Mapping]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ..., receipt: _Optional[_Union[SealedReceipt, _Mapping]] = ...) -> None: ...

class OverlayOpen(_message.Message):
    __slots__ = ("cluster", "source_address", "target_address", "port")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    SOURCE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TARGET_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    source_address: str
    target_address: str
    port: int
    def __init__(self, cluster: _Optional[str] = ..., source_address: _Optional[str] = ..., target_address: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class OverlayReply(_message.Message):
    __slots__ = ("error",)
    ERROR_FIELD_NUMBER: _ClassVar[int]
    error: str
    def __init__(self, error: _Optional[str] = ...) -> None: ...

class KvRequest(_message.Message):
    __slots__ = ("find", "announce", "settle", "measure")
    FIND_FIELD_NUMBER: _ClassVar[int]
    ANNOUNCE_FIELD_NUMBER: _ClassVar[int]
    SETTLE_FIELD_NUMBER: _ClassVar[int]
    MEASURE_FIELD_NUMBER: _ClassVar[int]
    find: KvFind
    announce: KvAnnounce
    settle: KvSettle
    measure: KvMeasure
    def __init__(self, find: _Optional[_Union[KvFind, _Mapping]] = ..., announce: _Optional[_Union[KvAnnounce, _Mapping]] = ..., settle: _Optional[_Union[KvSettle, _Mapping]] = ..., measure: _Optional[_Union[KvMeasure, _Mapping]] = ...) -> None: ...

class KvRegion(_message.Message):
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

class KvFind(_message.Message):
    __slots__ = ("scope_id", "names", "region")
    SCOPE_ID_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    scope_id: bytes
    names: _containers.RepeatedScalarFieldContainer[bytes]
    region: KvRegion
    def __init__(self, scope_id: _Optional[bytes] = ..., names: _Optional[_Iterable[bytes]] = ..., region: _Optional[_Union[KvRegion, _Mapping]] = ...) -> None: ...

class KvRecord(_message.Message):
    __slots__ = ("name", "region", "digests", "size_bytes", "expires_unix_s", "holder")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    region: KvRegion
    digests: bytes
    size_bytes: int
    expires_unix_s: int
    holder: int
    def __init__(self, name: _Optional[bytes] = ..., region: _Optional[_Union[KvRegion, _Mapping]] = ..., digests: _Optional[bytes] = ..., size_bytes: _Optional[int] = ..., expires_unix_s: _Optional[int] = ..., holder: _Optional[int] = ...) -> None: ...

class KvBatch(_message.Message):
    __slots__ = ("scope_id", "records")
    SCOPE_ID_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    scope_id: bytes
    records: _containers.RepeatedCompositeFieldContainer[KvRecord]
    def __init__(self, scope_id: _Optional[bytes] = ..., records: _Optional[_Iterable[_Union[KvRecord, _Mapping]]] = ...) -> None: ...

class KvHolder(_message.Message):
    __slots__ = ("peer", "addresses")
    PEER_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    peer: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, peer: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class KvFound(_message.Message):
    __slots__ = ("records", "holders")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[KvRecord]
    holders: _containers.RepeatedCompositeFieldContainer[KvHolder]
    def __init__(self, records: _Optional[_Iterable[_Union[KvRecord, _Mapping]]] = ..., holders: _Optional[_Iterable[_Union[KvHolder, _Mapping]]] = ...) -> None: ...

class KvAnnounce(_message.Message):
    __slots__ = ("scope_id", "batch", "addresses", "uses")
    SCOPE_ID_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    scope_id: bytes
    batch: bytes
    addresses: _containers.RepeatedScalarFieldContainer[str]
    uses: _containers.RepeatedCompositeFieldContainer[KvUse]
    def __init__(self, scope_id: _Optional[bytes] = ..., batch: _Optional[bytes] = ..., addresses: _Optional[_Iterable[str]] = ..., uses: _Optional[_Iterable[_Union[KvUse, _Mapping]]] = ...) -> None: ...

class KvUse(_message.Message):
    __slots__ = ("name", "region", "holder", "outcome", "tokens", "size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    region: KvRegion
    holder: str
    outcome: str
    tokens: int
    size_bytes: int
    def __init__(self, name: _Optional[bytes] = ..., region: _Optional[_Union[KvRegion, _Mapping]] = ..., holder: _Optional[str] = ..., outcome: _Optional[str] = ..., tokens: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class KvAnnounced(_message.Message):
    __slots__ = ("kept",)
    KEPT_FIELD_NUMBER: _ClassVar[int]
    kept: int
    def __init__(self, kept: _Optional[int] = ...) -> None: ...

class KvSettle(_message.Message):
    __slots__ = ("scope_id",)
    SCOPE_ID_FIELD_NUMBER: _ClassVar[int]
    scope_id: bytes
    def __init__(self, scope_id: _Optional[bytes] = ...) -> None: ...

class KvMeasure(_message.Message):
    __slots__ = ("scope_id",)
    SCOPE_ID_FIELD_NUMBER: _ClassVar[int]
    scope_id: bytes
    def __init__(self, scope_id: _Optional[bytes] = ...) -> None: ...

class KvReply(_message.Message):
    __slots__ = ("found", "announced", "settled", "refused", "measured")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    ANNOUNCED_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    found: KvFound
    announced: KvAnnounced
    settled: KvSettle
    refused: str
    measured: KvMeasure
    def __init__(self, found: _Optional[_Union[KvFound, _Mapping]] = ..., announced: _Optional[_Union[KvAnnounced, _Mapping]] = ..., settled: _Optional[_Union[KvSettle, _Mapping]] = ..., refused: _Optional[str] = ..., measured: _Optional[_Union[KvMeasure, _Mapping]] = ...) -> None: ...
