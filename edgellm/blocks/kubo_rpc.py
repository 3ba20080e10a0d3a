"""The RPC of a user's IPFS daemon, over `ipfshttpclient`: blocking calls with a deadline, answers with a limit, errors of ours.

Kubo's commands: https://docs.ipfs.tech/reference/kubo/rpc/. js-ipfs has the same ones, with fewer options.
"""

from __future__ import annotations

import io
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from ipaddress import ip_address
from typing import Any

from edgellm.errors import NetworkError, UsageError

_ANSWER_LIMIT_BYTES = 1 << 20
_PART_BYTES = 1 << 16
_CONNECT_S = 3.0


class Refused(NetworkError):
    """The daemon answered that it could not; `reason` is its own text."""

    def __init__(self, address: str, command: str, reason: str) -> None:
        super().__init__(
            f"the IPFS daemon at {address} refused {command}: {reason}",
            remedy="see the daemon's own log, or leave out --ipfs",
        )
        self.reason = reason


class OversizedAnswer(NetworkError):
    """The daemon sent more than the caller takes."""


def is_local(address: str) -> bool:
    """Whether this multiaddr is of a Unix socket or a loopback address."""
    match address.split("/")[1:3]:
        case ["unix", *_]:
            return True
        case ["dns" | "dns4" | "dns6", "localhost"]:
            return True
        case ["ip4" | "ip6", host]:
            return ip_address(host).is_loopback
        case _:
            return False


class DaemonRpc:
    """Calls for threads: any number at once, each on a connection of its own that is kept for the next one.

    `address` is the multiaddr of the RPC ("/ip4/127.0.0.1/tcp/5001", "/unix/..."). Nothing is sent before the first call.
    Proxies and passwords from the environment are not used, and redirects not followed: what is sent here is for this daemon.
    Raises UsageError for an address that `ipfshttpclient` cannot use.
    """

    def __init__(self, address: str) -> None:
        # Here, because they take 9 MB that a node without --ipfs need not have.
        from ipfshttpclient import exceptions, http_requests

        # ipfshttpclient 0.8.0a2 passes it to urllib3 2, which still takes it.
        warnings.filterwarnings(
            "ignore", "The 'strict' parameter is no longer needed", FutureWarning, r"urllib3\.poolmanager"
        )
        self.address = address
        self._errors = exceptions
        self._transport_error = http_requests.requests.exceptions.RequestException
        try:
            self._http = http_requests.ClientSync(address, "api/v0")
        except exceptions.AddressError:
            raise UsageError(
                f"{address!r} is not the address of an IPFS daemon's RPC",
                remedy="it looks like /ip4/127.0.0.1/tcp/5001",
            ) from None
        self._http.open_session()
        self._http._session.trust_env = False
        self._http._session.max_redirects = 0

    def close(self) -> None:
        self._http.close_session()

    def objects(
        self,
        command: str,
        arguments: Sequence[str],
        options: Mapping[str, str],
        *,
        deadline: float,
        body: bytes | None = None,
    ) -> list[dict[str, Any]]:
        """As `call`; the JSON objects of the answer, of which there is at least one."""
        answer = self.call(command, arguments, options, deadline=deadline, body=body)
        try:
            parsed = [json.loads(line) for line in answer.splitlines() if line.strip()]
            if parsed and all(isinstance(item, dict) for item in parsed):
                return parsed
        except ValueError:
            pass  # what is neither JSON nor objects has one and the same error, below
        raise self._no_daemon(f"{command} gave no JSON objects")

    def call(
        self,
        command: str,
        arguments: Sequence[str],
        options: Mapping[str, str],
        *,
        deadline: float,
        body: bytes | None = None,
        limit_bytes: int = _ANSWER_LIMIT_BYTES,
    ) -> bytes:
        """What the daemon answers to a command such as "block/get"; `deadline` is in the time of `time.monotonic`.

        A daemon that sends a byte now and then can hold this up beyond the deadline, so callers wait for it no longer than
        that. A connection that broke is tried once more: the daemon may have closed it as idle, and every command used here
        can be repeated. Raises Refused, OversizedAnswer, or another NetworkError.
        """
        for attempt in (1, 2):
            try:
                return self._call(command, arguments, options, deadline, body, limit_bytes)
            except self._errors.ErrorResponse as error:
                raise Refused(self.address, command, str(error)) from error
            except self._errors.StatusError as error:
                raise self._no_daemon(str(error)) from error
            except self._errors.TimeoutError as error:
                raise self.late() from error
            except self._errors.ConnectionError as error:
                raise self._absent() from error
            except (self._errors.ProtocolError, self._transport_error) as error:
                if time.monotonic() >= deadline:
                    raise self.late() from error
                if attempt == 2:
                    raise self._broke_off(error) from error
            except self._errors.Error as error:
                raise self._no_daemon(str(error)) from error
        raise AssertionError("both attempts returned or raised")

    def late(self) -> NetworkError:
        """The error for no answer in time."""
        return NetworkError(
            f"the IPFS daemon at {self.address} did not answer in time",
            remedy="see whether `ipfs id` answers, start the daemon anew, or leave out --ipfs",
        )

    def _call(
        self,
        command: str,
        arguments: Sequence[str],
        options: Mapping[str, str],
        deadline: float,
        body: bytes | None,
        limit_bytes: int,
    ) -> bytes:
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise self.late()
        data, headers = self._multipart(body)
        # Not its public `request`, which reads a body of any length into memory.
        closables, parts = self._http._request(
            "POST",
            command,
            [*options.items(), *(("arg", argument) for argument in arguments)],
            auth=None,
            data=data,
            headers=headers,
            timeout=(min(_CONNECT_S, remaining_s), remaining_s),
            chunk_size=_PART_BYTES,
        )
        try:
            answer = bytearray()
            with closing(parts):
                for part in parts:
                    answer += part
                    if len(answer) > limit_bytes:
                        raise OversizedAnswer(
                            f"the IPFS daemon at {self.address} sent more than {limit_bytes} bytes for {command}"
                        )
                    if time.monotonic() > deadline:
                        raise self.late()
            return bytes(answer)
        finally:
            for closable in closables:
                closable.close()

    @staticmethod
    def _multipart(body: bytes | None) -> tuple[Any, Any]:
        if body is None:
            return None, None
        from ipfshttpclient import multipart

        data, headers = multipart.stream_files(io.BytesIO(body), chunk_size=_PART_BYTES)
        return data, headers

    def _absent(self) -> NetworkError:
        return NetworkError(
            f"no IPFS daemon answers at {self.address}",
            remedy="start it with `ipfs daemon`, or leave out --ipfs",
        )

    def _broke_off(self, error: Exception) -> NetworkError:
        return NetworkError(
            f"the IPFS daemon at {self.address} broke off in the middle of an answer ({type(error).__name__})",
            remedy="start it with `ipfs daemon`, or leave out --ipfs",
        )

    def _no_daemon(self, what: str) -> NetworkError:
        return NetworkError(
            f"what answers at {self.address} is not the RPC of an IPFS daemon: {what[:200]}",
            remedy="give the address that `ipfs config Addresses.API` prints, usually /ip4/127.0.0.1/tcp/5001",
        )
