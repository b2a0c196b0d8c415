"""The built-in workload: many people chatting with a few assistants.

A conversation begins with one of a few system prompts (shared by all conversations of that assistant, some far more
popular than others) and grows: each turn's prompt is the system prompt, all earlier messages and answers, and the new
message. People think between turns. Everything follows from the seed.
"""

import heapq
import random
from dataclasses import dataclass, replace

from dynamo_llm.cli.prompts import Request, Workload
from dynamo_llm.cli.traces import SECONDS_A_TOKEN

CHAT_BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class ChatShape:
    """The knobs of the workload; the defaults are what `kvbm replay` runs."""

    requests: int = 2000
    assistants: int = 8
    system_tokens: tuple[int, int] = (200, 1800)
    conversations_a_second: float = 1.0
    turns_mean: float = 6.0
    message_tokens_median: float = 60.0
    document_share: float = 0.08
    """Part of the messages that bring a pasted document along."""
    document_tokens: tuple[int, int] = (600, 2400)
    answer_tokens_median: float = 220.0
    think_s_median: float = 15.0
    context_tokens_max: int = 8192
    """A conversation ends where its next prompt would be longer."""


def chat_workload(seed: int, shape: ChatShape = ChatShape()) -> Workload:
    """The workload of a seed, in the order of arrival."""
    rng = random.Random(seed)
    ids = iter(range(1, 1 << 62))
    systems = [(next(ids), rng.randint(*shape.system_tokens)) for _ in range(shape.assistants)]
    popularity = [1.0 / (rank + 1) for rank in range(shape.assistants)]
    turns: list[Request] = []
    conversation_start_s = 0.0
    arrived = 0
    coming_s: list[float] = []
    # Conversations start in order: once enough turns arrive before the next one starts, no later conversation matters.
    while arrived < shape.requests:
        first = len(turns)
        segments = [rng.choices(systems, popularity)[0]]
        arrival_s = conversation_start_s
        while True:
            segments.append((next(ids), _message_tokens(rng, shape)))
            length = sum(tokens for _, tokens in segments)
            if length > shape.context_tokens_max:
                break
            answer = _around(rng, shape.answer_tokens_median, 0.8)
            turns.append(
                Request(
                    arrival_s=arrival_s,
                    space=0,
                    segment_ids=tuple(segment for segment, _ in segments),
                    segment_tokens=tuple(tokens for _, tokens in segments),
                    input_tokens=length,
                    output_tokens=answer,
                    duration_s=answer * SECONDS_A_TOKEN,
                    after=len(turns) - 1 if len(turns) > first else None,
                )
            )
            if rng.random() < 1.0 / shape.turns_mean:
                break
            segments.append((next(ids), answer))
            arrival_s += answer * SECONDS_A_TOKEN + rng.lognormvariate(0.0, 0.8) * shape.think_s_median
        for turn in turns[first:]:
            heapq.heappush(coming_s, turn.arrival_s)
        conversation_start_s += rng.expovariate(shape.conversations_a_second)
        while coming_s and coming_s[0] < conversation_start_s:
            heapq.heappop(coming_s)
            arrived += 1
    order = sorted(range(len(turns)), key=lambda i: turns[i].arrival_s)[: shape.requests]
    place = {old: new for new, old in enumerate(order)}
    # A turn never arrives before the one that it follows, so what it follows is among the kept ones too.
    requests = [replace(turns[i], after=None if (a := turns[i].after) is None else place[a]) for i in order]
    return Workload(f"chat, seed {seed}", "chat", CHAT_BLOCK_TOKENS, (None,), requests)


def _around(rng: random.Random, median: float, spread: float) -> int:
    return max(1, round(rng.lognormvariate(0.0, spread) * median))


def _message_tokens(rng: random.Random, shape: ChatShape) -> int:
    tokens = _around(rng, shape.message_tokens_median, 0.9)
    if rng.random() < shape.document_share:
        tokens += rng.randint(*shape.document_tokens)
    return tokens
