"""Where logs go: nowhere a user looks, unless asked for.

`EDGELLM_LOG=debug` (or info, warning) shows them on stderr; a daemon writes them to its own file.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TextIO

import structlog

ENVIRONMENT = "EDGELLM_LOG"


def log_to(file: Path | None = None) -> None:
    """Sends structlog's and the standard library's logs to `file`, or to stderr at the level that EDGELLM_LOG names."""
    wanted = os.environ.get(ENVIRONMENT, "info" if file else "critical").upper()
    level = logging.getLevelNamesMapping().get(wanted, logging.INFO)
    target: TextIO = file.open("a", buffering=1) if file else sys.stderr
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=False)
            if not file
            else structlog.processors.LogfmtRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(target),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=level, stream=target, force=True)
