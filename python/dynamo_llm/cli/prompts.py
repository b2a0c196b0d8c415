"""Requests as data, and the token ids of their prompts.

A prompt is a list of segments, each an id and a length in tokens. A segment's tokens are a function of its id alone, so
equal ids are equal text: in a trace a segment is one block (a hash id), in the chat workload a message. Token ids are
made when a request is served and dropped again: a whole trace of them would be hundreds of megabytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

VOCABULARY_BITS = 17
"""Token ids are below 131,072, as those of current models are."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a workload."""

    arrival_s: float
    """Seconds from the workload's start, in trace time."""
    space: int
    """Index into `Workload.salts`: ids of different spaces have nothing to do with each other."""
    segment_ids: tuple[int, ...]
    segment_tokens: int | tuple[int, ...]
    """Length of every segment, or of each one."""
    input_tokens: int
    output_tokens: int
    duration_s: float
    """How long the server works on it, in trace time."""
    after: int | None = None
    """Index of the request that must be answered before this one is sent: the conversation's previous turn."""

    @property
    def total_tokens(self) -> int:
        """Tokens in all segments: `input_tokens`, or more where a trace counts its last, partial block whole."""
        if isinstance(self.segment_tokens, int):
            return self.segment_tokens * len(self.segment_ids)
        return sum(self.segment_tokens)

    def pages(self, page_size: int) -> int:
        """Blocks of `page_size` tokens of the prompt.

        A trace gives its last, partial block an id like any other, and that block counts; a part of a page beyond the
        segments' tokens does not.
        """
        return min(-(-self.input_tokens // page_size), self.total_tokens // page_size)


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in the order of their arrival."""

    name: str
    kind: str
    """Where it comes from: "jsonl", "agentic", "mixed" or "chat"."""
    block_tokens: int
    """The page size that fits it."""
    salts: tuple[str | None, ...]
    """For each space what separates its keys from the other spaces'."""
    requests: Sequence[Request]

    @property
    def span_s(self) -> float:
        """Trace time from the first arrival to the last."""
        return self.requests[-1].arrival_s if self.requests else 0.0

    def limited(self, count: int | None) -> "Workload":
        """The first `count` requests."""
        if count is None or count >= len(self.requests):
            return self
        return Workload(self.name, self.kind, self.block_tokens, self.salts, self.requests[:count])


def splitmix(x: U64) -> U64:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection that scatters neighbours."""
    x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: U64 = x ^ (x >> np.uint64(31))
    return mixed


def _scatter(ids: npt.NDArray[np.uint64], count: int) -> U32:
    """`count` tokens for each id, one row an id: 63 bits of the id's hash make a row, so rows differ."""
    hashed = splitmix(ids)
    start = hashed.astype(np.uint32)[:, None]
    factor = ((hashed >> np.uint64(32)).astype(np.uint32) | np.uint32(1))[:, None]
    tokens: U32 = np.arange(count, dtype=np.uint32)[None, :] * np.uint32(0x9E3779B9) + start
    tokens ^= tokens >> np.uint32(15)
    tokens *= factor
    tokens ^= tokens >> np.uint32(13)
    tokens >>= np.uint32(32 - VOCABULARY_BITS)
    return tokens


def prompt_tokens(request: Request) -> U32:
    """Token ids of all segments of the prompt, as one array."""
    ids = np.array(request.segment_ids, dtype=np.uint64)
    if isinstance(request.segment_tokens, int):
        return _scatter(ids, request.segment_tokens).reshape(-1)
    rows = [_scatter(ids[i : i + 1], count)[0] for i, count in enumerate(request.segment_tokens)]
    return np.concatenate(rows) if rows else np.empty(0, dtype=np.uint32)
