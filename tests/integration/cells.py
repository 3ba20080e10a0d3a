"""Programs in real cells, for the tests."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

import trio

from edgellm.cells.cell import Cell, default_environment, open_cell
from edgellm.cells.spec import CellSpec

# What every program has: `tell` sends an event, `attempt` says what an operation gave or how it failed.
PRELUDE = """
import json, os, socket, subprocess, sys, threading, time
from pathlib import Path

def tell(**event):
    print(json.dumps(event), flush=True)

def attempt(operation):
    try:
        return repr(operation())
    except Exception as error:
        return type(error).__name__
"""


def python_cell(program: str, runtime: Path, *arguments: str, **settings: Any) -> CellSpec:
    """A cell that runs `program` (source text, after the prelude)."""
    runtime.mkdir(exist_ok=True)
    return CellSpec(
        argv=(sys.executable, "-c", PRELUDE + textwrap.dedent(program), *arguments),
        runtime_directory=runtime,
        environment=default_environment(),
        **{"address": "10.88.7.2", "subnet": "10.88.7.0/24", "writes_runtime": True, **settings},
    )


async def events_of(spec: CellSpec) -> list[dict[str, Any]]:
    """All events of a cell that ends by itself, which it must do with status 0."""
    with trio.fail_after(60):
        async with open_cell(spec) as cell:
            events = [event async for event in cell.events]
            status = await cell.wait()
    assert status == 0, cell.stderr_tail()
    return events


async def event_named(cell: Cell, name: str) -> dict[str, Any]:
    """The next event, which must be `name`."""
    with trio.fail_after(60):
        try:
            event = await cell.events.receive()
        except trio.EndOfChannel:
            raise AssertionError(f"the cell ended: {cell.stderr_tail()}") from None
    assert event.get("event") == name, event
    return event
