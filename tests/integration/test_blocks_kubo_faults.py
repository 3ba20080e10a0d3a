"""An IPFS daemon that is gone, lies or says nothing costs an error in time, never wrong data; what is its owner's stays."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trio

from edgellm.blocks.cid import Cid
from edgellm.blocks.kubo import KuboLimits, open_kubo_store
from edgellm.errors import BlockMissing, NetworkError, ProtocolViolation, UsageError
from tests.integration.jsipfs import jsipfs_daemon

_LIMITS = KuboLimits(lookup_s=0.5, call_s=2.0)
_BLOCK = os.urandom(1_000)


@contextmanager
def _daemon_that_answers(answer: Callable[[str], bytes | None]) -> Iterator[str]:
    """A daemon's RPC: bytes for each command; for None nothing until the end of the test."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            command = self.path.split("?")[0].removeprefix("/api/v0/")
            body = b'{"Version": "0.30.0"}' if command == "version" else answer(command)
            if body is None:
                over.wait(20)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"/ip4/127.0.0.1/tcp/{server.server_port}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "lie", [b"", os.urandom(1_000), bytes(3 << 20)], ids=["nothing", "other", "too much"]
)
async def test_wrong_bytes_are_a_missing_block(tmp_path: Path, lie: bytes) -> None:
    with _daemon_that_answers(lambda command: lie) as address:
        async with open_kubo_store(address, tmp_path, limits=_LIMITS) as store:
            with pytest.raises(BlockMissing):
                await store.get(Cid.of(_BLOCK))


async def test_a_wrong_name_for_a_block_is_refused_and_not_counted(tmp_path: Path) -> None:
    named = json.dumps({"Key": str(Cid.of(b"another")), "Size": 7}).encode()
    with _daemon_that_answers(lambda command: named) as address:
        async with open_kubo_store(address, tmp_path, limits=_LIMITS) as store:
            with pytest.raises(ProtocolViolation, match=str(Cid.of(_BLOCK))):
                await store.put([_BLOCK])
            assert (await store.stat()).blocks == 0


async def test_a_daemon_that_never_answers_costs_the_timeout_however_many_wait(tmp_path: Path) -> None:
    late = 0
    with _daemon_that_answers(lambda command: None) as address:
        async with open_kubo_store(address, tmp_path, limits=_LIMITS) as store:

            async def get() -> None:
                nonlocal late
                with pytest.raises(NetworkError, match="in time"):
                    await store.get(Cid.of(_BLOCK))
                late += 1

            with trio.fail_after(_LIMITS.call_s + 2):
                async with trio.open_nursery() as nursery:
                    for _ in range(50):
                        nursery.start_soon(get)
    assert late == 50


async def test_a_stopped_daemon_is_named_with_a_remedy(tmp_path: Path) -> None:
    with jsipfs_daemon(tmp_path / "repository") as daemon:
        async with open_kubo_store(daemon.address, tmp_path / "ours", limits=_LIMITS) as store:
            (cid,) = await store.put([_BLOCK])
            daemon.process.kill()
            daemon.process.wait()
            for call in (store.get, store.has, store.pin):
                with trio.fail_after(5), pytest.raises(NetworkError, match=daemon.address) as stopped:
                    await call(cid)
                assert "ipfs daemon" in stopped.value.remedy
    with pytest.raises(NetworkError, match="no IPFS daemon answers"):
        async with open_kubo_store(daemon.address, tmp_path / "ours", limits=_LIMITS):
            pass


async def test_gc_and_unpin_leave_what_is_the_owners(tmp_path: Path) -> None:
    import ipfshttpclient

    theirs, both = os.urandom(2_000), os.urandom(3_000)
    options = {"format": "raw", "mhtype": "sha2-256", "version": "1"}
    with jsipfs_daemon(tmp_path / "repository") as daemon:
        owner = ipfshttpclient.Client(daemon.address, timeout=10)
        owner.block.put(io.BytesIO(theirs), opts=dict(options))
        owner.block.put(io.BytesIO(both), opts=dict(options))
        owner.pin.add(str(Cid.of(both)))
        async with open_kubo_store(daemon.address, tmp_path / "ours", limits=_LIMITS) as store:
            await store.put([both, _BLOCK])
            await store.pin(Cid.of(both))
            await store.unpin(Cid.of(both))
            assert await store.gc() == len(_BLOCK)
            assert await store.get(Cid.of(theirs)) == theirs
            assert await store.get(Cid.of(both)) == both


async def test_an_address_elsewhere_is_refused(tmp_path: Path) -> None:
    for address in ("/ip4/192.0.2.1/tcp/5001", "/dns4/ipfs.example/tcp/5001", "http://127.0.0.1:5001"):
        with pytest.raises(UsageError):
            async with open_kubo_store(address, tmp_path):
                pass
