"""Text that others wrote, made fit for a terminal or a log."""

from __future__ import annotations


def one_line(text: str, most: int) -> str:
    """The first `most` characters of `text`, with a "?" for each that would move a cursor, colour a screen or end the line."""
    return "".join(character if character.isprintable() else "?" for character in text[:most])
