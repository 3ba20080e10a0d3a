"""Questions and answers <-> the messages of `proto/backend.proto`. Pure."""

from __future__ import annotations

from edgellm.types.request import Piece, Question
from edgellm.wire import backend_pb2


def question_to_wire(question: Question, request_id: str) -> backend_pb2.GenerateRequest:
    sampling = question.sampling
    request = backend_pb2.GenerateRequest(
        request_id=request_id,
        sampling=backend_pb2.SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            stop=sampling.stop,
            ignore_eos=sampling.ignore_eos,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repetition_penalty=sampling.repetition_penalty,
            stop_token_ids=sampling.stop_token_ids,
        ),
    )
    if question.text is not None:
        request.text = question.text
    elif question.token_ids:
        request.tokens.CopyFrom(backend_pb2.Tokens(ids=question.token_ids))
    else:
        request.chat.CopyFrom(
            backend_pb2.Chat(
                messages=[
                    backend_pb2.ChatMessage(role=message.role, content=message.content)
                    for message in question.messages
                ]
            )
        )
    return request


def piece_from_wire(event: backend_pb2.GenerateEvent) -> Piece:
    return Piece(
        tuple(event.token_ids),
        event.text,
        event.prompt_tokens,
        event.finish_reason,
        event.cached_prompt_tokens,
    )
