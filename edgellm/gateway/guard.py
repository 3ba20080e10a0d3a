"""Who may ask what, before anything reaches the engine. Pure."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass

from edgellm.errors import UsageError

MAX_BODY_BYTES = 32 << 20
"""Pictures and documents travel inside of questions."""

ROUTES: Mapping[str, frozenset[str]] = {
    "/health": frozenset({"GET", "HEAD"}),
    "/metrics": frozenset({"GET"}),
    "/v1/models": frozenset({"GET"}),
    "/v1/chat/completions": frozenset({"POST"}),
    "/v1/completions": frozenset({"POST"}),
    "/v1/responses": frozenset({"POST"}),
    "/v1/messages": frozenset({"POST"}),
    "/v1/messages/count_tokens": frozenset({"POST"}),
    "/tokenize": frozenset({"POST"}),
    "/detokenize": frozenset({"POST"}),
}
"""All there is. The engine serves more, some of which stops or changes it."""

_CONSOLE = ("/api/v1/", "/console/")
_CONSOLE_PAGES = frozenset(("/", "/login"))

_ONCE = frozenset(("host", "origin", "authorization", "x-api-key", "content-length", "transfer-encoding"))

OPEN_PATHS = frozenset({"/health"})
"""Need no key: they tell whether there is a session and nothing of it."""


@dataclass(frozen=True, slots=True)
class Head:
    """Of a request. Names of headers are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    repeated: frozenset[str] = frozenset()
    """Headers that came more than once."""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass(frozen=True, slots=True)
class Rules:
    port: int
    """That is listened on."""
    api_key: str | None = None
    """None: everyone on this machine may ask."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that the engine has no part in."""

    status: int
    kind: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()

    def body(self, path: str) -> bytes:
        """In the shape that the clients of this path read errors from."""
        if path.startswith("/v1/messages"):
            return json.dumps(
                {"type": "error", "error": {"type": self.kind, "message": self.message}}
            ).encode()
        error = {"message": self.message, "type": self.kind, "param": None, "code": self.status}
        return json.dumps({"error": error}).encode()


def is_for_console(head: Head) -> bool:
    """Whether the console answers, which has rules of its own for who may ask."""
    return head.path in _CONSOLE_PAGES or head.path.startswith(_CONSOLE)


def refused_of_console(head: Head, rules: Rules) -> Refusal | None:
    """What is not even passed on to it."""
    return _ambiguous(head) or _wrong_host(head, rules) or _wrong_origin(head, rules)


def of_another_user() -> Refusal:
    """Where no key says who may: questions are everybody's on this machine, closing the session is not."""
    return Refusal(
        403,
        "permission_error",
        "the console of this session is for the user who opened it; with EDGELLM_API_KEY, for whoever has that key",
    )


def refused(head: Head, rules: Rules) -> Refusal | None:
    """Why a request goes no further; None where nothing is wrong with it."""
    return (
        _ambiguous(head)
        or _wrong_host(head, rules)
        or _wrong_origin(head, rules)
        or _wrong_route(head)
        or _wrong_key(head, rules)
        or _wrong_size(head)
    )


def _ambiguous(head: Head) -> Refusal | None:
    """What the engine could read in another way than this gateway."""
    both = head.headers.keys() >= {"content-length", "transfer-encoding"}
    if both or head.repeated & _ONCE:
        # Where it ends is anybody's guess, so nothing after it on this connection is taken for another one (RFC 9112, 6.3).
        return Refusal(
            400,
            "invalid_request_error",
            "a request with headers that contradict each other",
            (("connection", "close"),),
        )
    return None


def _own_hosts(port: int) -> frozenset[str]:
    names = ("127.0.0.1", "localhost", "[::1]")
    return frozenset((*(f"{name}:{port}" for name in names), *(names if port == 80 else ())))


def _wrong_host(head: Head, rules: Rules) -> Refusal | None:
    """A page elsewhere that has its own name resolve to this machine (DNS rebinding) says that name."""
    host = head.headers.get("host", "")
    if host.lower() in _own_hosts(rules.port):
        return None
    return Refusal(403, "permission_error", f"this endpoint is 127.0.0.1:{rules.port}, not {host[:100]!r}")


def _wrong_origin(head: Head, rules: Rules) -> Refusal | None:
    """Browsers say for which page they ask; programs do not."""
    origin = head.headers.get("origin")
    if origin is None or origin.lower() in {f"http://{host}" for host in _own_hosts(rules.port)}:
        return None
    return Refusal(403, "permission_error", f"pages of {origin[:100]!r} may not use this endpoint")


def _wrong_route(head: Head) -> Refusal | None:
    path = "/v1/models" if head.path.startswith("/v1/models/") else head.path
    methods = ROUTES.get(path)
    if methods is None:
        return Refusal(404, "not_found_error", f"there is nothing at {head.path[:200]!r}")
    if head.method not in methods:
        allowed = ", ".join(sorted(methods))
        return Refusal(405, "invalid_request_error", f"{head.path} takes {allowed}", (("allow", allowed),))
    return None


def _wrong_key(head: Head, rules: Rules) -> Refusal | None:
    if rules.api_key is None or head.path in OPEN_PATHS:
        return None
    scheme, _, said = head.headers.get("authorization", "").partition(" ")
    given = said.strip() if scheme.lower() == "bearer" else head.headers.get("x-api-key", "")
    if given and hmac.compare_digest(given.encode(), rules.api_key.encode()):
        return None
    message = "the API key is wrong" if given else "this endpoint wants its API key as a bearer token"
    return Refusal(401, "authentication_error", message, (("www-authenticate", "Bearer"),))


def _wrong_size(head: Head) -> Refusal | None:
    length = head.headers.get("content-length", "0")
    # A length that is none does not come this far: h11 refuses it.
    if int(length) <= MAX_BODY_BYTES:
        return None
    return too_large()


def too_large(most_bytes: int = MAX_BODY_BYTES) -> Refusal:
    return Refusal(413, "invalid_request_error", f"a request has at most {most_bytes >> 20} MiB")


def require_key(key: str | None) -> None:
    """Raises UsageError for a key that no client could say, or that everybody says."""
    if key is not None and not (key.isascii() and key.isprintable() and key and " " not in key):
        raise UsageError(
            "an API key has one or more printable ASCII characters and no blanks",
            remedy="make one: export EDGELLM_API_KEY=$(openssl rand -hex 16)",
        )
