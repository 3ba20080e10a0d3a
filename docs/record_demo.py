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


def main() -> None:
    """Runs the demo with colours on and writes what it printed as an SVG. Fails when the demo fails."""
    done = subprocess.run(
        [sys.executable, "-m", "edgellm", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)},
        check=True,
        timeout=600,
    )
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print("[bold green]$[/] make demo")
    for line in done.stdout.splitlines():
        console.print(Text.from_ansi(line))
    console.save_svg(str(TARGET), title="edgellm demo")


if __name__ == "__main__":
    main()
