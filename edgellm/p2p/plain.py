"""What strangers write, as it may stand in a line on somebody's terminal. Pure."""

from __future__ import annotations


def plain(text: str, most: int) -> str:
    """The first `most` characters of `text`, with a question mark for each that moves a cursor or cannot be shown."""
    return "".join(character if character.isprintable() else "?" for character in text[:most])
