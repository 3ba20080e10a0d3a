"""Who may ask a session's endpoint what."""

from __future__ import annotations

import json

import pytest

from edgellm.gateway.guard import MAX_BODY_BYTES, Head, Rules, refused

OPEN = Rules(8000)
LOCKED = Rules(8000, "secret")


def head(method: str = "POST", target: str = "/v1/chat/completions", **headers: str) -> Head:
    named = {"host": "127.0.0.1:8000"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return Head(method, target, named)


def status(request: Head, rules: Rules = OPEN) -> int | None:
    refusal = refused(request, rules)
    return refusal.status if refusal else None


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST:8000", "[::1]:8000"])
def test_this_machine_is_asked_by_its_own_names(host: str) -> None:
    assert status(head(host=host)) is None


@pytest.mark.parametrize(
    "host", ["evil.example:8000", "evil.example", "127.0.0.1", "127.0.0.1:8001", "", "localhost"]
)
def test_another_name_is_a_page_that_had_its_own_point_here(host: str) -> None:
    assert status(head(host=host)) == 403


def test_without_a_host_nothing_is_answered() -> None:
    assert status(Head("POST", "/v1/chat/completions", {})) == 403


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://127.0.0.1:8000", None),
        ("http://localhost:8000", None),
        ("http://evil.example", 403),
        ("https://127.0.0.1:8000", 403),
        ("http://127.0.0.1:8001", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_pages_of_others_may_not_ask(origin: str, expected: int | None) -> None:
    assert status(head(origin=origin)) == expected


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", "/v1/models", None),
        ("HEAD", "/v1/models", 405),
        ("GET", "/v1/models/tiny", None),
        ("GET", "/v1/models?limit=2", None),
        ("POST", "/v1/responses", None),
        ("POST", "/v1/messages", None),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models/tiny", 405),
        ("POST", "/pause", 404),
        ("POST", "/scale_elastic_ep", 404),
        ("POST", "/v1/chat/completions/../../pause", 404),
        ("POST", "//v1/completions", 404),
        ("GET", "/server_info", 404),
        ("GET", "/", 404),
    ],
)
def test_only_what_is_listed_reaches_the_engine(method: str, target: str, expected: int | None) -> None:
    assert status(head(method, target)) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"authorization": "Bearer secret"}, None),
        ({"authorization": "bearer  secret"}, None),
        ({"x_api_key": "secret"}, None),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "secret"}, 401),
        ({"authorization": "Basic secret"}, 401),
        ({"x_api_key": "sécret"}, 401),
        ({}, 401),
    ],
)
def test_the_key_is_asked_for_where_there_is_one(said: dict[str, str], expected: int | None) -> None:
    assert status(head(**said), LOCKED) == expected
    assert status(head(**said), OPEN) is None


def test_an_empty_key_opens_nothing() -> None:
    assert status(head(), Rules(8000, "")) == 401
    assert status(head(authorization="Bearer "), Rules(8000, "")) == 401


@pytest.mark.parametrize("name", ["host", "origin", "authorization", "x-api-key"])
def test_what_is_said_twice_is_not_believed_once(name: str) -> None:
    once = head()
    assert status(Head(once.method, once.target, once.headers, frozenset({name}))) == 400
    assert status(Head(once.method, once.target, once.headers, frozenset({"accept"}))) is None


def test_two_ways_to_say_a_length_are_one_too_many() -> None:
    assert status(head(content_length="5", transfer_encoding="chunked")) == 400


def test_health_needs_no_key() -> None:
    assert status(head("GET", "/health"), LOCKED) is None


def test_a_body_that_is_too_large_is_not_read() -> None:
    assert status(head(content_length=str(MAX_BODY_BYTES))) is None
    assert status(head(content_length=str(MAX_BODY_BYTES + 1))) == 413


def test_errors_have_the_shape_that_clients_read() -> None:
    refusal = refused(head(), LOCKED)
    assert refusal is not None
    openai = json.loads(refusal.body("/v1/chat/completions"))
    assert openai["error"]["type"] == "authentication_error"
    assert openai["error"]["code"] == 401
    anthropic = json.loads(refusal.body("/v1/messages"))
    assert (anthropic["type"], anthropic["error"]["type"]) == ("error", "authentication_error")
