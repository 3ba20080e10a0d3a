"""How many tokens a text has, before any engine is up."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any


def count_tokens(directory: Path, text: str) -> int | None:
    """Tokens of `text`, special ones included, or None where the model has no `tokenizer.json` that can be read."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    tokenizer = _load(path)
    return None if tokenizer is None else len(tokenizer.encode(text).ids)


@lru_cache(maxsize=4)
def _load(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # noqa: BLE001 - the library raises plain Exception for a file of a newer format
        return None
