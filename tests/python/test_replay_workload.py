"""The built-in chat workload."""

from itertools import pairwise

import pytest

from dynamo_llm.cli.ceiling import ceiling
from dynamo_llm.cli.workload import ChatShape, chat_workload


def test_a_seed_makes_the_same_workload() -> None:
    shape = ChatShape(requests=300)
    assert chat_workload(7, shape) == chat_workload(7, shape)
    assert chat_workload(7, shape) != chat_workload(8, shape)


@pytest.mark.parametrize("requests", [1, 2, 50, 500])
def test_it_has_as_many_requests_as_asked_in_order(requests: int) -> None:
    workload = chat_workload(3, ChatShape(requests=requests))
    assert len(workload.requests) == requests
    assert all(a.arrival_s <= b.arrival_s for a, b in pairwise(workload.requests))


def test_turns_follow_each_other_and_grow() -> None:
    workload = chat_workload(5, ChatShape(requests=400))
    following = 0
    for index, request in enumerate(workload.requests):
        assert request.input_tokens == request.total_tokens <= 8192
        if request.after is None:
            assert len(request.segment_ids) == 2
            continue
        assert request.after < index
        previous = workload.requests[request.after]
        assert request.segment_ids[: len(previous.segment_ids)] == previous.segment_ids
        assert request.arrival_s > previous.arrival_s + previous.duration_s
        following += 1
    assert following > 200


def test_system_prompts_are_shared_by_conversations() -> None:
    workload = chat_workload(5, ChatShape(requests=400))
    systems = {r.segment_ids[0] for r in workload.requests}
    conversations = sum(r.after is None for r in workload.requests)
    assert len(systems) <= 8 < conversations
    assert 0.6 < ceiling(workload, 16).rate < 0.95


def test_a_longer_workload_starts_like_a_shorter_one() -> None:
    short = chat_workload(2, ChatShape(requests=100))
    long = chat_workload(2, ChatShape(requests=200))
    assert long.requests[:100] == short.requests
