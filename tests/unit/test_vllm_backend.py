"""The vLLM backend's light parts: nothing here imports torch, Ray or vLLM."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

pytest.importorskip("edgellm_vllm", reason="the distribution in backends/vllm is not installed")

from edgellm_vllm.backend import BACKEND
from edgellm_vllm.kv.server import server_command
from edgellm_vllm.kv.settings import may_share, settings_from
from edgellm_vllm.placement import RankPlacement, difference, planned_placement
from edgellm_vllm.prompts import InvalidRequest, answer_tokens, prompt_token_ids
from edgellm_vllm.ray_node import answers

from edgellm.engine.backend import Backend, KvSharing, MemberSpec
from edgellm.engine.registry import load_backend
from edgellm.errors import EngineError
from edgellm.wire import backend_pb2 as pb

SECRET = "0123456789abcdef" * 2
HEAD = MemberSpec(
    role="head",
    address="10.88.7.1",
    head_address="10.88.7.1",
    head_port=6379,
    cluster_token=SECRET,
    socket_path="/run/edgellm/engine.sock",
)
WORKER = MemberSpec(
    role="worker",
    address="10.88.7.12",
    head_address="10.88.7.1",
    head_port=6379,
    cluster_token=SECRET,
    devices=("0", "1"),
    threads=8,
    stage_index=10,
)


def test_the_registry_finds_it_and_says_what_to_install_otherwise() -> None:
    assert isinstance(load_backend("vllm"), Backend)
    with pytest.raises(EngineError, match="no backend named 'nonesuch'") as caught:
        load_backend("nonesuch")
    assert "pip install" in caught.value.remedy


def test_the_scopes_secret_reaches_workers_by_their_environment_alone() -> None:
    kv = KvSharing(socket_path="/run/edgellm/blocks.sock", scope_secret="5e" * 32, weights="w")
    head, worker = replace(HEAD, kv=kv), replace(WORKER, kv=kv)
    assert kv.scope_secret not in str(BACKEND.command(worker))
    assert kv.scope_secret not in str(BACKEND.environment(head))
    told = settings_from(BACKEND.environment(worker))
    assert told is not None
    assert told.sharing == kv
    assert settings_from(BACKEND.environment(head)) is None
    assert may_share(BACKEND.environment(head))
    assert not may_share(BACKEND.environment(HEAD))
    assert not may_share(BACKEND.environment(WORKER))
    assert kv.scope_secret not in str(server_command("10.88.7.12", told, "cpu"))


def test_on_a_network_that_others_use_nothing_is_shared() -> None:
    kv = KvSharing(socket_path="/run/edgellm/blocks.sock", scope_secret="5e" * 32, weights="w")
    for member in (HEAD, WORKER):
        assert not may_share(BACKEND.environment(replace(member, kv=kv, interface="eth0")))


def test_a_node_that_asks_it_imports_no_engine() -> None:
    ask = (
        "import sys; from edgellm.engine.registry import load_backend; load_backend('vllm');"
        "print(sorted({'torch', 'ray', 'vllm', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_command_line_holds_the_cluster_token() -> None:
    for member in (HEAD, WORKER):
        assert SECRET not in " ".join(BACKEND.command(member))
        assert BACKEND.environment(member)["RAY_AUTH_TOKEN"] == SECRET


def test_ranks_of_one_member_share_its_threads() -> None:
    assert BACKEND.environment(WORKER)["OMP_NUM_THREADS"] == "4"


def test_cuda_members_see_the_devices_lent_and_no_platform_plugin() -> None:
    cuda = MemberSpec(**{**vars(WORKER), "device_kind": "cuda", "devices": ("2", "GPU-5fd4")})
    environment = BACKEND.environment(cuda)
    assert environment["CUDA_VISIBLE_DEVICES"] == "2,GPU-5fd4"
    assert "EDGELLM_VLLM_PLATFORM" not in environment
    assert BACKEND.environment(WORKER)["EDGELLM_VLLM_PLATFORM"] == "cpu"


def test_ranks_go_stage_by_stage_however_addresses_sort() -> None:
    plan = [pb.Stage(address=f"10.88.7.{n + 2}", first_layer=n, end_layer=n + 1) for n in range(11)]
    ranks = planned_placement(plan, 2)
    assert [rank.rank for rank in ranks] == list(range(22))
    assert [rank.address for rank in ranks[::2]] == [f"10.88.7.{n}" for n in range(2, 13)]
    assert all(rank.first_layer == rank.rank // 2 for rank in ranks)


def test_a_difference_names_the_rank_and_both_places() -> None:
    planned = (RankPlacement(0, "10.88.7.2", 0, 3), RankPlacement(1, "10.88.7.3", 3, 8))
    assert difference(planned, planned[::-1]) == ""
    swapped = (RankPlacement(0, "10.88.7.3", 0, 3), RankPlacement(1, "10.88.7.2", 3, 8))
    assert difference(planned, swapped).startswith(
        "rank 0 should run layers 0 to 3 on 10.88.7.2, but runs 0 to 3 on 10.88.7.3; rank 1"
    )
    assert difference(planned, planned[:1]) == "1 ranks run, 2 were planned"


class WordTokenizer:
    """One token for each word; the template wraps messages in <>, or refuses."""

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template

    def __len__(self) -> int:
        return 100

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [99] * add_special_tokens + [len(word) for word in text.split()]

    def apply_chat_template(
        self, turns: list[dict[str, str]], add_generation_prompt: bool, tokenize: bool
    ) -> str:
        if turns[0]["role"] != "user":
            raise ValueError("the first role must be user")
        return " ".join(f"<{turn['content']}>" for turn in turns)


def chat(*messages: tuple[str, str]) -> pb.GenerateRequest:
    turns = [pb.ChatMessage(role=role, content=content) for role, content in messages]
    return pb.GenerateRequest(chat=pb.Chat(messages=turns))


def test_prompts_become_token_ids() -> None:
    plain, templated = WordTokenizer(None), WordTokenizer("template")
    assert prompt_token_ids(pb.GenerateRequest(text="to be"), plain) == [99, 2, 2]
    assert prompt_token_ids(pb.GenerateRequest(tokens=pb.Tokens(ids=[7, 8])), plain) == [7, 8]
    assert prompt_token_ids(chat(("system", "short"), ("user", "why")), plain) == [99, 5, 3]
    # A template writes its own special tokens.
    assert prompt_token_ids(chat(("user", "why")), templated) == [5]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (pb.GenerateRequest(), "empty"),
        (pb.GenerateRequest(text=""), "empty"),
        (chat(("user", " \n")), "empty"),
        (pb.GenerateRequest(tokens=pb.Tokens()), "empty"),
        (pb.GenerateRequest(tokens=pb.Tokens(ids=[3, 100])), "token id 100 is outside"),
        (chat(("tool", "what")), "the first role must be user"),
    ],
)
def test_prompts_that_cannot_work_say_why(request_: pb.GenerateRequest, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        prompt_token_ids(request_, WordTokenizer("template"))


def test_an_answer_takes_the_room_that_the_prompt_leaves() -> None:
    assert answer_tokens(10, 5, 100) == 5
    assert answer_tokens(10, 0, 100) == 90
    assert answer_tokens(99, 50, 100) == 1
    with pytest.raises(InvalidRequest, match="the prompt has 100 tokens, but the context holds 100"):
        answer_tokens(100, 1, 100)


async def _answers_of(reply: Callable[[asyncio.StreamWriter], None]) -> bool:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(24)
        reply(writer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        return await answers("127.0.0.1", server.sockets[0].getsockname()[1])


def test_a_head_is_up_when_its_grpc_answers_not_when_a_connect_succeeds() -> None:
    settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    assert asyncio.run(_answers_of(lambda writer: writer.write(settings)))
    assert not asyncio.run(_answers_of(lambda writer: None))
    assert not asyncio.run(_answers_of(lambda writer: writer.write(b"HTTP/1.1 400")))
