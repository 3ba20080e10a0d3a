"""The errors a user can meet: few, and each says what happened, to whom, and what to do.

One place (`edgellm.cli._errors`) turns them into a line on stderr and an exit code.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class EdgeError(Exception):
    """Base of all errors that EdgeLLM raises on purpose.

    `str(error)` is one line that names the cause; `error.remedy` is one line that says what to do, or "".
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class UsageError(EdgeError):
    """The user asked for something that cannot be, whatever the swarm looks like (empty prompt, bad option)."""

    exit_code = 2


class ModelError(EdgeError):
    """A model directory, download or digest is not what it must be."""


class NetworkError(EdgeError):
    """A peer could not be reached, or a stream to it broke or timed out."""


class ProtocolUnknown(NetworkError):
    """A peer is there and does not speak the protocol."""


class ProtocolViolation(NetworkError):
    """A peer sent something that the protocol does not allow; it is not trusted further."""


class DiscoveryError(EdgeError):
    """The swarm could not be searched, or nobody in it has what was asked for."""


class PlanError(EdgeError):
    """No set of known hosts can run the request; the message says what is missing."""


class MembershipError(EdgeError):
    """A private swarm does not let somebody in, or no longer: a certificate, an invite or a revocation says so.

    `fault` says why in a word or two, for programs and tests: "expired", "revoked", "forged", "stolen" and so on.
    """

    def __init__(self, message: str, *, remedy: str = "", fault: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.fault = fault


class LeaseError(EdgeError):
    """A host refused, broke or ended a lease."""


class HostLost(LeaseError):
    """A host that holds a lease died or fell silent."""


class BlockMissing(EdgeError):
    """Nobody that was asked has the block, or what they had was not it."""


class BlocksNotSent(BlockMissing):
    """A holder could not be reached, broke off, fell silent, or sent something else."""


class BlockStoreFull(EdgeError):
    """Pinned blocks, the quota or the disk leave no room for another block."""


class CellError(EdgeError):
    """A sandbox could not be made, or died."""


class EngineError(EdgeError):
    """The engine refused a request or failed."""


class SessionError(EdgeError):
    """A session does not exist, is closed, or could not be opened."""


class DiskFull(EdgeError):
    """Something could not be written because the disk, or the user's share of it, is full."""


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raises an EdgeError that comes out of a nursery by itself instead of inside exception groups, and DiskFull for the
    operating system's own error.

    Nurseries wrap what their tasks raise; a group that holds any other kind of error goes on as it is, because a defect must
    never hide behind an expected error.
    """
    try:
        yield
    except OSError as error:
        if isinstance(expected := _expected(error), DiskFull):
            raise expected from error
        raise
    except BaseExceptionGroup as group:
        leaves = [_expected(leaf) for leaf in _leaves(group)]
        first = leaves[0]
        if isinstance(first, EdgeError | KeyboardInterrupt) and all(
            isinstance(leaf, EdgeError | KeyboardInterrupt) for leaf in leaves
        ):
            raise first from group
        raise


def _expected(error: BaseException) -> BaseException:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"the disk is full: {error.filename or 'a file'} could not be written",
            remedy="free some space, or set EDGELLM_HOME to a directory on another disk",
        )
    return error


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
