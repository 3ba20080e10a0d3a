"""Who may ask the console what, before anything else is done with a request. Pure.

The console starts programs and spends other people's machines. So pages of other sites may not use it, not even those that
another port of this machine serves; nor may, where it is not on loopback, whoever can reach it.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MAX_BODY_BYTES = 1 << 20
MAX_CHAT_BYTES = 32 << 20
"""Pictures and documents travel inside of questions."""
MIN_TOKEN_CHARACTERS = 16
"""So that nobody guesses it, however fast."""

LOGIN_PAGE = "/login"
LOGIN_PATH = "/api/v1/login"
OPEN_PATHS = frozenset({"/health", LOGIN_PAGE, LOGIN_PATH})
"""Need no token: they tell nothing of what is behind it."""
STATIC = "/console/static/"

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_BROWSERS = ("origin", "sec-fetch-site")
_ONCE = ("host", "origin", "authorization", "content-length", "content-type", "transfer-encoding")


@dataclass(frozen=True, slots=True)
class Rules:
    hosts: frozenset[str]
    """What requests may name as their Host, in lower case, with the port where it is not 80."""
    token: str | None = field(default=None, repr=False)
    """None: everyone who can connect may ask, unless `only_own_user`."""
    cookie: str = "edgellm-console"
    """The cookie's name. Cookies are shared between the ports of a machine, so it has the port in it."""
    cookie_value: str = field(default="", repr=False)
    """What the cookie of somebody who said the token holds; never the token itself."""
    only_own_user: bool = False
    """Without a token, whether programs of other users of this machine are refused."""


def hosts_of(names: Iterable[str], port: int) -> frozenset[str]:
    """`names` (addresses of IP version 6 without brackets) as browsers write them with that port."""
    written = {f"[{name}]" if ":" in name else name.lower() for name in names}
    return frozenset((*(f"{name}:{port}" for name in written), *(written if port == 80 else ())))


LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Head:
    """Of a request. Names of headers are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    repeated: frozenset[str] = frozenset()
    """Headers that came more than once."""


@dataclass(frozen=True, slots=True)
class Refusal:
    status: int
    kind: str
    message: str
    remedy: str = ""
    headers: tuple[tuple[str, str], ...] = ()


def refused(head: Head, rules: Rules) -> Refusal | None:
    """Why a request goes no further; None where nothing is wrong with it."""
    return (
        _ambiguous(head)
        or _wrong_host(head, rules)
        or _wrong_origin(head)
        or _wrong_site(head)
        or _wrong_token(head, rules)
        or _wrong_type(head)
        or _wrong_size(head)
    )


def of_another_user() -> Refusal:
    return Refusal(
        403,
        "permission",
        "this console is for the user who started it",
        "for others give it a token: --token, or EDGELLM_CONSOLE_TOKEN",
    )


def is_known(head: Head, rules: Rules) -> bool:
    """Whether the token was said, or the cookie of somebody who said it."""
    if rules.token is None:
        return True
    scheme, _, said = head.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return same(said.strip(), rules.token)
    return same(_cookie(head, rules.cookie), rules.cookie_value)


def same(given: str, expected: str) -> bool:
    """Whether two secrets are equal; how long that takes tells nothing. One that is empty equals none."""
    return bool(given and expected) and hmac.compare_digest(
        given.encode(errors="surrogatepass"), expected.encode()
    )


def may_see_login(head: Head) -> bool:
    """Whether somebody without a token is a browser that wants a page, and is better shown where to say it."""
    wants_page = "text/html" in head.headers.get("accept", "")
    return head.method == "GET" and wants_page and not head.path.startswith("/api/")


def largest_body(path: str) -> int:
    return MAX_CHAT_BYTES if path.endswith("/chat/completions") else MAX_BODY_BYTES


def _ambiguous(head: Head) -> Refusal | None:
    both = head.headers.keys() >= {"content-length", "transfer-encoding"}
    if both or not head.repeated.isdisjoint(_ONCE):
        # Nothing after it on this connection is taken for another request (RFC 9112, 6.3).
        return Refusal(
            400,
            "invalid_request",
            "a request with headers that contradict each other",
            headers=(("connection", "close"),),
        )
    return None


def _wrong_host(head: Head, rules: Rules) -> Refusal | None:
    """A page elsewhere that has its own name resolve to this machine (DNS rebinding) says that name."""
    host = head.headers.get("host", "")
    if host.lower() in rules.hosts:
        return None
    return Refusal(
        403,
        "permission",
        f"this console does not go by the name {host[:100]!r}",
        f"open http://{min(rules.hosts)}/" if rules.hosts else "",
    )


def _wrong_origin(head: Head) -> Refusal | None:
    """Browsers say for which page they ask; programs do not."""
    origin = head.headers.get("origin")
    if origin is None or origin.lower() == f"http://{head.headers['host'].lower()}":
        return None
    return Refusal(403, "permission", f"pages of {origin[:100]!r} may not use this console")


def _wrong_site(head: Head) -> Refusal | None:
    """Other ports of this machine are the same site, and not the same origin."""
    site = head.headers.get("sec-fetch-site")
    if site is None or site == "same-origin":
        return None
    if head.method in _SAFE and (site == "none" or head.headers.get("sec-fetch-mode") == "navigate"):
        # Somebody wrote the address, or followed a link to it.
        return None
    return Refusal(403, "permission", "pages of other sites may not use this console")


def _wrong_token(head: Head, rules: Rules) -> Refusal | None:
    if head.path in OPEN_PATHS or head.path.startswith(STATIC) or is_known(head, rules):
        return None
    said = "authorization" in head.headers
    return Refusal(
        401,
        "authentication",
        "the token is wrong" if said else "this console wants its token",
        f"log in at {LOGIN_PAGE}, or send it as a bearer token",
        (("www-authenticate", "Bearer"),),
    )


def _wrong_type(head: Head) -> Refusal | None:
    """Forms of other sites cannot say that they are JSON. Our own pages' forms do not go to the API, and come with a browser's
    word for whose they are (`_wrong_origin`, `_wrong_site`).
    """
    has_body = "transfer-encoding" in head.headers or head.headers.get("content-length", "0") != "0"
    if head.method != "POST" or not has_body:
        # Nothing takes a body in any other way.
        return None
    kind = head.headers.get("content-type", "").partition(";")[0].strip().lower()
    from_page = not head.path.startswith("/api/") and not head.headers.keys().isdisjoint(_BROWSERS)
    if kind == "application/json" or (kind == "application/x-www-form-urlencoded" and from_page):
        return None
    return Refusal(415, "invalid_request", "the body must be JSON", "send content-type: application/json")


def _wrong_size(head: Head) -> Refusal | None:
    length = head.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit() and len(length) <= 20):
        return Refusal(400, "invalid_request", "a content-length that is no number")
    return too_large(head.path) if int(length) > largest_body(head.path) else None


def too_large(path: str) -> Refusal:
    return Refusal(413, "invalid_request", f"a request here has at most {largest_body(path) >> 20} MiB")


def _cookie(head: Head, name: str) -> str:
    """Cookies of other ports come along, and not all of them are well formed."""
    pairs = (part.partition("=") for part in head.headers.get("cookie", "").split(";"))
    return next((value.strip() for key, _, value in pairs if key.strip() == name), "")
