"""A program of a user's: all of the Python client over one session, which it opens and then holds until it is killed.

Prints what came as one line of JSON, then waits.

`python python_program.py BOOTSTRAP MODEL_DIRECTORY`
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import anyio

from edgellm import LLM, AsyncLLM, AsyncSwarm, EdgeError, Message, SamplingParams, Swarm

GREEDY = SamplingParams(max_tokens=16, temperature=0)
ENDLESS = SamplingParams(max_tokens=900, temperature=0, ignore_eos=True)
PROMPTS = ["Exceptions are", "Dictionaries are", "A list is"]
"""Of their first 16 tokens none is closer than 0.6 to the next likely one: how a batch is added up decides nothing."""


def main() -> None:
    bootstrap, directory = sys.argv[1:]
    said: dict[str, Any] = {"progress": []}
    swarm = Swarm([bootstrap])
    said["peers"] = {peer.name: peer.load for peer in swarm.peers()}
    said["models"] = [(model.name, sorted(model.hosts)) for model in swarm.models()]

    llm = LLM(
        "tiny",
        bootstrap=[bootstrap],
        name="amber",
        pp=2,
        context=1024,
        sequences=4,
        min_tok_s=0.1,
        max_load=0.8,
        on_progress=lambda line: said["progress"].append(line.phase),
    )
    said["session"] = {"name": llm.session, "model": llm.model, "context": llm.context}
    said["route"] = [(hop.name, hop.first_layer, hop.end_layer) for hop in llm.route]
    said["loads"] = {peer.name: peer.load for peer in swarm.peers()}

    said["streamed"] = ["".join(piece.text for piece in llm.stream(prompt, GREEDY)) for prompt in PROMPTS]
    answers = llm.generate(PROMPTS * 3, GREEDY)
    said["batch"] = [answer.text for answer in answers]
    said["counts"] = sorted({len(answer.token_ids) for answer in answers})
    said["reasons"] = sorted({answer.finish_reason for answer in answers})
    said["chat"] = llm.chat([Message("system", "Be brief."), Message("user", "What is a list?")], GREEDY).text
    said["asked"] = llm.chat("What is a list?", GREEDY).text
    said["stopped"] = llm.generate("Exceptions are", SamplingParams(temperature=0, stop=("flow",)))[0].text
    said["top_k"] = llm.generate(
        "Exceptions are",
        SamplingParams(max_tokens=16, temperature=2, top_k=1, min_p=0.01, presence_penalty=0.1),
    )[0].text
    said["errors"] = [
        failure(lambda: llm.generate(["why", "word " * 3000])),
        failure(lambda: LLM("tiny", bootstrap=[bootstrap], max_load=0.0, peers=["alice"])),
    ]
    said["threads"] = threads(llm)
    said["freed"] = freed(llm)
    for backend in ("asyncio", "trio"):
        said[backend] = anyio.run(with_a_loop, bootstrap, backend=backend)
    said["imported"] = sorted(
        {"vllm", "ray", "torch", "transformers"} & {name.partition(".")[0] for name in sys.modules}
    )
    said["tensors"] = as_transformers(directory)
    print(json.dumps(said), flush=True)
    time.sleep(600)


def failure(work: Any) -> tuple[str, str]:
    try:
        work()
    except EdgeError as error:
        return type(error).__name__, str(error)
    return "", ""


def threads(llm: LLM) -> list[str]:
    texts: list[str] = []
    running = [
        threading.Thread(target=lambda: texts.append(llm.generate(PROMPTS[0], GREEDY)[0].text))
        for _ in range(6)
    ]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return texts


def freed(llm: LLM) -> float:
    """How long a short answer takes after as many long ones as fill the engine many times were left in the middle."""
    for _ in range(12):
        for _ in llm.stream("def", ENDLESS):
            break
    begun = time.monotonic()
    llm.generate("def", SamplingParams(max_tokens=4))
    return time.monotonic() - begun


async def with_a_loop(bootstrap: str) -> dict[str, Any]:
    said: dict[str, Any] = {"peers": sorted(peer.name for peer in await AsyncSwarm([bootstrap]).peers())}
    async with AsyncLLM(session="amber") as llm:
        said["streamed"] = "".join([piece.text async for piece in llm.stream(PROMPTS[0], GREEDY)])
        said["batch"] = [answer.text for answer in await llm.generate(PROMPTS, GREEDY)]
        for _ in range(6):
            with anyio.move_on_after(0.15):
                await llm.generate(["def"] * 4, ENDLESS)
        begun = time.monotonic()
        await llm.generate("def", SamplingParams(max_tokens=4))
        said["freed"] = time.monotonic() - begun
    return said


def as_transformers(directory: str) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, TextStreamer

    from edgellm import AutoDistributedModelForCausalLM

    local = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    with AutoDistributedModelForCausalLM.from_pretrained(session="amber") as model:
        alone = model.tokenizer(PROMPTS[0], return_tensors="pt")
        batch = model.tokenizer(PROMPTS, padding=True, return_tensors="pt")
        reference = [
            local.generate(
                **inputs, max_new_tokens=16, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
            for inputs in (alone, batch)
        ]
        likeliest = [logits.float().topk(2).values for each in reference for logits in each.logits]
        # The end that the caller says: the third token of the first answer.
        end = int(reference[0].sequences[0, alone["input_ids"].shape[1] + 2])
        ended = {"max_new_tokens": 16, "eos_token_id": end, "pad_token_id": 7}
        return {
            "margin": min(float((two[:, 0] - two[:, 1]).min()) for two in likeliest),
            "reference": [each.sequences.tolist() for each in reference],
            "generated": [model.generate(**inputs, max_new_tokens=16).tolist() for inputs in (alone, batch)],
            "ended": model.generate(**batch, **ended).tolist(),
            "ended_reference": local.generate(**batch, **ended, do_sample=False).tolist(),
            "streamed": model.generate(
                **alone, max_new_tokens=16, streamer=TextStreamer(model.tokenizer, skip_prompt=True)
            ).tolist(),
            "layers": model.config.num_hidden_layers,
        }


if __name__ == "__main__":
    # As a program is run from anywhere: nothing of this directory.
    assert Path(sys.path.pop(0)).name == "system"
    main()
