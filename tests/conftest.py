"""Rules for all tests."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest


def _must_not_skip() -> bool:
    return os.environ.get("CI", "").lower() == "true" and os.geteuid() == 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI, as root, a skipped test is a failure: what cannot be shown there is not shown."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and _must_not_skip():
        report.outcome = "failed"
        report.longrepr = f"skipped, which is a failure in CI: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole module that skips itself while it is collected."""
    report = yield
    if report.outcome == "skipped" and _must_not_skip():
        report.outcome = "failed"
        report.longrepr = f"skipped, which is a failure in CI: {report.longrepr}"
    return report
