"""A host's node without an engine: everything that strangers reach. Prints its address; ends with its standard input."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import trio

from edgellm.cluster.switchboard import Switchboard
from edgellm.discovery.publish import Publisher
from edgellm.hosting.model_files import ServedModel, serve_model_files
from edgellm.hosting.quota import parse_lending_quota
from edgellm.hosting.quota_keeper import QuotaKeeper
from edgellm.hosting.service import Advertiser
from edgellm.leasing.serve import LeaseServer
from edgellm.p2p.identity import Identity
from edgellm.p2p.node import NodeConfig, open_node
from tests.unit.samples import DIGEST, book
from tests.unit.test_leasing_stream import FakeRunner


async def main() -> None:
    config = NodeConfig(Identity.generate(), ("/ip4/127.0.0.1/tcp/0",))
    with tempfile.TemporaryDirectory() as directory:
        async with open_node(config) as network:
            lent = book(devices=4, max_leases=4)
            advertiser = Advertiser("soak", network.peer, lambda: (), lent)
            keeper = QuotaKeeper(parse_lending_quota("1000h/day"), Path(directory) / "quota", now=time.time)
            server = LeaseServer(
                network, lent, FakeRunner(), now=time.time, changed=advertiser.use, account=keeper
            )
            server.attach()
            Switchboard(network)
            served = ServedModel(Path(directory), b"{}" * 5000, frozenset())
            serve_model_files(network, {DIGEST: served})
            await Publisher(network, advertiser.current).announce()
            print(network.addresses[0], flush=True)
            await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


if __name__ == "__main__":
    trio.run(main)
