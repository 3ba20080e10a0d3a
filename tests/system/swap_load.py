"""A program of a user's that keeps a session busy: streams one answer after the other from many clients until a file appears.

Says "answered" on standard error after the first one. Prints as JSON how many came whole from which model, what failed, and the
longest that a client waited for one to begin.

`python swap_load.py ENDPOINT MODEL CLIENTS STOP_FILE`
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai


class Load:
    def __init__(self, endpoint: str, model: str, stop: Path) -> None:
        self._endpoint, self._model, self._stop = endpoint, model, stop
        self._lock = threading.Lock()
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self.longest_wait_s = 0.0

    def client(self, number: int) -> None:
        client = openai.OpenAI(base_url=self._endpoint, api_key="none", max_retries=0, timeout=120)
        while not self._stop.exists():
            try:
                self._one(client, f"What is a list? {number}")
            except openai.OpenAIError as error:
                with self._lock:
                    self.failures.append(f"{type(error).__name__}: {error}"[:300])
                return

    def _one(self, client: openai.OpenAI, question: str) -> None:
        began = time.monotonic()
        first_s, model, tokens = 0.0, "", 0
        for chunk in client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": question}],
            max_tokens=64,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        ):
            first_s = first_s or time.monotonic() - began
            model = chunk.model
            tokens += chunk.usage.completion_tokens if chunk.usage else 0
        with self._lock:
            self.longest_wait_s = max(self.longest_wait_s, first_s)
            if tokens == 64:
                if not self.answers:
                    print("answered", file=sys.stderr, flush=True)
                self.answers[model] += 1
            else:
                self.failures.append(f"an answer of {tokens} tokens")


def main() -> None:
    endpoint, model, clients, stop = sys.argv[1:]
    load = Load(endpoint, model, Path(stop))
    with ThreadPoolExecutor(int(clients)) as threads:
        list(threads.map(load.client, range(int(clients))))
    print(
        json.dumps(
            {
                "answers": dict(load.answers),
                "failures": load.failures,
                "longest_wait_s": load.longest_wait_s,
            }
        )
    )


if __name__ == "__main__":
    main()
