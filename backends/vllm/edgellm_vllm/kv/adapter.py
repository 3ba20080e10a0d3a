"""LMCache's second level: pieces by way of the node. Runs in LMCache's server, which makes it by its plugin mechanism."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lmcache.lmcache_native import Bitmap
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.internal_api import L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface
from lmcache.v1.platform import create_event_notifier

from edgellm_vllm.kv.pieces import Chunk, Pieces, RankPieces
from edgellm_vllm.kv.settings import settings_from
from edgellm_vllm.kv.tasks import Task, TaskClosed, Tasks

log = logging.getLogger(__name__)

_LOOKUPS_AT_ONCE = 16
_LOADS_AT_ONCE = 8
_STORES_AT_ONCE = 8
_FETCHES_AT_ONCE = 4
_STORE_TIMEOUT_S = 60.0
_STORE_NICENESS = 15
_TICK_S = 0.05
# Calls to the node end by themselves shortly before the task does.
_MARGIN_S = 0.1


class NodeAdapter(L2AdapterInterface):
    """Every task ends by its deadline; whatever goes wrong is a miss."""

    def __init__(self, parameters: dict[str, Any], **_: Any) -> None:
        super().__init__(max_capacity_bytes=0)
        settings = settings_from(os.environ)
        if settings is None:
            raise ValueError("this adapter is for members of clusters that share their KV cache")
        self._sharing = settings.sharing
        self._pieces = Pieces(settings)
        self._lookups: Tasks[Bitmap] = Tasks("lookup", create_event_notifier(), _LOOKUPS_AT_ONCE)
        self._loads: Tasks[Bitmap] = Tasks("load", create_event_notifier(), _LOADS_AT_ONCE)
        self._stores: Tasks[L2StoreResult] = Tasks("store", create_event_notifier(), _STORES_AT_ONCE)
        self._fetchers = ThreadPoolExecutor(_FETCHES_AT_ONCE, thread_name_prefix="kv-fetch")
        # One at a time: sealing takes a core that the ranks need.
        self._sealing = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="kv-deadlines", daemon=True).start()

    def get_store_event_fd(self) -> int:
        return self._stores.fileno()

    def get_lookup_and_lock_event_fd(self) -> int:
        return self._lookups.fileno()

    def get_load_event_fd(self) -> int:
        return self._loads.fileno()

    def submit_lookup_and_lock_task(self, keys: list[ObjectKey], group_layout_descs: Any) -> int:
        """Which of the keys have pieces that are worth fetching."""

        def work(task: Task[Bitmap]) -> None:
            for rank, places in self._by_rank(keys).items():
                chunks = [_chunk(keys[place]) for place in places]
                found = rank.find(chunks, task.left_s - _MARGIN_S)
                with task.while_open():
                    task.so_far.batched_set(places[:found])

        return self._lookups.submit(Bitmap(len(keys)), self._sharing.find_timeout_s, work)

    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None:
        return self._lookups.pop(task_id)

    def submit_unlock(self, keys: list[ObjectKey]) -> None:
        """Nothing is ever locked: what is gone by the time of its load is a miss."""

    def submit_load_task(self, keys: list[ObjectKey], objects: list[Any]) -> int:
        """Fills the objects, in order, with what can be fetched and opened in time."""

        def load_one(task: Task[Bitmap], rank: RankPieces, place: int) -> None:
            target = objects[place]
            loaded = rank.load(_chunk(keys[place]), tuple(target.get_shape()), target.get_size(), task)
            if loaded is None:
                return
            content, sources = loaded
            try:
                with task.while_open():
                    memoryview(target.byte_array).cast("B")[:] = content
                    task.so_far.set(place)
            except TaskClosed:
                rank.report(sources, "late")
                raise
            rank.report(sources, "used")

        def work(task: Task[Bitmap]) -> None:
            jobs = [
                self._fetchers.submit(load_one, task, rank, place)
                for place, rank in sorted(
                    ((place, rank) for rank, places in self._by_rank(keys).items() for place in places),
                    key=lambda job: job[0],
                )
            ]
            for job in jobs:
                job.result()

        return self._loads.submit(Bitmap(len(keys)), self._sharing.fetch_timeout_s, work)

    def query_load_result(self, task_id: int) -> Bitmap | None:
        return self._loads.pop(task_id)

    def submit_store_task(self, keys: list[ObjectKey], objects: list[Any]) -> int:
        """Seals the objects and gives them to the node."""

        def work(task: Task[L2StoreResult]) -> None:
            # Of this thread alone: what others may need one day must not slow down the answer that is made now.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _STORE_NICENESS)
            kept = 0
            for rank, places in self._by_rank(keys).items():
                for place in places:
                    source = objects[place]
                    chunk, shape = _chunk(keys[place]), tuple(source.get_shape())
                    if not rank.is_to_be_stored(chunk, shape, source.get_size()):
                        continue
                    with task.while_open():
                        content = bytes(memoryview(source.byte_array).cast("B"))
                    with self._sealing:
                        kept += rank.store(chunk, content)
            with task.while_open():
                task.so_far = L2StoreResult(True, kept)

        return self._stores.submit(L2StoreResult(False, 0), _STORE_TIMEOUT_S, work)

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        return self._stores.pop_all()

    def report_status(self) -> dict[str, Any]:
        """For LMCache's own account of its health."""
        return {
            "is_healthy": True,
            "type": "edgellm",
            "lookups": self._lookups.under_way,
            "loads": self._loads.under_way,
            "stores": self._stores.under_way,
        }

    def close(self) -> None:
        self._closed.set()
        self._pieces.close()
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        for tasks in (self._lookups, self._loads, self._stores):
            tasks.close()

    def _watch(self) -> None:
        while not self._closed.wait(_TICK_S):
            for tasks in (self._lookups, self._loads, self._stores):
                tasks.expire()

    def _by_rank(self, keys: Sequence[ObjectKey]) -> dict[RankPieces, list[int]]:
        """The places in `keys` that belong to each rank of this server, in order; keys of no known rank are left out."""
        places: dict[RankPieces, list[int]] = {}
        for place, key in enumerate(keys):
            rank = self._pieces.of_rank(_local_ranks(key), _local_rank(key))
            if rank is not None and key.object_group_id == 0:
                places.setdefault(rank, []).append(place)
        return places


def _chunk(key: ObjectKey) -> Chunk:
    return Chunk(key.chunk_hash, key.cache_salt)


def _local_rank(key: ObjectKey) -> int:
    """LMCache packs (world size, rank, world size, rank) into four bytes."""
    return int(key.kv_rank) >> 16 & 0xFF


def _local_ranks(key: ObjectKey) -> int:
    return int(key.kv_rank) >> 24 & 0xFF
