"""Who may ask the console what."""

from __future__ import annotations

import pytest

from edgellm.console.guard import (
    LOOPBACK,
    MAX_BODY_BYTES,
    MAX_CHAT_BYTES,
    Head,
    Rules,
    hosts_of,
    refused,
    same,
)

RULES = Rules(hosts_of(LOOPBACK, 8643))
LOCKED = Rules(hosts_of(LOOPBACK, 8643), "0123456789abcdef", "edgellm-console-8643", "cookie")
CHAT = "/api/v1/sessions/amber/chat/completions"


def head(
    method: str = "GET", path: str = "/api/v1/swarm", repeated: tuple[str, ...] = (), **headers: str
) -> Head:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Head(method, path, {"host": "127.0.0.1:8643", **named}, frozenset(repeated))


def status(asked: Head, rules: Rules = RULES) -> int:
    refusal = refused(asked, rules)
    return refusal.status if refusal else 200


@pytest.mark.parametrize("host", ["127.0.0.1:8643", "localhost:8643", "LOCALHOST:8643", "[::1]:8643"])
def test_its_own_names(host: str) -> None:
    assert status(head(host=host)) == 200


@pytest.mark.parametrize(
    "host", ["", "127.0.0.1", "localhost:80", "evil.example:8643", "127.0.0.1:8643.evil"]
)
def test_other_names(host: str) -> None:
    assert status(head(host=host)) == 403


def test_names_on_port_80_may_leave_it_out() -> None:
    assert {"localhost", "[::1]", "localhost:80"} <= hosts_of(LOOPBACK, 80)


@pytest.mark.parametrize(
    "origin",
    ["null", "http://evil.example", "http://127.0.0.1", "https://127.0.0.1:8643", "http://localhost:8643"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_origins_of_others(origin: str, method: str) -> None:
    assert status(head(method, origin=origin)) == 403


def test_its_own_origin() -> None:
    assert status(head("DELETE", origin="http://127.0.0.1:8643", sec_fetch_site="same-origin")) == 200


@pytest.mark.parametrize(
    ("method", "site", "mode", "expected"),
    [
        ("GET", "same-origin", "cors", 200),
        ("GET", "none", "navigate", 200),
        ("GET", "cross-site", "navigate", 200),
        ("GET", "same-site", "cors", 403),
        ("GET", "cross-site", "no-cors", 403),
        ("DELETE", "same-origin", "cors", 200),
        ("DELETE", "none", "navigate", 403),
        ("DELETE", "same-site", "navigate", 403),
        ("DELETE", "cross-site", "navigate", 403),
    ],
)
def test_what_browsers_say_of_the_asking_page(method: str, site: str, mode: str, expected: int) -> None:
    assert status(head(method, sec_fetch_site=site, sec_fetch_mode=mode)) == expected


@pytest.mark.parametrize(
    ("path", "kind", "expected"),
    [
        ("/api/v1/hosts", "application/json", 200),
        ("/api/v1/hosts", "Application/JSON; charset=utf-8", 200),
        ("/api/v1/hosts", "text/plain", 415),
        ("/api/v1/hosts", "", 415),
        ("/api/v1/hosts", "application/x-www-form-urlencoded", 415),
        ("/console/hosts", "application/x-www-form-urlencoded", 415),
        ("/console/hosts", "multipart/form-data", 415),
    ],
)
def test_kinds_of_bodies(path: str, kind: str, expected: int) -> None:
    assert status(head("POST", path, content_type=kind, content_length="2")) == expected
    chunked = head("POST", path, content_type=kind, transfer_encoding="chunked")
    assert status(chunked) == expected


def test_forms_of_its_own_pages() -> None:
    form = {"content_type": "application/x-www-form-urlencoded", "content_length": "2"}
    for browser in ({"origin": "http://127.0.0.1:8643"}, {"sec_fetch_site": "same-origin"}):
        assert status(head("POST", "/console/hosts", **form, **browser)) == 200
        assert status(head("POST", "/api/v1/hosts", **form, **browser)) == 415


@pytest.mark.parametrize(
    ("path", "length", "expected"),
    [
        ("/api/v1/hosts", str(MAX_BODY_BYTES), 200),
        ("/api/v1/hosts", str(MAX_BODY_BYTES + 1), 413),
        (CHAT, str(MAX_CHAT_BYTES), 200),
        (CHAT, str(MAX_CHAT_BYTES + 1), 413),
        (CHAT, "9" * 20, 413),
        (CHAT, "9" * 21, 400),
        (CHAT, "-1", 400),
        (CHAT, "²", 400),
    ],
)
def test_lengths_of_bodies(path: str, length: str, expected: int) -> None:
    assert status(head("POST", path, content_type="application/json", content_length=length)) == expected


def test_headers_that_contradict_each_other() -> None:
    assert status(head(repeated=("host",))) == 400
    assert status(head(repeated=("authorization",))) == 400
    assert status(head("POST", content_length="2", transfer_encoding="chunked")) == 400
    assert status(head(repeated=("accept",))) == 200


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/api/v1/swarm", {}, 401),
        ("/api/v1/swarm", {"authorization": "Bearer 0123456789abcdef"}, 200),
        ("/api/v1/swarm", {"authorization": "bearer 0123456789abcdef"}, 200),
        ("/api/v1/swarm", {"authorization": "Basic 0123456789abcdef"}, 401),
        ("/api/v1/swarm", {"authorization": "Bearer "}, 401),
        ("/api/v1/swarm", {"cookie": "a=b; edgellm-console-8643=cookie"}, 200),
        ("/api/v1/swarm", {"cookie": "edgellm-console-8643=0123456789abcdef"}, 401),
        ("/api/v1/swarm", {"cookie": "edgellm-console-8643="}, 401),
        ("/api/v1/swarm", {"cookie": "edgellm-console-8000=cookie"}, 401),
        ("/", {}, 401),
        ("/health", {}, 200),
        ("/login", {}, 200),
        ("/console/static/console.css", {}, 200),
        ("/console/sessions/amber", {}, 401),
        ("/api/v1/openapi.json", {}, 401),
    ],
)
def test_the_token(path: str, headers: dict[str, str], expected: int) -> None:
    assert status(head(path=path, **headers), LOCKED) == expected


def test_secrets_are_equal_or_not() -> None:
    assert same("a", "a")
    assert not same("", "")
    assert not same("ä", "a")
