"""`edgellm console` before it serves: addresses, tokens, and what it is called."""

from __future__ import annotations

import socket

import pytest

from edgellm.cli.console import make_rules, require_token, urls_of
from edgellm.console.serving import bind_address, open_port, own_names
from edgellm.errors import UsageError


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("127.0.0.1", ("127.0.0.1", True)),
        ("localhost", ("127.0.0.1", True)),
        ("127.9.9.9", ("127.9.9.9", True)),
        ("[::1]", ("::1", True)),
        ("192.168.1.7", ("192.168.1.7", False)),
        ("0.0.0.0", ("0.0.0.0", False)),
        ("::", ("::", False)),
    ],
)
def test_addresses_to_serve_on(said: str, expected: tuple[str, bool]) -> None:
    assert bind_address(said) == expected


@pytest.mark.parametrize("said", ["", "example.com", "1.2.3", "127.0.0.1:80"])
def test_what_is_no_address(said: str) -> None:
    with pytest.raises(UsageError, match="no address to listen on"):
        bind_address(said)


@pytest.mark.parametrize(
    ("token", "is_loopback", "error"),
    [
        (None, True, None),
        (None, False, "needs a token"),
        ("0123456789abcdef", False, None),
        ("0123456789abcde", False, "16 characters"),
        ("0123456789abcde", True, "16 characters"),
        ("", True, "16 characters"),
        ("0123456789 abcdef", False, "no blanks"),
        ("0123456789äbcdef", False, "printable ASCII"),
    ],
)
def test_tokens(token: str | None, is_loopback: bool, error: str | None) -> None:
    if error is None:
        require_token(token, is_loopback=is_loopback)
        return
    with pytest.raises(UsageError, match=error) as caught:
        require_token(token, is_loopback=is_loopback)
    assert "EDGELLM_CONSOLE_TOKEN" in caught.value.remedy


def test_a_port_that_is_taken() -> None:
    with open_port("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        taken = f"port {port} of 127.0.0.1 cannot be used"
        with pytest.raises(UsageError, match=taken) as caught, open_port("127.0.0.1", port):
            pass
    assert "--port" in caught.value.remedy
    with pytest.raises(UsageError) as caught, open_port("192.0.2.1", 0):
        pass
    assert "--bind" in caught.value.remedy


def test_what_a_console_is_called() -> None:
    assert own_names("127.0.0.1") == ("127.0.0.1", "localhost", "::1")
    assert {"192.168.1.7", socket.gethostname()} <= set(own_names("192.168.1.7"))
    assert "127.0.0.1" not in own_names("192.168.1.7")
    assert {"localhost", "127.0.0.1", socket.gethostname()} <= set(own_names("0.0.0.0"))


def test_urls_work_on_this_machine() -> None:
    assert urls_of("127.0.0.1", 1) == ("http://127.0.0.1:1/",)
    assert urls_of("192.168.1.7", 1) == ("http://192.168.1.7:1/",)
    assert urls_of("::1", 1) == ("http://[::1]:1/",)
    assert urls_of("0.0.0.0", 1)[0] == "http://127.0.0.1:1/"


def test_cookies_are_of_one_port_and_one_run() -> None:
    one, other = (
        make_rules("127.0.0.1", 1, "0123456789abcdef"),
        make_rules("127.0.0.1", 2, "0123456789abcdef"),
    )
    assert one.cookie != other.cookie
    assert one.cookie_value != other.cookie_value
    assert "0123456789abcdef" not in repr(one)
    assert make_rules("127.0.0.1", 1, None).cookie_value == ""
