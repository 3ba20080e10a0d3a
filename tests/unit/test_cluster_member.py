"""A member of a cluster whose way to the others ends."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import trio

from edgellm.cluster import member
from edgellm.cluster.assemble import HeadDoor, head_alone
from edgellm.cluster.door import open_door
from edgellm.cluster.member import CellMachine
from edgellm.cluster.switchboard import Switchboard
from edgellm.errors import CellError, unwrapped
from edgellm.testing.memory_network import open_hub
from edgellm.types.plan import Endpoint, PlanRequest
from tests.unit.samples import DIGEST, SHAPE

BACKEND = SimpleNamespace(
    device_kind=lambda: "cpu",
    command=lambda spec: ("/bin/true",),
    environment=lambda spec: {},
    read_only_paths=lambda: (),
)


@asynccontextmanager
async def no_cell(spec: object) -> AsyncIterator[object]:
    yield SimpleNamespace(stderr_tail=lambda: "")


def carriers() -> list[int]:
    return [
        child.pid
        for child in psutil.Process().children()
        if "edgellm.overlay.carrier" in " ".join(child.cmdline())
    ]


@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_cell_ends_with_its_carrier(
    is_killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member, "open_cell", no_cell)
    monkeypatch.setattr(member, "CELL_GOES_S", 0.1)
    request = PlanRequest("tiny", DIGEST, SHAPE, context=256, fabric="overlay")
    machine = CellMachine(BACKEND, tmp_path, threads=1)
    before = set(carriers())
    async with open_hub() as hub:
        switchboard = Switchboard(hub.join())
        with open_door(("127.0.0.1",)) as door, trio.fail_after(10):
            own = HeadDoor("asker", door.identity.certificate_der, (Endpoint("127.0.0.1", 1),), ())
            alone = head_alone(request, own, cluster="c8" + "0" * 30, token="ab" * 32, issued_at=1.0)

            async def hold() -> None:
                async with machine.open_member(switchboard, alone, alone.head, door, tmp_path) as running:
                    await running.amend(replace(alone, issued_at=2.0))
                    if is_killed:
                        (carrier,) = set(carriers()) - before
                        os.kill(carrier, signal.SIGKILL)
                        await trio.sleep_forever()

            if is_killed:
                with pytest.raises(CellError, match="carrier has ended"), unwrapped():
                    await hold()
            else:
                await hold()
    assert set(carriers()) == before
