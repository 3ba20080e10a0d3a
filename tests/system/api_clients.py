"""A program of a user's: the official OpenAI and Anthropic clients, unchanged, against a session's endpoint.

Prints what came as JSON.

`python api_clients.py ENDPOINT API_KEY MODEL`
"""

from __future__ import annotations

import json
import sys
from typing import Any

import anthropic
import openai

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string", "enum": ["blue", "green"]}, "count": {"type": "integer"}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
        },
    },
}
HELLO = [{"role": "user", "content": "What is a list?"}]


def main() -> None:
    endpoint, key, model = sys.argv[1:]
    client = openai.OpenAI(base_url=endpoint, api_key=key, max_retries=0)
    said: dict[str, Any] = {"models": [one.id for one in client.models.list()]}

    def chat(**options: Any) -> Any:
        return client.chat.completions.create(model=model, messages=HELLO, **options)

    plain = client.chat.completions.with_raw_response.create(
        model=model, messages=HELLO, max_tokens=16, temperature=0
    )
    said["route"] = plain.headers.get("x-edgellm-route")
    parsed = plain.parse()
    said["chat"] = {"text": parsed.choices[0].message.content, "tokens": parsed.usage.completion_tokens}
    said["streamed"] = ""
    for chunk in chat(max_tokens=16, temperature=0, stream=True, stream_options={"include_usage": True}):
        if chunk.choices:
            said["streamed"] += chunk.choices[0].delta.content or ""
        elif chunk.usage:
            said["usage"] = chunk.usage.completion_tokens
    drawn: dict[str, Any] = {"max_tokens": 4, "n": 2, "seed": 7, "logprobs": True, "top_logprobs": 2}
    two, again = chat(**drawn), chat(**drawn)
    said["choices"] = len(two.choices)
    said["logprobs"] = len(two.choices[0].logprobs.content)
    said["repeated"] = _texts(two) == _texts(again)
    stopped = client.completions.create(
        model=model, prompt="def add(", max_tokens=24, temperature=0, stop=["\n"]
    )
    said["completion"] = stopped.choices[0].text
    form = {"type": "json_schema", "json_schema": {"name": "form", "schema": SCHEMA, "strict": True}}
    # A model as small as the tests' goes on with blanks for ever, which JSON allows, unless each costs it more.
    strict = {"max_tokens": 300, "temperature": 0, "frequency_penalty": 2}
    said["schema"] = json.loads(chat(**strict, response_format=form).choices[0].message.content)
    choice = {"type": "function", "function": {"name": "weather"}}
    called = chat(**strict, tools=[WEATHER], tool_choice=choice)
    call = called.choices[0].message.tool_calls[0]
    said["tool"] = [call.function.name, json.loads(call.function.arguments)]
    asked: dict[str, Any] = {
        "model": model,
        "input": "What is a list?",
        "max_output_tokens": 16,
        "temperature": 0,
    }
    said["response"] = client.responses.create(**asked).output_text
    events = client.responses.create(**asked, stream=True)
    said["response_streamed"] = "".join(
        event.delta for event in events if event.type == "response.output_text.delta"
    )
    said["messages"] = _anthropic(endpoint, key, model)
    said["errors"] = {
        "model": _status(lambda: client.chat.completions.create(model="nobody", messages=HELLO)),
        "context": _status(lambda: client.completions.create(model=model, prompt="x " * 5000, max_tokens=4)),
        "parameter": _status(lambda: chat(temperature=-1)),
        "key": _status(
            lambda: openai.OpenAI(base_url=endpoint, api_key="wrong", max_retries=0).models.list()
        ),
    }
    print(json.dumps(said))


def _anthropic(endpoint: str, key: str, model: str) -> dict[str, Any]:
    client = anthropic.Anthropic(base_url=endpoint.removesuffix("/v1"), api_key=key, max_retries=0)
    options: Any = {"model": model, "messages": HELLO, "max_tokens": 16, "extra_body": {"temperature": 0}}
    whole = client.messages.create(**options)
    with client.messages.stream(**options) as stream:
        streamed = "".join(stream.text_stream)
    wrong = anthropic.Anthropic(base_url=endpoint.removesuffix("/v1"), api_key="wrong", max_retries=0)
    try:
        wrong.messages.create(**options)
        refused = ""
    except anthropic.AuthenticationError as error:
        refused = error.message
    return {
        "text": whole.content[0].text,
        "tokens": whole.usage.output_tokens,
        "streamed": streamed,
        "refused": refused,
    }


def _texts(answer: Any) -> list[str]:
    return [choice.message.content for choice in answer.choices]


def _status(call: Any) -> list[Any]:
    try:
        call()
    except openai.APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        return [error.status_code, type(error).__name__, bool(body.get("message"))]
    return [200, "", False]


if __name__ == "__main__":
    main()
