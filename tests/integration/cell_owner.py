"""A program that owns a cell and never ends by itself: RUNTIME_DIRECTORY ISOLATION MARKER."""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from edgellm.cells.cell import open_cell
from tests.integration.cells import event_named, python_cell
from tests.integration.test_cell import STUBBORN


async def main() -> None:
    runtime, isolation, marker = sys.argv[1:]
    async with open_cell(python_cell(STUBBORN, Path(runtime), marker, isolation=isolation)) as cell:
        await event_named(cell, "up")
        print("up", flush=True)
        await trio.sleep_forever()


trio.run(main)
