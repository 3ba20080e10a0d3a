"""The command line: one file a verb, registered here; plumbing in files with an underscore.

ask      one question: a cluster for it alone, or an open session
host     lend this machine's devices; pause, resume, status of a host that runs
session  keep a cluster open
swarm    private swarms: invite, join, revoke
console  all of it in a browser
kv       what is kept of KV caches
peers    who lends what now
models   what can be asked for now
doctor   what is wrong with this machine, and how to mend it
bootstrap  a meeting point that lends nothing
demo     all of it on this machine

Imports of the heavy kind (libp2p, gRPC) happen inside the verbs, so that `edgellm --help` is quick.
"""

from __future__ import annotations

import sys

import typer

from edgellm import __version__
from edgellm.cli._errors import told
from edgellm.cli.ask import ask
from edgellm.cli.bootstrap import bootstrap
from edgellm.cli.console import console
from edgellm.cli.demo import demo
from edgellm.cli.doctor import doctor
from edgellm.cli.host import app as host_app
from edgellm.cli.kv import app as kv_app
from edgellm.cli.models import models
from edgellm.cli.peers import peers
from edgellm.cli.relay import relay
from edgellm.cli.session import app as session_app
from edgellm.cli.swarm import app as swarm_app

app = typer.Typer(
    name="edgellm",
    help="Run language models that are too big or too slow for your machine on machines that others lend.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(ask)
app.add_typer(host_app, name="host")
app.add_typer(session_app, name="session")
app.add_typer(swarm_app, name="swarm")
app.command()(console)
app.add_typer(kv_app, name="kv")
app.command()(peers)
app.command()(models)
app.command()(doctor)
app.command()(bootstrap)
app.command()(relay)
app.command()(demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"edgellm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    invocation: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    # A question to an open session writes none, and begins without what logs need; `ask` sees to them where they are.
    if invocation.invoked_subcommand == "ask":
        return
    from edgellm.log import log_to

    log_to()


def main() -> None:
    """The entry point: errors become one line and an exit code."""
    sys.exit(told(lambda: app(standalone_mode=False)))
