"""How what clients were told is counted."""

from __future__ import annotations

import json

import pytest

from benchmarks.chat_load import Answer, WrongAnswer

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def event(said: object) -> bytes:
    data = b"data: " + (b"[DONE]" if said is None else json.dumps(said).encode()) + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def text(content: str, reason: str | None = None) -> bytes:
    return event({"choices": [{"delta": {"content": content}, "finish_reason": reason}]})


def usage(tokens: int) -> bytes:
    return event({"choices": [], "usage": {"completion_tokens": tokens}})


def answer(tokens: int, *parts: bytes) -> Answer:
    return Answer(tokens, [(float(number), part) for number, part in enumerate(parts)])


def test_each_event_with_text_counts_when_its_last_byte_has_come() -> None:
    second = text("b")
    came = answer(
        4,
        HEAD + text(""),
        text("a") + second[:9],
        second[9:],
        text("", "length") + usage(4),
        event(None) + END,
    )
    assert came.is_whole()
    assert came.token_times_s() == [1.0, 2.0, 3.0]


def test_an_end_is_known_however_it_comes() -> None:
    came = answer(4, HEAD + text("a"), event(None), *(bytes([byte]) for byte in END))
    assert came.is_whole()
    came.parts.pop()
    assert not came.is_whole()


@pytest.mark.parametrize(
    "parts",
    [
        (HEAD + text("a"), usage(2) + event(None)),
        (HEAD + text("a") + usage(2) + END,),
        (HEAD + text("a") + usage(3) + event(None) + END,),
        (HEAD + text("a") + event(None) + END,),
        (b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\n{}",),
    ],
)
def test_what_is_no_such_answer_is_an_error(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(WrongAnswer):
        answer(2, *parts).token_times_s()
