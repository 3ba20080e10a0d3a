"""A model of the swarm in the shape of transformers: tensors of token ids in, tensors out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Unpack

from edgellm.client.llm import LLM
from edgellm.client.options import SessionOptions
from edgellm.client.prompts import about_prompt
from edgellm.client.sampling import SamplingParams
from edgellm.errors import EngineError, UsageError

if TYPE_CHECKING:
    import torch

DEFAULT_NEW_TOKENS = 20
"""Of transformers, where neither the caller nor the model's generation_config.json says."""


class Streamer(Protocol):
    """`transformers.generation.streamers.BaseStreamer`."""

    def put(self, value: torch.Tensor) -> None: ...

    def end(self) -> None: ...


class AutoDistributedModelForCausalLM:
    """Makes a `DistributedModelForCausalLM`, as the Auto classes of transformers make models."""

    @staticmethod
    def from_pretrained(
        model: str | None = None, *, session: str | None = None, **options: Unpack[SessionOptions]
    ) -> DistributedModelForCausalLM:
        """A model of the swarm by its name there: opens a session, as `LLM` does with the same options."""
        return DistributedModelForCausalLM(LLM(model, session=session, **options))


class DistributedModelForCausalLM:
    """A language model on machines that others lend, in the shape of transformers.

        with AutoDistributedModelForCausalLM.from_pretrained("Qwen/Qwen3-32B", bootstrap=[…]) as model:
            inputs = model.tokenizer("The sky is blue because", return_tensors="pt")
            output = model.generate(**inputs, max_new_tokens=40)
            print(model.tokenizer.decode(output[0]))

    It holds no weights: `generate` is what it can do. Everything of the session is in `llm`. Where another model is
    put behind the session, `generate` raises SessionError.
    """

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self._digest = llm.digest

    @cached_property
    def config(self) -> Any:
        """The model's `transformers.PretrainedConfig`."""
        return _transformers().AutoConfig.from_pretrained(self._directory)

    @cached_property
    def generation_config(self) -> Any:
        """What the model's makers advise (`transformers.GenerationConfig`). `generate` takes eos, pad and length from it;
        sampling is as the caller says."""
        transformers = _transformers()
        if (self._directory / "generation_config.json").is_file():
            return transformers.GenerationConfig.from_pretrained(self._directory)
        return transformers.GenerationConfig.from_model_config(self.config)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, which pads on the left as `generate` needs it."""
        return _transformers().AutoTokenizer.from_pretrained(self._directory, padding_side="left")

    @property
    def device(self) -> torch.device:
        """Where inputs are expected: the CPU. `generate` takes them from anywhere and gives its output there."""
        import torch

        return torch.device("cpu")

    @property
    def name_or_path(self) -> str:
        return self.llm.model

    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        num_return_sequences: int = 1,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        streamer: Streamer | None = None,
        **unknown: object,
    ) -> torch.Tensor:
        """The prompts with their answers: int64 of shape (batch x num_return_sequences, longest), padded on the right.

        `input_ids` has shape (batch, length); rows shorter than others are padded on the left, as `attention_mask` says.
        Without `do_sample` it takes the likeliest token, and temperature, top_p, top_k and min_p must be left out. An answer is
        at most `max_new_tokens` long, or so long that it is `max_length` with its prompt, and ends where the context ends. An
        empty `eos_token_id` lets nothing else end it. `streamer` gets prompt and tokens of a batch of one.

        Raises UsageError for whatever else is given, and for what cannot be.
        """
        import torch

        if unknown:
            raise UsageError(
                f"generate() takes no {', '.join(sorted(unknown))}",
                remedy="leave it out; what there is: help(DistributedModelForCausalLM.generate)",
            )
        if input_ids is None or input_ids.dim() != 2 or not input_ids.numel():
            raise UsageError(
                "generate() needs input_ids of shape (batch, length)",
                remedy='tokenizer("…", return_tensors="pt") makes them',
            )
        if not do_sample and (temperature, top_p, top_k, min_p) != (1.0, 1.0, 0, 0.0):
            raise UsageError(
                "temperature, top_p, top_k and min_p are for do_sample=True",
                remedy="add it, or leave them out",
            )
        if num_return_sequences < 1 or (num_return_sequences > 1 and not do_sample):
            raise UsageError(
                f"num_return_sequences={num_return_sequences} needs do_sample=True", remedy="add it"
            )
        ends = self._ends(eos_token_id)
        pad = self._pad(pad_token_id, ends)
        prompts = _prompts(input_ids, attention_mask, pad, ends)
        if streamer is not None and len(prompts) * num_return_sequences > 1:
            raise UsageError("a streamer follows a batch of one", remedy="give one prompt, or no streamer")
        width = input_ids.shape[1]
        params = SamplingParams(
            max_tokens=self._new_tokens(max_new_tokens, max_length, width),
            temperature=temperature if do_sample else 0.0,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop_token_ids=ends,
            # These ends are the only ones.
            ignore_eos=True,
        )
        repeated = [prompt for prompt in prompts for _ in range(num_return_sequences)]
        if streamer is None:
            answers = [
                answer.token_ids
                for answer in self.llm.generate(
                    repeated, _each_its_seed(params, len(repeated)), digest=self._digest
                )
            ]
        else:
            answers = [self._streamed(prompts[0], params, input_ids, streamer)]
        longest = max(map(len, answers))
        output = torch.full((len(answers), width + longest), pad if pad is not None else 0, dtype=torch.int64)
        output[:, :width] = input_ids.repeat_interleave(num_return_sequences, dim=0)
        for row, answer in enumerate(answers):
            output[row, width : width + len(answer)] = torch.tensor(answer, dtype=torch.int64)
        return output.to(input_ids.device)

    def close(self) -> None:
        """As `LLM.close`."""
        self.llm.close()

    def __enter__(self) -> DistributedModelForCausalLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def _directory(self) -> Path:
        return self.llm.model_directory()

    def _ends(self, eos_token_id: int | Sequence[int] | None) -> tuple[int, ...]:
        if eos_token_id is None:
            eos_token_id = self.generation_config.eos_token_id
        if eos_token_id is None:
            eos_token_id = self.config.eos_token_id
        if eos_token_id is None:
            return ()
        return (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)

    def _pad(self, pad_token_id: int | None, ends: tuple[int, ...]) -> int | None:
        if pad_token_id is None:
            pad_token_id = self.generation_config.pad_token_id
        return pad_token_id if pad_token_id is not None else next(iter(ends), None)

    def _new_tokens(self, max_new_tokens: int | None, max_length: int | None, width: int) -> int:
        if max_new_tokens is not None and max_length is not None:
            raise UsageError(
                "max_new_tokens and max_length exclude each other", remedy="leave out one of them"
            )
        if max_new_tokens is None and max_length is None:
            max_new_tokens = self.generation_config.max_new_tokens
            if max_new_tokens is None:
                max_length = self.generation_config.max_length
        if max_length is not None:
            if max_length <= width:
                raise UsageError(
                    f"max_length={max_length} leaves no room after prompts of {width} tokens",
                    remedy="say max_new_tokens",
                )
            return max_length - width
        return DEFAULT_NEW_TOKENS if max_new_tokens is None else max_new_tokens

    def _streamed(
        self, prompt: list[int], params: SamplingParams, input_ids: torch.Tensor, streamer: Streamer
    ) -> tuple[int, ...]:
        import torch

        streamer.put(input_ids.cpu())
        tokens: list[int] = []
        with self.llm.stream(prompt, params, digest=self._digest) as pieces:
            for piece in pieces:
                for token in piece.token_ids:
                    streamer.put(torch.tensor([token]))
                tokens += piece.token_ids
        streamer.end()
        return tuple(tokens)

    def __repr__(self) -> str:
        return f"<DistributedModelForCausalLM of {self.llm!r}>"


def _prompts(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, pad: int | None, ends: tuple[int, ...]
) -> list[list[int]]:
    """The rows without their padding. As in transformers, without a mask padding is what is told from an end by its id."""
    if attention_mask is None:
        told_apart = pad is not None and pad not in ends
        attention_mask = input_ids.ne(pad) if told_apart else input_ids.new_ones(input_ids.shape)
    if attention_mask.shape != input_ids.shape:
        raise UsageError(
            f"attention_mask is of shape {tuple(attention_mask.shape)}, input_ids of {tuple(input_ids.shape)}",
            remedy="give the one that the tokenizer made with them",
        )
    prompts = []
    for index, (row, mask) in enumerate(zip(input_ids.tolist(), attention_mask.bool().tolist(), strict=True)):
        if True not in mask:
            raise about_prompt(UsageError("the prompt is empty"), index, len(input_ids))
        begin = mask.index(True)
        if not all(mask[begin:]):
            error = UsageError(
                "padding is not on the left", remedy='tokenizer.padding_side = "left", or model.tokenizer'
            )
            raise about_prompt(error, index, len(input_ids))
        prompts.append(row[begin:])
    return prompts


def _each_its_seed(params: SamplingParams, count: int) -> list[SamplingParams]:
    """Several answers to one prompt by one seed would all be the same."""
    if params.seed is None:
        return [params] * count
    return [replace(params, seed=params.seed + index) for index in range(count)]


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise EngineError(
            "transformers is not installed here", remedy="pip install transformers, or use edgellm.LLM"
        ) from error
    return transformers
