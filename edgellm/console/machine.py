"""What is asked of this machine: its KV caches and its fitness."""

from __future__ import annotations

from collections.abc import Callable

import trio

from edgellm.console import views
from edgellm.console.sources import Busy
from edgellm.doctor.check import Examination
from edgellm.doctor.doctor import exit_code, run_doctor
from edgellm.kv.report import read_report
from edgellm.paths import Paths

MAX_PATIENTS = 4
"""Questions to the doctor that wait for the one examination that runs."""


class Machine:
    """`edgellm.console.sources.MachineSource`."""

    def __init__(self, paths: Paths, bootstrap: Callable[[], tuple[str, ...]]) -> None:
        """`bootstrap`: addresses of the swarm, for the doctor to try."""
        self._paths = paths
        self._bootstrap = bootstrap
        self._examining = trio.Lock()
        self._waiting = 0

    async def kv(self) -> views.Kv:
        report = await read_report(self._paths)
        return views.Kv(
            held_records=report.held_records,
            known_records=report.known_records,
            known_holders=report.known_holders,
            figures=report.figures,
        )

    async def doctor(self) -> views.Doctor:
        if self._waiting >= MAX_PATIENTS:
            raise Busy("this machine is being examined already")
        self._waiting += 1
        try:
            async with self._examining:
                examination = Examination(bootstrap=self._bootstrap())
                checks = await trio.to_thread.run_sync(lambda: list(run_doctor(examination)))
        finally:
            self._waiting -= 1
        return views.Doctor(
            ok=not exit_code(checks),
            checks=[
                views.Check(name=check.name, status=check.status, detail=check.detail, remedy=check.remedy)
                for check in checks
            ],
        )
