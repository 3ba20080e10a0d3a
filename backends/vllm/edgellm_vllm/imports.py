"""Importing vLLM takes most of a bring-up: this makes it a quarter shorter."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """For imports: they make millions of objects that live on, and collecting among them is a quarter of their time.

    At the end all objects so far are frozen: later collections skip them, and a forked child does not copy their pages.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
