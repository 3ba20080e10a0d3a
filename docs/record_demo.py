"""Records docs/demo.svg from a real run of `edgellm demo`: python docs/record_demo.py."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

TARGET = Path(__file__).with_name("demo.svg")
COLUMNS = 118


def style(line: str) -> str:
    """Steps of the demo stand out, what the hosts and the bring-up say stays back, the answer is as it is."""
    if line[:1].isdigit() and line[1:2] == ".":
        return "bold yellow"
    return "dim" if (line.startswith(" ") and " s  " in line[:12]) or line.startswith("   ") else ""


def main() -> None:
    """Runs the demo and writes what it printed as an SVG. Fails when the demo fails."""
    done = subprocess.run(
        [sys.executable, "-m", "edgellm", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": str(COLUMNS)},
        check=True,
        timeout=600,
    )
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print("[bold green]$[/] make demo")
    repository = str(TARGET.resolve().parents[1])
    for line in done.stdout.replace(repository, "~/edgellm").splitlines():
        console.print(Text(line, style=style(line)))
    console.save_svg(str(TARGET), title="edgellm demo")


if __name__ == "__main__":
    main()
