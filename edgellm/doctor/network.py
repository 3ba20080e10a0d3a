"""Can peers reach this machine's ports, and can it reach the peers that it joins the swarm through?"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from edgellm.doctor.check import Check, Examination, fail, ok, warn
from edgellm.doctor.system import System
from edgellm.errors import EdgeError

DEFAULT_LISTEN = "/ip4/0.0.0.0/tcp/4001"
"""Where `edgellm host` listens when it is not told."""
CONNECT_TIMEOUT_S = 3.0
_HOSTS = ("ip4", "ip6", "dns4", "dns6", "dns")
_MOST_AT_ONCE = 16


def check_network(system: System, examination: Examination) -> Iterator[Check]:
    """The ports to listen on are free; each bootstrap peer answers a TCP connection."""
    for address in examination.listen or (DEFAULT_LISTEN,):
        found = _listen(system, address)
        if found.status == "fail" and not examination.listen:
            # Not asked for: a host that runs already has it, and nobody need host.
            found = warn(found.name, f"{found.detail} (fine if a host runs here)", found.remedy)
        yield found
    if not examination.bootstrap:
        yield warn(
            "reachability",
            "skipped: no bootstrap peer is configured, so only peers on this machine and network can be found",
            "edgellm doctor --bootstrap MULTIADDR  (a host prints its own when it starts)",
        )
        return
    with ThreadPoolExecutor(min(_MOST_AT_ONCE, len(examination.bootstrap))) as threads:
        tried = list(threads.map(lambda address: _reach(system, address), examination.bootstrap))
    yield from tried
    answering = [
        address for address, check in zip(examination.bootstrap, tried, strict=True) if check.status == "ok"
    ]
    if answering:
        yield _reached(system, examination, tuple(answering))


def _reached(system: System, examination: Examination, bootstrap: tuple[str, ...]) -> Check:
    """Which way others reach this machine, and why. Who only asks need not be reached."""
    listen, note = examination.listen or (DEFAULT_LISTEN,), ""
    endpoints = [tcp_endpoint(address) for address in listen]
    if any(endpoint is None or system.listen_error(*endpoint) for endpoint in endpoints):
        # A host that runs already has the port.
        listen, note = ("/ip4/0.0.0.0/tcp/0",), " (asked for another port, as this one is taken)"
    try:
        verdict = system.how_reached(listen, bootstrap)
    except EdgeError as error:
        return warn(
            "reached", f"it cannot be told which way others reach this machine: {error}", error.remedy
        )
    detail = f"{verdict.way}: {verdict.why}{note}"
    if verdict.way in ("direct", "mapped"):
        return ok("reached", detail)
    if verdict.way == "unreachable" and examination.listen:
        return fail("reached", detail, verdict.remedy)
    return warn("reached", detail, verdict.remedy)


def tcp_endpoint(address: str) -> tuple[str, int] | None:
    """The (host, port) of a TCP multiaddr; None when it is malformed or of another transport."""
    try:
        multiaddr = Multiaddr(address)
        names = [protocol.name for protocol in multiaddr.protocols()]
        # A relayed address begins with that of the relay, which is the one to connect to.
        if len(names) < 2 or names[0] not in _HOSTS or names[1] != "tcp":
            return None
        return str(multiaddr.value_for_protocol(names[0])), int(str(multiaddr.value_for_protocol("tcp")))
    except (MultiaddrError, ValueError):
        return None


def _listen(system: System, address: str) -> Check:
    endpoint = tcp_endpoint(address)
    if endpoint is None:
        return fail("port", f"{address} is no TCP multiaddr", "--listen /ip4/0.0.0.0/tcp/4001")
    host, port = endpoint
    error = system.listen_error(host, port)
    if not error:
        return ok("port", f"{port} on {host} is free" if port else f"any free one on {host}")
    if "in use" in error:
        see = f"ss -ltnp 'sport = :{port}'"
        return fail(
            "port", f"{port} is taken", f"{see}  shows by whom; or --listen another one, or tcp/0 for any"
        )
    if "Permission" in error:
        return fail("port", f"{port} may not be listened on by this user", "--listen a port above 1023")
    return fail(
        "port",
        f"cannot listen on {host} port {port}: {error}",
        "ip -brief address  shows what can be listened on",
    )


def _reach(system: System, address: str) -> Check:
    endpoint = tcp_endpoint(address)
    if endpoint is None or "/p2p/" not in address:
        example = "/ip4/198.51.100.7/tcp/4001/p2p/12D3Koo..."
        return fail(
            "reachability",
            f"{address} is no peer's TCP multiaddr",
            f"give it as the host prints it: {example}",
        )
    host, port = endpoint
    if error := system.connect_error(host, port, CONNECT_TIMEOUT_S):
        return fail(
            "reachability",
            f"{address} does not answer: {error}",
            f"nc -vz {host} {port}  from here; on that machine: is edgellm running, is TCP port {port} open in its firewall?",
        )
    return ok("reachability", f"{address} answers")
