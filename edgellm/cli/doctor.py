"""`edgellm doctor`: is this machine fit to host and to ask, and if not, what mends it?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from edgellm.cli import _options as options
from edgellm.cli._output import tables


def doctor(
    listen: Annotated[
        list[str] | None,
        typer.Option(metavar="MULTIADDR", help="Address to host on: is its port free? May be repeated."),
    ] = None,
    bootstrap: options.Bootstrap = None,
    backend: Annotated[str, typer.Option(help="Engine to look for.")] = "vllm",
    as_json: options.Json = False,
) -> None:
    """Check everything that must be true on this machine; for each cross, print what mends it.

    The exit code is the verdict: 0 when nothing failed, else 1.

    Examples:

      edgellm doctor

      edgellm doctor --listen /ip4/0.0.0.0/tcp/4001 --bootstrap /ip4/192.0.2.7/tcp/4001/p2p/12D3Koo...
    """
    from edgellm.doctor.check import Check, Examination
    from edgellm.doctor.doctor import exit_code, run_doctor
    from edgellm.doctor.report import print_check, print_verdict, to_json

    examination = Examination(tuple(listen or ()), _known(bootstrap or ()), backend)
    checks: list[Check] = []
    for check in run_doctor(examination):
        checks.append(check)
        if not as_json:
            print_check(tables, check)
    if as_json:
        print(to_json(checks))
    else:
        print_verdict(tables, checks)
    raise typer.Exit(exit_code(checks))


def _known(said: Sequence[str]) -> tuple[str, ...]:
    from edgellm.discovery.bootstrap import bootstrap_peers
    from edgellm.errors import UsageError
    from edgellm.paths import default_paths

    try:
        return bootstrap_peers(said, default_paths().state)
    except UsageError:
        # Without a state directory none is remembered; that it cannot be used is one of the checks.
        return tuple(said)
