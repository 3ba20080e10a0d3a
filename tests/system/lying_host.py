"""`edgellm host` that lends something else than it says: the first argument is the directory of the model that its cells really
compute with, whatever the digest in the advert. The others are those of `edgellm`.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellm.cli import main
from edgellm.hosting import service
from edgellm.hosting.runner import CellRunner

OTHER = Path(sys.argv.pop(1))


class LyingRunner(CellRunner):
    def __init__(
        self, network: Any, switchboard: Any, machine: Any, models: Mapping[str, Path], **more: Any
    ) -> None:
        super().__init__(network, switchboard, machine, dict.fromkeys(models, OTHER), **more)


service.CellRunner = LyingRunner  # type: ignore[misc]

if __name__ == "__main__":
    main()
