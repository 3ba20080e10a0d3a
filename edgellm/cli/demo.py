"""`edgellm demo`: a swarm on this machine: two hosts, a DHT, a requester with no devices, and a real answer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Annotated

import typer
from rich.markup import escape

from edgellm.cli._output import say
from edgellm.errors import CellError, ModelError

READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 20.0
_ADDRESS = re.compile(r"--bootstrap (\S+)")


def demo(
    model: Annotated[
        Path | None,
        typer.Option("--model", help="A model directory. Default: the small one of the repository."),
    ] = None,
    prompt: Annotated[str, typer.Argument(help="What to ask.")] = "The with statement is used",
) -> None:
    """Show all of it on this machine: two hosts find each other, a requester without devices borrows both.

    Everything runs as it would between machines: separate processes, identities and homes, real sandboxes, an
    encrypted overlay.
    """
    directory = find_model(model)
    command = (sys.executable, "-m", "edgellm")
    with ExitStack() as stack:
        home = Path(tempfile.mkdtemp(prefix="edgellm-demo-"))
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        say("[bold]1.[/] alice lends a part of this machine, and is the first peer of the DHT")
        alice = stack.enter_context(_host(command, home, "alice", directory, bootstrap=None))
        say("[bold]2.[/] bob joins through alice and lends some too")
        stack.enter_context(_host(command, home, "bob", directory, bootstrap=alice))
        say("[bold]3.[/] what the swarm offers now: edgellm peers")
        _run((*command, "peers", "--bootstrap", alice), home / "carol")
        say(
            f"[bold]4.[/] carol, who lends nothing, asks: edgellm ask {escape(repr(prompt))} --model {directory.name} --pp 2"
        )
        ask = (
            "ask",
            prompt,
            "--model",
            directory.name,
            "--pp",
            "2",
            "--temperature",
            "0",
            "--max-tokens",
            "96",
        )
        _run((*command, *ask, "--bootstrap", alice), home / "carol")
        say("[bold]5.[/] the cluster is gone; the hosts stop")


def find_model(wanted: Path | None) -> Path:
    """The model's directory. Raises ModelError when there is none."""
    directory = wanted or Path(__file__).resolve().parents[2] / "models" / "tiny"
    if not (directory / "config.json").exists():
        raise ModelError(
            f"there is no model in {directory}",
            remedy="run the demo from a clone of the repository, or give --model DIRECTORY",
        )
    return directory.resolve()


@contextmanager
def _host(
    command: tuple[str, ...], home: Path, name: str, model: Path, *, bootstrap: str | None
) -> Iterator[str]:
    """A host process of its own; gives the address to join through. It drains and ends with the context."""
    argv = [*command, "host", "--model", str(model), "--name", name, "--listen", "/ip4/127.0.0.1/tcp/0"]
    argv += ["--memory", "2GiB", "--threads", str(max(1, (os.cpu_count() or 2) // 2)), "--grace", "0"]
    # They listen on loopback: anyone is whoever is on this machine.
    argv += ["--swarm", "open", "--allow-anyone"]
    if bootstrap:
        argv += ["--bootstrap", bootstrap]
    process = subprocess.Popen(
        argv,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=_plain(_environment(home / name)),
    )
    try:
        assert process.stderr is not None
        yield _address(process, process.stderr, name)
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[str], lines: IO[str], name: str) -> str:
    """Repeats what a host prints until it says how to join through it; goes on repeating in the background."""
    timer = threading.Timer(READY_TIMEOUT_S, process.kill)
    timer.start()
    try:
        for line in lines:
            say(f"   [cyan]{name}[/] {escape(line.rstrip())}")
            found = _ADDRESS.search(line)
            if found:
                threading.Thread(target=_repeat, args=(lines, name), daemon=True).start()
                return found[1]
    finally:
        timer.cancel()
    raise CellError(
        f"{name} did not come up: it ended with status {process.wait()}", remedy="run `edgellm doctor`"
    )


def _repeat(lines: IO[str], name: str) -> None:
    for line in lines:
        say(f"   [cyan]{name}[/] {escape(line.rstrip())}")


def _run(argv: tuple[str, ...], home: Path) -> None:
    status = subprocess.run(argv, env=_environment(home), check=False).returncode
    if status:
        raise typer.Exit(status)


def _environment(home: Path) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("EDGELLM_SWARM", "EDGELLM_BOOTSTRAP")
    }
    # Both hosts answer: there would be nobody to check it.
    return {**kept, "EDGELLM_HOME": str(home), "EDGELLM_SPOT_CHECK": "0"}


def _plain(environment: dict[str, str]) -> dict[str, str]:
    """Without what makes programs colour their output even in a pipe: it is read here."""
    return {
        name: value for name, value in environment.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")
    }
