"""Shows checks: a line for each, and under each cross what mends it; or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from edgellm.doctor.check import Check, Status

_MARKS: dict[Status, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "warn": ("!", "yellow"),
    "fail": ("✗", "bold red"),
}
_NAME_WIDTH = 20


def print_check(console: Console, check: Check) -> None:
    """One line, and a second one with the remedy where there is something to mend."""
    mark, style = _MARKS[check.status]
    line = Text.assemble((mark, style), " ", (f"{check.name:<{_NAME_WIDTH}}", "bold"), " ", check.detail)
    # Never wrapped: a remedy is there to be copied.
    console.print(line, soft_wrap=True)
    if check.remedy:
        console.print(
            Padding(Text.assemble(("→ ", style), check.remedy), (0, 0, 0, 2), expand=False), soft_wrap=True
        )


def print_verdict(console: Console, checks: Sequence[Check]) -> None:
    """The last line."""
    failed = sum(check.status == "fail" for check in checks)
    warned = sum(check.status == "warn" for check in checks)
    warnings = f", {warned} warning{'s' * (warned != 1)}" if warned else ""
    if failed:
        console.print(Text(f"{failed} to mend{warnings}", "bold red"))
    else:
        console.print(Text(f"ready{warnings}", "bold green"))


def to_json(checks: Sequence[Check]) -> str:
    """`{"ok": bool, "checks": [{"name", "status", "detail", "remedy"}, ...]}`, indented."""
    ready = not any(check.status == "fail" for check in checks)
    return json.dumps(
        {"ok": ready, "checks": [asdict(check) for check in checks]}, indent=2, ensure_ascii=False
    )
