"""The best hit rate a workload allows: an unbounded cache with prefix matching, one request after another.

Computed from segment ids alone, without token ids, keys or a block manager, so that it can judge them.

The cache is a trie over segments. A request's prompt, cut to whole pages, is walked from the root; what it shares with
earlier prompts is a number of tokens, hence of pages, and what it does not share is added. Every page of the trie is
missed once, by the request that brings it, so the number of hits does not depend on the order of the requests: with any
concurrency a replay that reports more is wrong.
"""

from dataclasses import dataclass

from dynamo_llm.cli.prompts import Request, Workload


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What an unbounded cache would have had."""

    hits: tuple[int, ...]
    """Blocks hit, for each request."""
    blocks: tuple[int, ...]
    """Blocks of the prompt, for each request."""

    @property
    def hit_blocks(self) -> int:
        return sum(self.hits)

    @property
    def prompt_blocks(self) -> int:
        return sum(self.blocks)

    @property
    def distinct_blocks(self) -> int:
        """Different blocks: what a cache must hold to reach the ceiling."""
        return self.prompt_blocks - self.hit_blocks

    @property
    def rate(self) -> float:
        return self.hit_blocks / self.prompt_blocks if self.prompt_blocks else 0.0


class _Trie:
    """Prompts seen so far. An edge is one segment; `known` says how many of its tokens some prompt had.

    An id has one length wherever another segment follows it: the last segment of a prompt alone may be cut short.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._edges: dict[tuple[int, int], int] = {}
        self._known: list[int] = []

    def insert(self, request: Request) -> tuple[int, int]:
        """Adds a prompt; returns its pages that were there, and all its pages."""
        pages = request.pages(self._page_size)
        left = pages * self._page_size
        shared = 0
        sharing = True
        lengths = request.segment_tokens
        # Every workload's ids of one space are told from another's by the root they start at.
        node = -1 - request.space
        for position, segment in enumerate(request.segment_ids):
            if left == 0:
                break
            length = min(left, lengths if isinstance(lengths, int) else lengths[position])
            left -= length
            edge = self._edges.setdefault((node, segment), len(self._known))
            if edge == len(self._known):
                self._known.append(0)
            known = self._known[edge]
            if sharing:
                shared += min(known, length)
                sharing = known >= length
            self._known[edge] = max(known, length)
            node = edge
        return shared // self._page_size, pages


def ceiling(workload: Workload, page_size: int) -> Ceiling:
    """Hits of an unbounded cache, with blocks of `page_size` tokens."""
    trie = _Trie(page_size)
    results = [trie.insert(request) for request in workload.requests]
    return Ceiling(tuple(hits for hits, _ in results), tuple(blocks for _, blocks in results))
