"""The reference answers: the same model in vLLM alone, in one process, greedy. No Ray, no plugin, no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

Prompt = str | tuple[int, ...]
"""A text, taken as it is, or token ids."""


@dataclass(frozen=True)
class SoloAnswer:
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finish_reason: str


@dataclass(frozen=True)
class SoloRequest:
    """One start of the engine. `chat` puts each (text) prompt through the model's chat template, as a user's turn."""

    model: str
    prompts: tuple[Prompt, ...]
    max_tokens: int
    max_model_len: int = 1024
    ignore_eos: bool = False
    chat: bool = False


class Solo:
    """Asks the reference, once for each different request."""

    def __init__(self) -> None:
        self._answers: dict[SoloRequest, tuple[SoloAnswer, ...]] = {}

    def answers(
        self,
        model: Path,
        prompts: Sequence[Prompt],
        max_tokens: int,
        *,
        max_model_len: int = 1024,
        ignore_eos: bool = False,
        chat: bool = False,
    ) -> tuple[SoloAnswer, ...]:
        """One answer for each prompt, in their order. Raises AssertionError with the engine's log when it fails."""
        request = SoloRequest(str(model), tuple(prompts), max_tokens, max_model_len, ignore_eos, chat)
        if request not in self._answers:
            self._answers[request] = _ask(request)
        return self._answers[request]


def _ask(request: SoloRequest, timeout_s: float = 240.0) -> tuple[SoloAnswer, ...]:
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Alone: the engine core in this process, and no platform plugin of ours.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_PLUGINS": "",
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryDirectory(prefix="edgellm-solo-") as directory:
        result = Path(directory) / "answers.json"
        done = subprocess.run(
            [sys.executable, __file__, str(result)],
            input=json.dumps(asdict(request)),
            capture_output=True,
            text=True,
            env=environment,
            cwd=directory,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, f"vLLM alone failed\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        answers = json.loads(result.read_text())
    return tuple(
        SoloAnswer(
            tuple(answer["prompt_token_ids"]),
            tuple(answer["token_ids"]),
            answer["text"],
            answer["finish_reason"],
        )
        for answer in answers
    )


def main() -> None:
    """Reads a request from stdin and writes its answers to the file that argument 1 names."""
    from vllm import LLM, SamplingParams

    request = json.load(sys.stdin)
    engine = LLM(
        request["model"], max_model_len=request["max_model_len"], dtype="bfloat16", enforce_eager=True, seed=0
    )
    sampling = SamplingParams(
        temperature=0.0, max_tokens=request["max_tokens"], ignore_eos=request["ignore_eos"]
    )
    if request["chat"]:
        turns = [[{"role": "user", "content": prompt}] for prompt in request["prompts"]]
        outputs = [output for turn in turns for output in engine.chat([turn], sampling, use_tqdm=False)]
    else:
        prompts = [
            prompt if isinstance(prompt, str) else {"prompt_token_ids": prompt}
            for prompt in request["prompts"]
        ]
        # One at a time: the peers answer one at a time too, and a batch may sum in another order.
        outputs = [
            output for prompt in prompts for output in engine.generate([prompt], sampling, use_tqdm=False)
        ]
    answers = [
        {
            "prompt_token_ids": list(output.prompt_token_ids or ()),
            "token_ids": list(output.outputs[0].token_ids),
            "text": output.outputs[0].text,
            "finish_reason": output.outputs[0].finish_reason,
        }
        for output in outputs
    ]
    Path(sys.argv[1]).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
