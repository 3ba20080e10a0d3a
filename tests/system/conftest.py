"""Fixtures for tests of whole machines: a network of them, nothing left after each, the reference answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.lan import Lan, missing_for_lan, open_machines
from tests.system.leftovers import Snapshot, assert_nothing_left
from tests.system.solo import Solo


@pytest.fixture(scope="session", autouse=True)
def root() -> None:
    """Skips the tests where no network of machines can be made (in CI every skip is a failure)."""
    if missing := missing_for_lan():
        pytest.skip(missing)


@pytest.fixture(autouse=True)
def leaves_nothing(root: None) -> Iterator[None]:
    """Every test leaves the machines that were there before it as they were."""
    machines = open_machines()
    before = Snapshot.take(machines)
    yield
    assert_nothing_left(before, machines)


@pytest.fixture
def lan(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lan]:
    """An empty network. What the test started and still runs is ended by Ctrl-C; then nothing may be left."""
    with Lan(visible=[tmp_path_factory.getbasetemp()]) as lan:
        yield lan
        lan.end_all()


@pytest.fixture(scope="module")
def module_lan(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lan]:
    """A network for all tests of a module, each of which must leave it as it found it."""
    with Lan(visible=[tmp_path_factory.getbasetemp()]) as lan:
        yield lan
        lan.end_all()


@pytest.fixture(scope="session")
def solo() -> Solo:
    """The reference: asked the same twice, it answers from memory."""
    return Solo()
